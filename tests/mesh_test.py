import jax
import jax.numpy as jnp
import pytest

from past_jax import mesh as mesh_lib
from past_jax.models import RULES
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
