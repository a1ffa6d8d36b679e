"""A choice of how to train: what is one, what is none, and what it makes of a task."""

import json
import math

import pytest

from past_jax.data.grids import example_task, grid_text
from past_jax.data.worlds.puzzles import puzzles
from past_jax.test_time_training import rows
from past_jax.training_choice import FLAGS, Choice, choice_json, choice_line, read_choice

CHOICE = Choice(True, False, False, True, 'outputs', 0.001, 4)
JSON = '{"basic": true, "size": false, "chain": false, "repeat": true, "loss": "outputs", "lr": 0.001, "epochs": 4}'
LINE = 'basic=1 size=0 chain=0 repeat=1 loss=outputs lr=0.001 epochs=4'


def test_both_spellings_say_the_same():
  assert choice_json(CHOICE) == JSON and choice_line(CHOICE) == LINE
  assert read_choice(JSON) == read_choice(LINE) == CHOICE
  other = Choice(False, True, True, False, 'all', 1e-05, 16)
  assert read_choice(choice_json(other)) == read_choice(choice_line(other)) == other


@pytest.mark.parametrize(
  'text',
  [
    f'```json\n{JSON}\n```',
    f'I would train so: {JSON}. That should do.',
    f'Not {{"basic": true}} but {JSON}',
    f'{{a set}} {{"training": {JSON}}}',
    JSON.replace(', ', ',\n  '),
    JSON.replace('0.001', '1e-3').replace('}', ', "why": "few pairs"}'),
    f' {LINE}\n',
    'I choose epochs=4 lr=1e-3 basic=1 repeat=1 loss=outputs chain=0 size=0 today',
  ],
)
def test_what_stands_around_a_choice_does_not_count(text):
  assert read_choice(text) == CHOICE


@pytest.mark.parametrize('key', Choice._fields)
def test_every_key_must_be_there(key):
  without = json.loads(JSON)
  del without[key]
  assert read_choice(json.dumps(without)) is None
  assert read_choice(' '.join(word for word in LINE.split() if not word.startswith(f'{key}='))) is None


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    *((flag, value) for flag in FLAGS for value in (1, 'true', None, [])),
    *(('loss', value) for value in ('inputs', '', True, 0, ['all'])),
    *(('lr', value) for value in ('0.001', True, 0, -0.001, 1.5, 1e-9, math.nan, math.inf, None)),
    *(('epochs', value) for value in (0, -1, 101, 4.0, '4', True, None)),
  ],
)
def test_wrong_values_are_no_choice(key, value):
  assert read_choice(json.dumps(json.loads(JSON) | {key: value})) is None


@pytest.mark.parametrize(
  'change',
  [
    ('basic=1', 'basic=2'), ('basic=1', 'basic=true'), ('basic=1', 'basic='), ('basic=1', 'basic=1 basic=0'),
    ('loss=outputs', 'loss=output'), ('lr=0.001', 'lr=2.0'), ('lr=0.001', 'lr=1e999'), ('lr=0.001', 'lr=nan'),
    ('lr=0.001', 'lr=-1e-3'), ('lr=0.001', 'lr=0.001.'), ('epochs=4', 'epochs=4.0'), ('epochs=4', 'epochs=٤'),
    ('epochs=4', f'epochs={"9" * 5000}'), ('epochs=4', 'epochs=0'), ('epochs=4', 'EPOCHS=4'),
  ],
)  # fmt: skip
def test_wrong_words_are_no_choice(change):
  assert change[0] in LINE and read_choice(LINE.replace(*change)) is None


@pytest.mark.parametrize(
  'text', ['', 'train', '{', '{' * 9999, '[' * 9999, '{"a":' * 9999, 'null', f'[{LINE[:9]}]', JSON[:-1], JSON[1:],
           JSON.replace('"size"', '"basic"'), JSON.replace('}', ', "lr": 0.01}'), '{"lr": ' + '9' * 9999 + '}'],
)  # fmt: skip
def test_what_is_no_choice_at_all(text):
  assert read_choice(text) is None


def test_whole_numbers_are_learning_rates_too():
  assert read_choice(JSON.replace('0.001', '1')).lr == 1.0 == read_choice(LINE.replace('0.001', '1')).lr


# --- what it makes of a task --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def task():
  return example_task(puzzles(1, 3).examples[0])


def test_rows_are_what_will_be_asked(task):
  plain = CHOICE._replace(basic=False, repeat=False)
  texts = [(f'{grid_text(a)}>', f' {grid_text(b)}') for a, b in task.train]
  assert rows(task, plain, 0, shown=False) == texts
  assert rows(task, plain._replace(loss='all'), 0, shown=False) == [('', q + a) for q, a in texts]
  for i, (prompt, completion) in enumerate(rows(task, plain, 0, shown=True)):
    *others, question = prompt.split('\n')
    assert (question, completion) == texts[i]
    assert sorted(others) == sorted(q + a for j, (q, a) in enumerate(texts) if j != i)


def test_flags_add_rows_and_the_loss_none(task):
  few, many = (rows(task, CHOICE._replace(basic=basic), 5, shown=False) for basic in (False, True))
  assert len(few) == 3 * 4 and len(many) == 3 * 11 and set(few) < set(many)
  assert many == rows(task, CHOICE, 5, shown=False)
  everything = rows(task, CHOICE._replace(loss='all'), 5, shown=False)
  assert [completion for _, completion in everything] == [''.join(row) for row in many]
  assert {prompt for prompt, _ in everything} == {''}


def test_no_answer_of_the_test_is_learned(task):
  every = Choice(True, True, False, True, 'all', 0.1, 1)
  asked = {f'{grid_text(pair.input)}> {grid_text(pair.output)}' for pair in task.test}
  assert not asked & {completion for _, completion in rows(task, every, 0, shown=False)}
