import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax import mesh as mesh_lib
from past_jax import models
from past_jax.models import RULES
from past_jax.models.config import SCRATCH
from past_jax.models.shapes import SHAPES
from past_jax.models.transformer import DECODE_RULES
from past_jax.types import UserError


def test_minus_one_takes_the_devices_that_are_left():
  assert dict(mesh_lib.make({'data': -1, 'fsdp': 2, 'tensor': 2}).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  with pytest.raises(UserError, match='needs 16 devices; there are 8'):
    mesh_lib.make({'data': 4, 'fsdp': 2, 'tensor': 2})


def test_every_parameter_has_a_place(policy):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  placed = mesh_lib.shardings(mesh, shapes, RULES)
  assert placed['layers']['q']['kernel'].spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor', None)
  with pytest.raises(UserError, match='No sharding rule matches.*layers/strange'):
    mesh_lib.shardings(mesh, {'layers': {'strange': jnp.zeros(4)}}, RULES)
  with pytest.raises(UserError, match='fsdp=2 does not divide'):
    mesh_lib.shardings(mesh, {'gate': {'kernel': jnp.zeros((2, 3, 4))}}, RULES)


@pytest.mark.parametrize('spec', [*SCRATCH, *{str(shape): spec for spec, shape in SHAPES.items()}.values()])
def test_every_parameter_has_one_rule_per_layout(spec):
  shapes = jax.eval_shape(models.described(spec).policy.init, jax.random.key(0))
  one = mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1})
  layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes['layers'])
  for tree, rules in ((shapes, RULES), (layer, DECODE_RULES)):
    mesh_lib.shardings(one, tree, rules)  # it raises where two disagree
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
      assert sum(re.search(pattern, mesh_lib.path_string(path)) is not None for pattern, _ in rules) == 1, path


@pytest.mark.parametrize(
  ('rules', 'says'),
  [
    ([('gate$', ('fsdp', 'fsdp'))], r"\('gate\$', .*'layers/gate' of shape \(4, 4\), names the axis 'fsdp' twice"),
    ([('gate$', ('fsdp', ('tensor', 'fsdp')))], "'layers/gate' of shape .*names the axis 'fsdp' twice"),
    ([('gate$', (None, None, 'fsdp'))], r"\('gate\$', .*'layers/gate' of shape .*has axes for 3 dimensions"),
    ([('gate$', ('model',))], r"\('gate\$', .*'layers/gate' .*'model'; the mesh has data, fsdp, tensor"),
    (
      [('gate$', ('fsdp',)), ('layers', ('tensor',))],
      r"\('gate\$', .*\('layers', .*both match .*'layers/gate'.*disagree",
    ),
  ],
)
def test_rules_that_conflict_are_told_with_the_path(rules, says):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  with pytest.raises(UserError, match=says):
    mesh_lib.shardings(mesh, {'layers': {'gate': jnp.zeros((4, 4))}}, rules)


def test_rules_that_agree_and_what_an_optimizer_adds():
  mesh, spec = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2}), jax.sharding.PartitionSpec
  twice = [('gate$', (None, 'fsdp')), ('layers', [None, 'fsdp'])]
  assert mesh_lib.shardings(mesh, {'layers': {'gate': jnp.zeros((4, 4))}}, twice)['layers']['gate'].spec[1] == 'fsdp'
  sums = {'opt_state': {'layers': {'gate': jnp.zeros(4)}, 'other': jnp.zeros(3)}}
  assert {x.spec for x in jax.tree.leaves(mesh_lib.shardings(mesh, sums, twice))} == {spec()}


def test_what_axes_do_not_divide_stays_whole():
  x = jnp.arange(12.0).reshape(3, 4)
  assert mesh_lib.move(x, ('fsdp', 'tensor')) is x  # there is no mesh
  with jax.set_mesh(mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})):
    placed = jax.jit(lambda x: mesh_lib.move(x, ('fsdp', ('tensor', 'fsdp'))))(x)
    assert placed.sharding.spec == jax.sharding.PartitionSpec(None, ('tensor', 'fsdp'))
    np.testing.assert_array_equal(placed, x)
