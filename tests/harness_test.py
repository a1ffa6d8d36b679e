"""The lm-evaluation-harness asks the model what a loop asks it, and counts what it says."""

import json

import numpy as np
import pytest
import yaml
from table_model import POLICY, TOKENIZER, TABLE_VxV, V, logp

from past_jax.evals import TABLE
from past_jax.evals.setting import Setting
from past_jax.types import UserError

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore'),  # of packages that the harness brings along
]

DOCS = [{'question': f'q{i}?', 'choices': ['yes', 'no', f'w{i}'], 'answer': i % 3, 'said': '7'} for i in range(7)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tasks')
  (path / 'docs.jsonl').write_text('\n'.join(map(json.dumps, DOCS)))
  shared = {
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(path / 'docs.jsonl')}},
    'test_split': 'test',
    'doc_to_text': '{{question}}',
  }
  choose = {'output_type': 'multiple_choice', 'doc_to_choice': '{{choices}}', 'doc_to_target': '{{answer}}'}
  choose |= {'metric_list': [{'metric': 'acc', 'aggregation': 'mean', 'higher_is_better': True}]}
  write = {'output_type': 'generate_until', 'doc_to_target': '{{said}}', 'generation_kwargs': {'until': ['.', 'b']}}
  write |= {'metric_list': [{'metric': 'exact_match', 'aggregation': 'mean', 'higher_is_better': True}]}
  roll = {'output_type': 'loglikelihood_rolling', 'doc_to_text': '', 'doc_to_target': '{{question}} {{choices[0]}}'}
  roll |= {'metric_list': [{'metric': 'byte_perplexity', 'aggregation': 'weighted_perplexity'}]}
  for name, keys in {'own_choose': choose, 'own_write': write, 'own_roll': roll}.items():
    (path / f'{name}.yaml').write_text(yaml.safe_dump(shared | keys | {'task': name}))
  return str(path)


def setting(mesh):
  return Setting(POLICY, TOKENIZER, mesh, (), (), prompt_length=12, answer_length=6, chunk=4)


def test_choices_and_rolling_against_a_loop(mesh, folder):
  metrics, samples = TABLE['lm_eval'](setting(mesh), tasks=('own_choose', 'own_roll'), folder=folder).run(TABLE_VxV)
  scores = [[logp(doc['question'], f' {c}') for c in doc['choices']] for doc in DOCS]
  assert metrics['lm_eval/own_choose/acc'] == np.mean([np.argmax(s) == d['answer'] for s, d in zip(scores, DOCS)])
  assert metrics['lm_eval/own_choose/acc/n'] == 7 and samples == []
  texts = [f'{doc["question"]} yes' for doc in DOCS]
  table = np.asarray(TABLE_VxV, np.float64)
  first = lambda text: table[TOKENIZER.eos_id, ord(text[0])] - np.log(np.exp(table[TOKENIZER.eos_id]).sum())
  total = sum(first(text) + logp(text[0], text[1:]) for text in texts)
  expected = np.exp(-total / sum(len(text.encode()) for text in texts))
  assert metrics['lm_eval/own_roll/byte_perplexity'] == pytest.approx(expected, rel=1e-4)


def test_writing_ends_where_the_task_says(mesh, folder):
  table = np.full((V, V), -60, np.float32)
  for a, b in ('?7', '7.', '.x', 'xx'):
    table[ord(a), ord(b)] = 0
  at, ticks = setting(mesh), []
  run = TABLE['lm_eval'](at, tasks=('own_write',), folder=folder, limit=5).run
  metrics, _ = run(table, lambda x: ticks.append(1) or x)
  assert metrics == {'lm_eval/own_write/exact_match': 1.0, 'lm_eval/own_write/exact_match/n': 5}
  assert len(ticks) == 2


def test_greedy_is_told(mesh):
  from past_jax.evals.harness import _model_class, model_programs

  table = np.zeros((V, V), np.float32)
  table[ord('a'), ord('b')] = 1
  score, _ = model_programs(setting(mesh))
  model = _model_class()(setting(mesh), lambda *args: score(table, *args), None)
  pairs = [(model.context('xa'), TOKENIZER.encode(text)) for text in ('b', 'c')] + [(model.context(''), [98, 99])]
  found = model.scores(pairs)
  assert [greedy for _, greedy in found] == [True, False, True]
  assert found[2][0] == pytest.approx(-2 * np.log(V), rel=1e-5)


def test_what_is_missing_is_named(mesh):
  with pytest.raises(UserError, match="no task 'arc_eas'"):
    TABLE['lm_eval'](setting(mesh), tasks=('arc_eas',))
  with pytest.raises(UserError, match='name at least one task'):
    TABLE['lm_eval'](setting(mesh))
