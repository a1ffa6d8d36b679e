"""The arithmetic of scripts/bench.py against hand counts; its workers, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import jax
import numpy as np
import pytest
from bench_workers.profile import Op, operations, table
from bench_workers.work import Work, cost, flops
from small import shapes

from past_jax.mesh import path_string
from past_jax.models.config import TINY

SCRIPT = Path(__file__).parent.parent / 'scripts' / 'bench.py'
SHAPE = ('width', 'heads', 'kv_heads', 'head_dim', 'ffn', 'gated', 'layers', 'vocab')
TINY_COST = cost(**{name: getattr(TINY, name) for name in SHAPE})


def work(**changes) -> Work:
  return Work(**dict(prompts=2, prompt=3, group=2, completion=4, model='', weights='') | changes)


def test_flops_are_two_per_weight_and_token():
  leaves = jax.tree_util.tree_leaves_with_path(shapes(TINY))
  weights = sum(leaf.size for path, leaf in leaves if path_string(path).endswith('kernel'))
  assert TINY_COST.token == 2 * weights
  assert TINY_COST.head == 2 * TINY.width * TINY.vocab


def test_flops_of_attention_are_the_area_of_the_mask():
  areas = 0
  for _ in range(2):  # prompts
    areas += sum(1 for query in range(3) for key in range(3) if key <= query)
    areas += sum(3 + sum(1 for key in range(4) if key <= query) for _ in range(2) for query in range(4))
  # of a query and a key: 2 products of 64 numbers for 4 x 16 wide heads, in both of the layers
  by_hand = 2 * 36_864 * 2 * (2 * 3 + 16) + 2 * (2 * 2 * 64) * areas + 2 * 64 * 264 * 16
  assert flops('update', TINY_COST, work()) == 3 * by_hand
  unread = 2 * 2  # the last token of every completion; it sees 7
  read = 2 * 36_864 * 2 * (22 - unread) + 512 * (areas - 7 * unread) + 2 * 64 * 264 * (16 - unread + 2)
  assert flops('sample', TINY_COST, work()) == read
  assert flops('prefill', TINY_COST, work()) == 2 * 36_864 * 2 * 6 + 512 * 2 * 6


def test_skewed_lengths_are_an_eighth_long_and_cost_what_is_written():
  skewed = work(prompts=16, group=16, completion=256, skew=True)
  values, counts = np.unique(skewed.limits(), return_counts=True)
  assert values.tolist() == [16, 256] and counts.tolist() == [224, 32]
  assert not np.array_equal(skewed.limits(), work(prompts=16, group=16, completion=256, skew=True, seed=1).limits())
  head = flops('sample', cost(**dict.fromkeys(SHAPE, 0) | {'width': 1, 'vocab': 1}), skewed)
  assert head == 2 * (224 * 15 + 32 * 255 + 16)


def test_peers_see_the_members_of_groups_as_pairs():
  w = work(group=4)
  prompt_BxP, ids_BxGxT = w.ids(1000)
  prompt_NxP, chosen_NxT, rejected_NxT = w.pairs(1000)
  for n, (b, j) in enumerate((b, j) for b in range(2) for j in range(2)):
    np.testing.assert_array_equal(prompt_NxP[n], prompt_BxP[b])
    np.testing.assert_array_equal(chosen_NxT[n], ids_BxGxT[b, 2 * j])
    np.testing.assert_array_equal(rejected_NxT[n], ids_BxGxT[b, 2 * j + 1])
  assert ids_BxGxT.min() >= 32 and ids_BxGxT.max() < 1000


def test_a_ratio_is_the_median_of_the_pairs_and_not_of_the_sides():
  peer, ours = [10.0, 40.0, 12.0], [5.0, 10.0, 2.0]  # the machine was slower for the second pair
  assert bench.ratios(peer, ours) == (4.0, [2.0, 6.0])


def test_agreement_is_the_largest_difference():
  ours = {'logps': [-3.0, -2.0], 'grad_norm': 2.0, 'greedy': [[1, 2], [3, 4]]}
  peer = {'logps': [-3.5, -2.25], 'grad_norm': 2.5, 'greedy': [[1, 2], [3, 5]]}
  assert bench.agreement(ours, peer) == {
    'logps_nats': 0.5,
    'grad_norm_relative': 0.25,
    'greedy_tokens_equal': 0.75,
  }


PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: f32[2,8], param_1: f32[8,5]) -> f32[2,5] {
  %param_0 = f32[2,8]{1,0} parameter(0)
  %param_1 = f32[8,5]{1,0} parameter(1)
  ROOT %dot.3 = f32[2,5]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%moved (param_0.1: f32[2,8]) -> f32[8,2] {
  %param_0.1 = f32[2,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,2]{1,0} transpose(%param_0.1), dimensions={1,0}
}

ENTRY %main (a: f32[2,8], b: f32[8,5]) -> (f32[2,5], f32[3,4,4]) {
  %a = f32[2,8]{1,0} parameter(0)
  %b = f32[8,5]{1,0} parameter(1)
  %ynn_fusion = f32[2,5]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_computation.1, metadata={op_name="jit/up"}
  %move_fusion = f32[8,2]{1,0} fusion(%a), kind=kLoop, calls=%moved
  %q = f32[3,4,6]{2,1,0} constant({...})
  %dot.9 = f32[3,4,4]{2,1,0} dot(%q, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
  %exp = f32[3,4,4]{2,1,0} exponential(%dot.9)
  ROOT %tuple = (f32[2,5]{1,0}, f32[3,4,4]{2,1,0}) tuple(%ynn_fusion, %exp)
}
"""


