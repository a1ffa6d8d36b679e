"""`past compile`: the programs that the loop runs, as libtpu compiles them; what it says, and what it refuses."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from past_jax import aot, chips, hlo, models
from past_jax.chips import GIB, topology
from past_jax.logps import CHUNK
from past_jax.main import main
from past_jax.models.shapes import SHAPES
from past_jax.types import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def refused(capsys, monkeypatch):
  """refused(*flags) -> what `past compile` says when it refuses them."""
  monkeypatch.setattr(jax.config, 'update', lambda *args: None)  # the tests' devices stay

  def run(*argv):
    assert main(['compile', *argv]) == 2
    return capsys.readouterr().err

  return run


TINY = f'--config={ROOT}/configs/past.py:size=tiny'


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    ([TINY], '--topology=... is missing'),
    ([TINY, '--topology=v5e:9'], 'There are v5e:1x1, v5e:2x2'),
    ([TINY, '--topology=v5e:2x2', '--config.study.batch=6'], 'config.study.batch=6 must be a multiple of 4'),
    ([TINY, '--topology=v5e:2x2', '--config.mesh.fsdp=8'], 'needs 8 devices'),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_compiled(refused, flags, says):
  assert says in refused(*flags)


@pytest.mark.parametrize('words', ['typo', 'update,typo'])
def test_every_word_for_a_program_must_name_one(refused, monkeypatch, words):
  programs = [aot.Program(name, lambda: None, 0, ()) for name in ('score', 'update')]
  monkeypatch.setattr(aot, 'programs', lambda *args: programs)  # without libtpu
  monkeypatch.setattr(aot, 'compile_', lambda program, slice_: pytest.fail(f'compiles {program.name}'))
  said = refused(TINY, '--topology=v5e:2x2', f'--programs={words}')
  assert '--programs=typo: the programs of this config are score, update.' in said


@pytest.mark.parametrize('spec', SHAPES)
def test_shapes_are_those_of_the_models(spec):
  """Their numbers of parameters, as their model cards give them; no hub is asked."""
  billions = {'1B': 1.236, '8B': 8.03, '70B': 70.55, '7B': 7.616, '135M': 0.1345, 'smollm2': 0.1345}
  shapes = jax.eval_shape(models.described(spec).policy.init, jax.random.key(0))
  size = sum(x.size for x in jax.tree.leaves(shapes)) / 1e9
  assert size == pytest.approx(next(n for name, n in billions.items() if f'-{name}' in spec), rel=1e-3)


def test_a_shape_that_is_not_known():
  with pytest.raises(UserError, match=r'give a directory with config.json'):
    models.described('hf:some/model')


@pytest.mark.parametrize(
  ('message', 'gib'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (200.00G) exceeds '
      'available HBM (15.75G).',
      200,
    ),
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 33.65G of '
      '15.75G hbm. Exceeded hbm capacity by 17.90G.',
      33.65,
    ),
  ],
)
def test_bytes_of_a_program_that_does_not_fit(message, gib):
  assert aot.memory(message) == gib * GIB


def test_a_verdict_names_bytes_and_a_key():
  program = aot.Program('update', lambda: None, 0, ('config.model.remat=layer',))
  assert aot.verdict_of(9 * GIB, topology('v5e:2x2'), program) == 'fits: 9.00 GiB of 15.75 GiB, 6.75 GiB are left'
  assert aot.verdict_of(20 * GIB, topology('v5e:2x2'), program) == (
    'does not fit: it needs 20.00 GiB, 4.25 GiB more than the 15.75 GiB of a v5e device; try '
    '--config.model.remat=layer, or more chips'
  )


def cost(**changes):
  return hlo.Cost('', 'dot', 1, **changes)


def test_a_roofline_is_the_longest_of_three():
  """Per device: a v5e multiplies at 197 TFLOP/s, reads 819 GB/s, and in 2x2 sends 2 x 50 GB/s."""
  of = lambda *costs: aot.roofline(list(costs), topology('v5e:2x2'))
  assert of(cost(flops=197e12, bytes=1))['bound_by'] == 'compute'
  assert of(cost(flops=197e12))['seconds'] == pytest.approx(1)
  assert of(cost(flops=197e12 / 6, passes=6))['seconds'] == pytest.approx(1)
  found = of(cost(flops=197e12 / 2, bytes=819e9))
  assert (found['bound_by'], found['mfu_bound']) == ('hbm', pytest.approx(0.5))
  sent = dataclasses.asdict(hlo.total([hlo.Cost('', 'all-gather', 3, sent=100e9)]))
  assert sent['collectives'] == {'all-gather': {'count': 3, 'bytes': 100e9}}
  assert of(hlo.Cost('', 'all-gather', 3, sent=200e9))['seconds'] == pytest.approx(2)
  again = hlo.Cost('checkpoint/rematted_computation/dot', 'dot', 1, flops=197e12)
  assert of(cost(flops=197e12), again)['mfu_bound'] == pytest.approx(0.5)


# --- with libtpu --------------------------------------------------------------------------------------------------


def scratch_directory(folder, **shape):
  """A model as far as its config.json."""
  from past_jax.models.config import scratch

  (folder / 'config.json').write_text(json.dumps(dict(scratch(**shape).source)))
  return folder


def past(*argv):
  env = os.environ | {'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1'}
  for name in chips.ENVIRONMENT:
    env.pop(name, None)
  command = [sys.executable, '-m', 'past_jax.main', 'compile', *argv]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_all_programs_of_a_config():
  done = past(TINY, '--topology=v5e:2x2', '--json')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)  # nothing else is on stdout
  programs = {program['name']: program for program in found['programs']}
  assert list(programs) == [
    *('place weights', 'sample: prompts', 'sample: a token', 'sampler gap', 'judge', 'score', 'update')
  ]
  assert all(program['fits'] and 0 < program['peak_bytes'] < program['hbm_bytes'] for program in programs.values())
  assert programs['update']['flops'] > programs['score']['flops'] > 0
  assert programs['update']['beside_bytes'] == 0 < programs['sample: a token']['beside_bytes']


@pytest.mark.slow
def test_nothing_is_kept_that_could_not_be_read_again(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  done = past(TINY, '--topology=v5e:2x2', '--programs=place')
  assert done.returncode == 0 and 'Warning' not in done.stderr, done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_program_that_does_not_fit():
  many = 1 << 16
  flags = f'--config.study.batch={many}', f'--config.study.curriculum.prompts={many}', '--config.mesh.data=1'
  flags += ('--config.study.generator.length=400',)
  done = past(TINY, '--topology=v5e:1x1', '--json', '--programs=update', *flags)
  assert done.stdout, done.stderr
  [update] = json.loads(done.stdout)['programs']
  assert done.returncode == 1 and not update['fits']
  assert update['peak_bytes'] > update['hbm_bytes']
  assert '--config.model.remat=layer' in update['verdict'] and 'more than the 15.75 GiB' in update['verdict']


def lowered(layers, unrolled, pallas, monkeypatch):
  """The gradient of a sum of log-probs on one v5e."""
  import flax.linen as nn

  from past_jax import mesh
  from past_jax.logps import group_logps
  from past_jax.models.config import scratch
  from past_jax.models.transformer import REMAT, transformer
  from past_jax.types import Prompts

  B, P, G, T = 1, 256, 2, 128
  with monkeypatch.context() as patch:
    if unrolled:
      patch.setitem(REMAT, 'layer', functools.partial(REMAT['layer'], prevent_cse=True))
      patch.setattr(nn, 'scan', functools.partial(nn.scan, unroll=layers))
    policy = transformer(scratch(layers, 256), dtype='bfloat16', remat='layer', pallas=pallas)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    one = mesh.make({'data': 1, 'fsdp': 1, 'tensor': 1}, topology('v5e:1x1').devices())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh.replicated(one))
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    args = jax.tree.map(place, (params, Prompts(ints(B, P), ints(B)), ints(B, G, T), ints(B, G)))
    with jax.set_mesh(one):
      return jax.jit(jax.grad(lambda *args: group_logps(policy, *args, chunk=64).sum())).lower(*args)


@pytest.mark.slow
@pytest.mark.parametrize('pallas', [False, True], ids=['einsum', 'splash'])
def test_four_layers_scanned_and_unrolled_for_a_tpu(pallas, monkeypatch):
  count = lambda unrolled: hlo.total(hlo.costs(lowered(4, unrolled, pallas, monkeypatch).compile().as_text())).flops
  assert count(False) == pytest.approx(count(True), rel=0.02)


@pytest.mark.slow
def test_nothing_whole_is_in_an_update_over_fsdp(tmp_path):
  """Neither the embedding nor its gradient, no weights of all layers, logits of a third of the tokens at most.

  Every layer's kernels are gathered twice, forward and backward, for text, groups and replay together, and their
  gradients are added up into their parts. What attention's kernel gives is kept: it runs forward once for each of them.
  """
  model = scratch_directory(tmp_path, layers=3, width=256, vocab=5120)
  flags = f'--config.model.spec={model}', '--config.mesh.fsdp=4', '--config.mesh.data=1', '--config.study.batch=4'
  flags += '--config.study.sample_prompts=4', '--config.study.replay_batch=4', '--config.model.remat=layer'
  flags += '--config.model.dtype=bfloat16', '--config.study.generator.length=1536', '--config.view.prompt_length=128'
  done = past(TINY, '--topology=v5e:2x2', '--programs=update', f'--hlo={tmp_path}', *flags)
  assert done.returncode == 0, done.stderr
  text = (tmp_path / 'update.txt').read_text()
  arrays = {(shape.dims, op.opcode) for op in hlo.Module(text).instructions() for shape in op.shapes}
  V, D, slice_ = 5120, 256, 4 * CHUNK
  assert any(V // 4 in dims for dims, _ in arrays)  # the walk saw the vocabulary at all
  whole = [a for a in arrays if V in a[0] and math.prod(a[0]) > V * D // 4]
  logits = [a for a in arrays if V // 4 in a[0] and math.prod(a[0]) > V // 4 * slice_]
  layers = [a for a in arrays if a[0] in ((3, D, 2 * D), (3, 2 * D, D), (3, D, 16, 16), (3, 16, 16, D))]
  assert not whole and not logits and not layers
  assert sum(' custom-call(' in line and 'splash_mha_fwd' in line for line in text.splitlines()) == 3
  sent = [cost for cost in hlo.costs(text) if '/layers/' in cost.source]
  kernels = 2 * 3 * (D * 16 * (2 * 16 + 2 * 8) + 3 * D * 2 * D)  # bytes in bfloat16
  assert sum(cost.sent for cost in sent) == pytest.approx(3 * kernels * 3 / 4, rel=0.2)


@pytest.mark.slow
def test_no_weights_move_while_tokens_are_decoded(tmp_path):
  """What four devices send for a token are activations: none of 3.5 MB of kernels, at most what counting them says."""
  layers, D, V, n = 3, 256, 5120, 4
  model = scratch_directory(tmp_path, layers=layers, width=D, vocab=V)
  flags = f'--config.model.spec={model}', '--config.mesh.fsdp=4', '--config.mesh.data=1', '--config.study.batch=4'
  flags += '--config.study.sample_prompts=4', '--config.study.replay_batch=4', '--config.model.dtype=bfloat16'
  done = past(TINY, '--topology=v5e:2x2', '--programs=sample', f'--hlo={tmp_path}', *flags)
  assert done.returncode == 0, done.stderr
  token = [cost for cost in hlo.costs((tmp_path / 'sample.txt').read_text()) if cost.loop]
  rows, heads = 4 * 4, 16 * (16 + 8)  # of 4 prompts 4 completions; width of queries and keys
  # Of a row: the input of attention and of the MLP to all devices, their results summed over devices (twice its size,
  # or once if XLA scatters the sums), queries, keys, values and outputs in parts; the token looked up, and the head's.
  activations = 2 * (layers * (6 * D + 2 * heads / n) + 3 * D + D / n)
  logits = 4 * V / n
  sent = hlo.total(token).sent
  assert sent < rows * (activations + logits) * (n - 1) / n + 100  # bytes; ids, and whether all are done
  assert sent > rows * (activations / 2 + logits) * (n - 1) / n  # it counted them
  gathered = [shape.size for cost in token if cost.what == 'all-gather' for shape in cost.shapes]
  assert max(gathered) == rows * D  # the smallest kernel is eight times as large
