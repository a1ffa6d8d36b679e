"""Rows of public tasks, as their files have them, through the mapping of columns; and where questions come from."""

import json
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from past_jax import build
from past_jax.answers import extract
from past_jax.data import sources
from past_jax.types import Question, UserError

DATA = os.environ.get('PAST_JAX_DATA')
needs_data = pytest.mark.skipif(
  not DATA, reason='set PAST_JAX_DATA to a folder with squad/, gsm8k/, reversal/, game24/'
)


def write(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def load(source, **columns):
  return sources.load(source, columns=columns).examples


def test_templates_put_columns_together(tmp_path):
  rows = [{'prompt': 'Ann is', 'completion': ' the cook.', 'numbers': [1, 1, 4, 6], 'none': None, 'a{b}': 'x'}]
  source = write(tmp_path / 'rows.jsonl', rows)
  (example,) = load(source, text='{prompt}{completion}', prompt='Use {numbers}{none}:', target='a{b}')
  assert (example.text, example.prompt, example.target) == ('Ann is the cook.', 'Use 1 1 4 6:', 'x')
  with pytest.raises(UserError, match=r"rows.jsonl:1: no column 'promt'.*prompt, completion"):
    load(source, text='{promt}{completion}')


def test_csv(tmp_path):
  path = tmp_path / '24.csv'
  path.write_text('\ufeffRank,Puzzles,Note\n1,1 1 4 6,"easy, they\nsay"\n2,2 3,\n', encoding='utf-8')
  first, second = load(str(path), prompt='Puzzles', target='Note')
  assert (first.prompt, first.target, second.prompt) == ('1 1 4 6', 'easy, they\nsay', '2 3')
  assert first.where == f'{path}:3' and second.where == f'{path}:4'
  path.write_text('a,b\n1\n')
  with pytest.raises(UserError, match='24.csv:2: the line has another number of values'):
    load(str(path), prompt='a')
  path.write_bytes(b'a,b\n\xff,2\n')
  with pytest.raises(UserError, match='24.csv is not a CSV file in UTF-8'):
    load(str(path), prompt='a')


@pytest.mark.parametrize('answer', [1, 'B', 'blue'])
def test_choices(tmp_path, answer):
  source = write(tmp_path / 'mmlu.jsonl', [{'question': 'Sky?', 'choices': ['red', 'blue', 'green'], 'answer': answer}])
  (example,) = load(source, prompt='question', choices='choices', target='answer')
  assert example.questions == (Question('Sky?', 'blue', 'forward', ('red', 'blue', 'green')),)
  assert example.target == 'blue'


@pytest.mark.parametrize('answer', [3, 'D', 'yellow', None, True, -1])
def test_an_answer_that_is_no_choice(tmp_path, answer):
  source = write(tmp_path / 'mmlu.jsonl', [{'question': 'Sky?', 'choices': ['red', 'blue', 'green'], 'answer': answer}])
  with pytest.raises(UserError, match='mmlu.jsonl:1: target .*must be one of the choices'):
    load(source, prompt='question', choices='choices', target='answer')


def test_questions_may_have_choices(tmp_path):
  rows = [
    {'text': 't', 'qa': [{'question': 'q', 'answer': 0, 'choices': ['a', 'b']}, {'question': 'r', 'answer': 'c'}]}
  ]
  (example,) = load(write(tmp_path / 'rows.jsonl', rows), text='text', questions='qa')
  assert example.questions == (Question('q', 'a', 'forward', ('a', 'b')), Question('r', 'c'))
  same = write(tmp_path / 'same.jsonl', [{'text': 't', 'qa': [{'question': 'q', 'answer': 0, 'choices': ['a', 'a']}]}])
  with pytest.raises(UserError, match='two or more different strings'):
    load(same, text='text', questions='qa')


# --- questions of their own sources -------------------------------------------------------------------------------


def config(data, **evaluation):
  columns = dict.fromkeys(sources.FIELDS, '') | {'on_error': 'stop', 'world': dict(count=4, seed=0)}
  return ConfigDict(dict(data=columns | data, eval=dict(sources={}, split='test', skip=0, limit=0) | evaluation))


def test_studied_rows_are_asked_their_questions_or_their_prompt(tmp_path):
  rows = [{'p': 'one', 't': ' 1', 'qa': [{'question': 'q', 'answer': 'a'}]}, {'p': 'two', 't': ' 2', 'qa': None}]
  source = write(tmp_path / 'rows.jsonl', rows)
  c = config(dict(source=source, prompt='p', target='t', questions='qa'))
  examples = load(source, prompt='p', target='t', questions='qa')
  found, questions = build.load_questions(c, examples)
  assert found == list(examples)
  assert questions == [(0, Question('q', 'a')), (1, Question('two', '2'))]


def test_kinds_are_named_by_source(tmp_path):
  there, back = (
    write(tmp_path / f'{name}.jsonl', [{'prompt': f'{name} {i}', 'completion': f' c{i}'} for i in range(3)])
    for name in ('there', 'back')
  )
  sources_ = dict(forward=there, reversed=back)
  c = config(dict(prompt='prompt', target='completion'), sources=sources_, skip=1)
  rows, questions = build.load_questions(c, ())
  assert [r.prompt for r in rows] == ['there 1', 'there 2', 'back 1', 'back 2']
  assert questions[2] == (2, Question('back 1', 'c1', 'reversed'))
  world = config(dict(prompt='prompt'), sources=dict(w='world:people'), skip=3)
  rows, questions = build.load_questions(world, ())
  assert len(rows) == 1 and {q.kind for _, q in questions} == {'w/forward', 'w/reversed'}
  limited = config(dict(prompt='prompt'), sources=dict(w='world:people'), skip=1, limit=2)
  assert [r.where for r in build.load_questions(limited, ())[0]] == [f'world:people person {i}' for i in (1, 2)]
  with pytest.raises(UserError, match='eval.skip=9 leaves no row of config.eval.sources.w'):
    build.load_questions(config(dict(prompt='prompt'), sources=dict(w='world:people'), skip=9), ())


# --- the public files ---------------------------------------------------------------------------------------------


@needs_data
def test_public_files_are_read_by_columns_alone():
  folder = Path(DATA)
  squad = load(str(folder / 'squad/validation.jsonl'), text='context', questions='questions')
  assert len(squad) == 200 and sum(len(e.questions) for e in squad) == 974
  gsm8k = load(str(folder / 'gsm8k/test.jsonl'), prompt='question', target='answer')
  assert len(gsm8k) == 300 and extract(gsm8k[0].target, 'last_number') == '18'
  assert all(extract(e.target, 'last_number') == e.target.split('####')[1].strip().replace(',', '') for e in gsm8k)
  game = load(str(folder / 'game24/24.csv'), prompt='Puzzles')
  assert len(game) == 1362 and game[0].prompt == '1 1 4 6'
  both = load(str(folder / 'reversal/d2p_prompts_train.jsonl'), text='{prompt}{completion}')
  assert len(both) == 900 and 'Uriah Hawthorne' in both[0].text