def test_the_profile_knows_what_instructions_compute():
  ops = operations(PROGRAM)
  assert ops['ynn_fusion'] == Op('dot', 2 * 2 * 5 * 8, 'jit/up')
  assert ops['dot.9'] == Op('dot, batched (attention)', 2 * 3 * 4 * 4 * 6, '')
  assert ops['move_fusion'].kind == 'copy, slice, fill'
  assert ops['exp'].kind == 'elementwise'
  kinds, instructions = table({'ynn_fusion': (2, 1e-6), 'exp': (1, 3e-6)}, ops, most=1)
  assert [row.name for row in kinds] == ['elementwise', 'dot']
  assert kinds[1].share == 0.25 and kinds[1].rate == pytest.approx(2 * 160 / 1e-6 / 1e9)
  assert [row.name for row in instructions] == ['exp']


@pytest.mark.parametrize(
  'argv, complaint',
  [
    (['update', '--group', '3'], 'even'),
    (['sample', '--skew', '--against', 'hf'], '--against self'),
    (['sample', '--skew', '--against', 'self', '--slots', '3'], 'multiple of --group 2'),
    (['update', '--against', 'self', '--checkout', 'nowhere'], 'past_jax'),
    (['update', '--against', 'trl', '--checkout', '.'], '--against self'),
    (['update', '--pairs', '0'], 'at least 1'),
    (['update', '--completion', '0'], 'at least 1'),
    (['update', '--remat', 'dot'], 'invalid choice'),
    (['update', '--prompts', '4', '--micro', '3'], '--micro 3'),
    (['sample', '--slots', '2', '--against', 'hf'], '--skew'),
  ],
)
def test_work_that_cannot_be_compared_is_refused(argv, complaint, capsys):
  with pytest.raises(SystemExit):
    bench.parse(argv)
  assert complaint in capsys.readouterr().err


def run(*argv):
  size = ['--size', 'tiny', '--prompts', '2', '--prompt', '16', '--completion', '8']
  return subprocess.run([sys.executable, str(SCRIPT), *argv, *size], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize('command', ['update', 'sample', 'memory'])
def test_workers_measure_the_same_work_on_both_sides(command, tmp_path, monkeypatch):
  monkeypatch.setenv('PAST_JAX_CACHE', str(tmp_path))
  done = run(command, '--against', 'self', '--pairs', '1' if command == 'memory' else '2')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  low, high = found['ratio_range']
  assert 0 < low <= found['ratio'] <= high
  assert found['peak_mib']['ours'] > 0
  if command == 'memory':
    assert 0.5 < found['ratio'] < 2
  else:
    assert 0 < found['matmul_fraction'] < 1 and 0 < found['prefill']['matmul_fraction'] < 1
    assert found['flops'] == flops(command, TINY_COST, work(prompt=16, completion=8))
    equal = {'greedy_tokens_equal': 1, 'sampled_tokens_equal': 1}
    same = {'logps_nats': 0, 'grad_norm_relative': 0} if command == 'update' else equal
    assert found['agreement'] == same


@pytest.mark.slow
@pytest.mark.parametrize('command, peer', [('update', 'trl'), ('sample', 'hf')])
def test_peers_compute_the_same(command, peer, tmp_path, monkeypatch, capsys):
  """The workers on PyTorch, here in the environment of the tests."""
  monkeypatch.setenv('PAST_JAX_CACHE', str(tmp_path))
  monkeypatch.setitem(bench.PEERS, peer, bench.Peer(peer))
  shape = ['--prompts', '2', '--prompt', '16', '--completion', '8', '--group', '4', '--size', 'tiny']
  bench.main([command, '--against', peer, '--pairs', '1', *shape])
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  if command == 'update':
    assert found['agreement']['logps_nats'] < 1e-3 and found['agreement']['grad_norm_relative'] < 1e-4
  else:
    assert found['agreement']['greedy_tokens_equal'] == 1


def test_sides_that_do_not_agree_have_no_ratio():
  bench.must_agree({'logps_nats': 0.01, 'grad_norm_relative': 1e-3, 'greedy_tokens_equal': 0.95})
  for wrong in ({'logps_nats': 0.2}, {'grad_norm_relative': 0.05}, {'greedy_tokens_equal': 0.5}):
    with pytest.raises(bench.WorkerError, match='do not compute the same'):
      bench.must_agree(wrong)


@pytest.mark.slow
@pytest.mark.parametrize('what', ['update', 'prefill', 'decode'])
def test_a_profile_finds_the_products(what):
  done = run('profile', what)
  assert done.returncode == 0, done.stderr
  assert 'dot, batched (attention)' in done.stderr and 'ot_general' in done.stderr


@pytest.mark.slow
def test_what_a_worker_says_when_it_fails_is_shown(tmp_path, monkeypatch):
  monkeypatch.setenv('PAST_JAX_CACHE', str(tmp_path))
  (tmp_path / 'bench').mkdir()
  (tmp_path / 'bench' / 'tiny-weights').write_text('in the way')
  done = run('update', '--against', 'self')
  assert done.returncode == 1
  assert done.stderr.startswith('ours, build: ') and 'tiny-weights' in done.stderr
