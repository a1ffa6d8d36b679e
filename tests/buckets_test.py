"""Lengths in buckets: the same numbers from shorter programs, all of which are compiled before the first is used."""

import json

import jax
import numpy as np

from past_jax.buckets import Bucketed, cut, cut_batch, cut_prompts, lengths, size
from past_jax.collect import collector
from past_jax.generators import sampler
from past_jax.logps import group_logps
from past_jax.main import main
from past_jax.metrics import CompileCounter, rows
from past_jax.types import Batch, Prompts

SHARES = (0.25, 0.5, 1.0)


def test_sizes_are_multiples_of_eight_and_no_more_than_the_whole():
  assert [size(96, share) for share in SHARES] == [24, 48, 96]
  assert [size(20, share) for share in SHARES] == [8, 16, 20]
  assert [size(1, share) for share in SHARES] == [1, 1, 1]


def test_prompts_are_cut_on_the_left_and_completions_on_the_right():
  prompts = Prompts(np.arange(20)[None], np.array([5]))
  ids = np.arange(36)[None, None]
  assert list(cut_prompts(prompts, 0.25).ids_BxP[0]) == list(range(12, 20))
  assert list(cut(ids, 0.5)[0, 0]) == list(range(24))
  batch = Batch(prompts, ids, np.array([[7]]), ids * 1.0, None, None, None)
  short = cut_batch(batch, 0.25)
  assert (short.prompts.ids_BxP.shape, short.ids_BxGxT.shape, short.ref_logps_BxGxT.shape) == (
    (1, 8),
    (1, 1, 16),
    (1, 1, 16),
  )
  assert short.old_logps_BxGxT is None
  assert lengths(prompts, ids, np.array([[7]])) == [(5, 20), (7, 36)]


def test_the_smallest_share_that_fits_all_is_taken_and_nothing_is_compiled_later():
  program = Bucketed(lambda share, x: x * share, SHARES)
  counter, seen = CompileCounter(), []
  program.prepare(1.0, phase=seen.append, tick=seen.append)
  assert counter.count == 3 and seen == ['compile', (), (), ()]
  taken = lambda *needed: float(program(needed, 1.0))
  assert [taken((longest, 96)) for longest in (0, 24, 25, 48, 49, 96)] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
  assert taken((1, 96), (40, 64)) == 1.0 and taken((1, 1), (30, 64)) == 0.5
  program.prepare(1.0, phase=seen.append, tick=seen.append)
  assert counter.count == 3 and len(seen) == 4


def test_log_probs_are_the_same_in_every_bucket(policy, params, mesh):
  rng = np.random.default_rng(0)
  prompts = Prompts(rng.integers(1, 256, (2, 24)).astype(np.int32), np.array([3, 6], np.int32))
  ids, length = rng.integers(1, 256, (2, 2, 32)).astype(np.int32), np.array([[8, 2], [5, 0]], np.int32)
  parts = dict(generate=lambda *_: None, judge=None, select=lambda *_: None, mesh=mesh, prompts_per_call=1)
  score = collector(policy=policy, shares=SHARES, **parts).score
  score.prepare(params, prompts, ids, length, phase=lambda name: None, tick=lambda x: x)
  whole = jax.jit(lambda *args: group_logps(policy, *args))(params, prompts, ids, length)
  for longest in (8, 9, 17):  # of completions: the first, second and third bucket
    found = score([(6, 24), (longest, 32)], params, prompts, ids, length)
    assert found.shape == whole.shape
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_tokens_are_the_same_in_every_bucket(policy, params, tokenizer, mesh):
  rng = np.random.default_rng(1)
  prompts = Prompts(rng.integers(1, 256, (2, 24)).astype(np.int32), np.array([3, 6], np.int32))
  generate = sampler(policy=policy, tokenizer=tokenizer, group=2, length=8)
  parts = dict(judge=None, select=lambda *_: None, mesh=mesh, prompts_per_call=2)
  program = collector(policy=policy, generate=generate, shares=(0.5, 1.0), **parts).generate
  args = {'policy': params}, jax.random.split(jax.random.key(0), 2), prompts, np.float32(0.8)
  program.prepare(*args, phase=lambda name: None, tick=lambda x: x)
  short, whole = (program([(longest, 24)], *args) for longest in (6, 13))
  assert short.prompts.ids_BxP.shape == whole.prompts.ids_BxP.shape
  np.testing.assert_array_equal(short.ids_BxGxT, whole.ids_BxGxT)
  np.testing.assert_allclose(short.logps_BxGxT, whole.logps_BxGxT, atol=1e-5)


FLAGS = {
  'view.prompt_length': 112,
  'view.text_length': 96,
  'view.train_view': 'instruction',
  'view.train_instruction': '{prompt}',
  'data.prompt': 'ask',
  'study.rounds': 2,
  'study.batch': 1,
  'study.sample_prompts': 2,
  'study.curriculum.epochs': 2,
  'study.curriculum.prompts': 4,
  'study.generator.length': 8,
  'study.generator.group': 2,
  'study.generator.stop': '()',
  'study.losses': "{'text': {'nll': {'weight': 1.0}}, 'group': {'dpo': {'weight': 1.0, 'beta': 0.1}}}",
  'eval.questions': 1,
  'mesh.data': 1,
  'eval.heldout': '',
}


def test_texts_of_very_different_lengths_compile_nothing_more(tmp_path, monkeypatch):
  texts = [{'text': 'The lamp is green. ' * n, 'ask': 'Which lamp? ' * n} for n in (1, 1, 2, 4)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(json.dumps(row) for row in texts))
  real, used = Bucketed.__call__, set()

  def spy(program, needed, *args):
    used.add(next(share for share in program.shares if all(n <= size(full, share) for n, full in needed)))
    return real(program, needed, *args)

  monkeypatch.setattr(Bucketed, '__call__', spy)
  flags = FLAGS | {'data.source': tmp_path / 'rows.jsonl', 'study.buckets': (0.5, 1.0)}
  argv = ['--config=configs/past.py:size=tiny,judge=random', f'--workdir={tmp_path}/run']
  assert main(['study', *argv, *(f'--config.{key}={value}' for key, value in flags.items())]) == 0
  assert used == {0.5, 1.0}
  timing = json.loads((tmp_path / 'run' / 'timing.json').read_text())
  assert timing['compile_count_after_first_round'] == 0 and timing['compile'] > 0
  steps = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert len(steps) == 16 and len({row['perf/compile_count'] for row in steps}) == 1
