"""Augmentations: each is undone by its inverse, and which of them keep a puzzle's rule."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from past_jax import augmentations as aug
from past_jax.data.grids import SIDE, Pair, Task, example_task, grid_text, read_grid
from past_jax.data.worlds.puzzles import every_rule, puzzles
from past_jax.training_choice import FLAGS

GRIDS = arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9))
EVERY = [
  *aug.augmentations(FLAGS, 5),
  aug.recoloured([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]),
  aug.enlarged(3, 2),
  aug.framed(7),
  aug.tiled(3, 2),
  aug.chained(aug.framed(2), aug.MOVES[0], aug.enlarged(1, 3), aug.tiled(2, 1)),
  aug.chained(),
]


def grid(text):
  return read_grid(text.replace(' ', '/'))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(GRIDS)
def test_each_is_undone_by_its_inverse(before):
  for augmentation in EVERY:
    kept = before.copy()
    after = augmentation.forward(before)
    np.testing.assert_array_equal(augmentation.inverse(after), before, err_msg=augmentation.name)
    np.testing.assert_array_equal(before, kept)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(GRIDS)
def test_an_inverse_gives_nothing_or_what_becomes_the_grid(after):
  """What a model answers to an augmented question need not be augmented at all."""
  for augmentation in EVERY:
    before = augmentation.inverse(after)
    assert before is None or np.array_equal(augmentation.forward(before), after), augmentation.name


@pytest.mark.parametrize(
  ('name', 'after'),
  [
    ('rotated_90', '36 25 14'),
    ('rotated_180', '654 321'),
    ('rotated_270', '41 52 63'),
    ('flipped_up_down', '456 123'),
    ('flipped_left_right', '321 654'),
    ('transposed', '14 25 36'),
    ('antitransposed', '63 52 41'),
    ('enlarged_2x2', '112233 112233 445566 445566'),
    ('enlarged_2x1', '123 123 456 456'),
    ('enlarged_1x2', '112233 445566'),
    ('framed_0', '00000 01230 04560 00000'),
    ('tiled_1x2', '123123 456456'),
    ('tiled_2x1', '123 456 123 456'),
    ('tiled_2x2', '123123 456456 123123 456456'),
  ],
)
def test_what_becomes_of_a_grid(name, after):
  (augmentation,) = (a for a in EVERY if a.name == name)
  assert grid_text(augmentation.forward(grid('123 456'))) == after.replace(' ', '/')


def test_no_inverse_of_what_is_no_image():
  assert aug.enlarged(2, 2).inverse(grid('11 12')) is None and aug.enlarged(2, 2).inverse(grid('111 111')) is None
  assert aug.framed(0).inverse(grid('000 010 001')) is None and aug.framed(0).inverse(grid('00 00')) is None
  assert aug.tiled(1, 2).inverse(grid('121')) is None and aug.tiled(2, 1).inverse(grid('12')) is None
  assert aug.chained(aug.MOVES[0], aug.framed(0)).inverse(grid('111')) is None


def test_moves_are_the_symmetries_of_a_square():
  """With SAME they are a group: eight different ones, and of any two the composition is one of them."""
  square = np.arange(9).reshape(3, 3)
  eight = (aug.SAME, *aug.MOVES)
  images = {grid_text(a.forward(square)) for a in eight}
  assert len(images) == 8 == len({grid_text(a.forward(b.forward(square))) for a in eight for b in eight} | images)


# --- tasks --------------------------------------------------------------------------------------------------------


def task(pairs=3, side=2):
  cells = np.random.RandomState(0).randint(0, 10, (2 * pairs + 2, side, side))
  made = [Pair(a, b) for a, b in zip(cells[::2], cells[1::2])]
  return Task(tuple(made[:-1]), (made[-1],), 'made')


def texts(pairs):
  return [(grid_text(a), grid_text(b)) for a, b in pairs]


def test_a_pair_is_left_out_and_the_others_demonstrate():
  whole = task()
  parts = aug.augmented(whole, (), 0)
  assert [texts(part.test) for part in parts] == [[pair] for pair in texts(whole.train)]
  for part, (left_out,) in zip(parts, ([pair] for pair in texts(whole.train))):
    assert sorted([*texts(part.train), left_out]) == sorted(texts(whole.train))
  assert not {texts(whole.test)[0]} & {pair for part in parts for pair in texts(part.test)}
  orders = {tuple(texts(part.train)) for seed in range(6) for part in aug.augmented(whole, (), seed)[:1]}
  assert len(orders) == 2


@pytest.mark.parametrize(
  ('flags', 'count'), [((), 1), (('basic',), 8), (('size',), 5), (('chain',), 8), (('repeat',), 4), (FLAGS, 22)]
)
def test_every_flag_adds_its_own(flags, count):
  tasks = aug.augmented(task(), flags, 3)
  assert len(tasks) == 3 * count == len({tuple(texts(part.test)) for part in tasks})
  assert [t.name for t in tasks] == [t.name for t in aug.augmented(task(), flags, 3)]


def test_all_grids_of_a_task_are_augmented_alike():
  whole = task()
  every = aug.augmentations(FLAGS, 3, sorted({c for pair in whole.train for g in pair for c in g.flat}))
  tasks = aug.augmented(whole, FLAGS, 3)
  for i, augmentation in enumerate(every):
    for part in tasks[3 * i : 3 * i + 3]:
      undone = texts((augmentation.inverse(a), augmentation.inverse(b)) for a, b in (*part.train, *part.test))
      assert sorted(undone) == sorted(texts(whole.train)), augmentation.name


def test_colours_are_permuted_as_the_seed_says():
  names = lambda seed: [a.name for a in aug.augmentations(('chain',), seed)]
  assert names(1) == names(1) != names(2) and len({name.split('+')[-1] for name in names(1)[1:]}) == 7
  for augmentation in aug.augmentations(('chain',), 1, (2, 3, 8))[1:]:
    assert set(augmentation.forward(grid('238')).flat) == {2, 3, 8}
    assert grid_text(np.sort(augmentation.forward(grid('0145679')), axis=None)[None]) == '0145679'


def test_no_task_becomes_larger_than_a_grid_may_be():
  tasks = aug.augmented(task(pairs=2, side=16), FLAGS, 0)
  assert len(tasks) == 2 * (1 + 7 + 1 + 7)  # of the sizes only the frame, and no tiles
  assert max(n for t in tasks for pair in (*t.train, *t.test) for g in pair for n in g.shape) <= SIDE


# --- puzzles ------------------------------------------------------------------------------------------------------


def keeps(rule, augmentation, grids):
  """Whether the pairs of a rule are, augmented, pairs of the same rule."""
  rule = np.array(rule)
  return all(np.array_equal(rule[augmentation.forward(g)], augmentation.forward(rule[g])) for g in grids)


@pytest.mark.parametrize(('flag', 'kept'), [('basic', 7), ('repeat', 3), ('size', 3), ('chain', 0)])
def test_which_flags_keep_the_rule_of_a_puzzle(flag, kept):
  """Every rule is kept by basic, by repeat and by all of size but the frame; by permuted colours as chance has it."""
  grids = np.random.RandomState(1).randint(0, 4, (5, 3, 3))
  every = aug.augmentations((flag,), 2, range(4))[1:]
  counts = [sum(keeps(rule, augmentation, grids) for augmentation in every) for rule in every_rule(4)]
  assert len(counts) == 18 and (np.mean(counts) < 2 if flag == 'chain' else set(counts) == {kept})


def test_augmented_puzzles_teach_what_their_demonstrations_do():
  """Read off the augmented pairs: which colour becomes which. Good flags agree with the puzzle, and chains do not."""
  becomes = functools.partial(map, lambda pair: {(a, b) for a, b in zip(*(sorted_cells(g) for g in pair))})
  for example in puzzles(4, 1).examples:
    whole = example_task(example)
    counts = lambda flags, whole=whole: list(becomes(t.test[0] for t in aug.augmented(whole, flags, 0)))
    assert all(c in counts(()) for c in counts(('basic', 'repeat')))
    assert sum(c not in counts(()) for c in counts(('chain',))) > 0.8 * 7 * 3


def sorted_cells(g):
  """The colours of a grid with how often each stands in it, most frequent first: no move and no tiling changes it."""
  colours, counts = np.unique(g, return_counts=True)
  return sorted(zip((counts / np.gcd.reduce(counts)).tolist(), colours.tolist()))
