"""The default config on the real model, shortened: one round, one update, a few questions. Needs a package index."""

import json

import pytest

from past_jax.main import main
from past_jax.metrics import rows

pytestmark = pytest.mark.slow


def test_a_round_of_the_default_run(tmp_path):
  flags = [
    '--config.mesh.data=1',
    '--config.study.rounds=1',
    '--config.study.curriculum.prompts=6',
    '--config.study.curriculum.epochs=1',
    '--config.eval.questions=8',
    '--config.eval.chunk=8',
    '--config.eval.heldout_texts=8',
  ]
  assert main(['study', '--config=configs/past.py', f'--workdir={tmp_path / "run"}', *flags]) == 0
  (row,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert row['check/dpo_at_reference'] == pytest.approx(0, abs=1e-6)  # one update: the reference is the step itself
  assert row['rewards/margins'] == 0
  assert row['check/sampler_gap'] < 1e-2
  before, after = rows(tmp_path / 'run' / 'evaluations.jsonl')
  assert 20 < before['metrics']['perplexity/heldout'] < 100  # English, read by a model that knows English
  assert after['metrics']['closed_book/forward/logp'] > before['metrics']['closed_book/forward/logp']
  groups = rows(tmp_path / 'run' / 'groups.jsonl')
  assert len(groups) == 6 and all(len({c['text'] for c in g['completions']}) > 1 for g in groups)
  assert json.loads((tmp_path / 'run' / 'timing.json').read_text())['compile_count_after_first_round'] == 0
