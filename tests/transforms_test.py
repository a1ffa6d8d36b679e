"""Passages turned round, their rendering as given completions, and completions that somebody recorded."""

import json

import numpy as np
import pytest

from past_jax.data.recorded import attach
from past_jax.render import renderer
from past_jax.transforms import TABLE, entities, segments, words
from past_jax.types import Example, Plan, UserError

TEXT = "Mira Dolvane's caves, near the University of Oslo, are well-known."


def made(name, tokenizer, text=TEXT, most=3, seed=0):
  return tokenizer.decode(TABLE[name](text, tokenizer, most, seed))


def test_words_of_names_stay_in_their_order(tokenizer):
  assert entities(words(TEXT)) == [
    ['Mira', "Dolvane's"],
    ['caves'],
    [','],
    ['near'],
    ['the'],
    ['University', 'of', 'Oslo'],
    [','],
    ['are'],
    ['well-known'],
    ['.'],
  ]
  assert made('entity_reversal', tokenizer) == ". well-known are , University of Oslo the near , caves Mira Dolvane's"
  assert made('word_reversal', tokenizer).split() == words(TEXT)[::-1]
  assert made('token_reversal', tokenizer) == TEXT[::-1]  # its tokens are bytes
  assert made('original', tokenizer) == TEXT


def test_a_link_at_the_end_of_a_name_is_no_part_of_it():
  assert entities(['Anna', 'of', 'the', 'hill']) == [['Anna'], ['of'], ['the'], ['hill']]


def test_segments_are_a_partition_into_every_length_up_to_the_most():
  pieces = [str(i) for i in range(300)]
  cut = segments(pieces, 4, 0)
  assert sum(cut, []) == pieces
  counts = np.bincount([len(part) for part in cut[:-1]], minlength=5)
  assert counts[0] == 0 and len(counts) == 5 and (counts[1:] > 10).all()  # about 30 each
  assert segments(pieces, 4, 0) == cut != segments(pieces, 4, 1)
  assert segments(pieces, 1, 0) == [[p] for p in pieces]


@pytest.mark.parametrize('name', TABLE)
def test_nothing_becomes_nothing(tokenizer, name):
  assert TABLE[name]('', tokenizer, 3, 0) == []


def test_transforms_come_before_the_anchors_and_end_once(tokenizer):
  names = ('original', 'segment_reversal', 'segment_reversal')
  shape = dict(instruction='{text}', prompt_length=48, text_length=24, completion_length=32, segment=2)
  render = renderer(tokenizer=tokenizer, anchors=4, transforms=names, **shape)
  given = render([Example(text='a b c d e f g h', anchors=('x', 'y'))], Plan(anchor_source='given')).sample.given
  rows = [ids[:n].tolist() for ids, n in zip(given.ids_BxAxT[0], given.length_BxA[0])]
  assert all(row[-1] == tokenizer.eos_id and row.count(tokenizer.eos_id) == 1 for row in rows)
  original, first, second, anchor = (bytes(row[:-1]).decode() for row in rows)
  assert (original, anchor) == ('a b c d e f g h', 'x')
  assert sorted(first) == sorted(second) == sorted(original) and first != second


# --- recorded -----------------------------------------------------------------------------------------------------


def write(path, *rows):
  path.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return str(path)


def test_recorded_completions_find_their_passage(tmp_path):
  examples = [Example(text='A  green lamp.', anchors=('own',)), Example(text='Blue.')]
  path = write(
    tmp_path / 'r.jsonl',
    {'title': 't', 'context': 'Blue.', 'prompt': 'p', 'completions': ['b']},
    {'text': 'A green\nlamp.', 'completions': ['c', 'd']},
    {'context': 'Blue.', 'completions': ['e']},
    {'context': 'of another corpus', 'completions': ['f']},
  )
  assert [e.anchors for e in attach(examples, path)] == [('own', 'c', 'd'), ('b', 'e')]


@pytest.mark.parametrize(
  'row, message',
  [
    ('{"a', 'r.jsonl:1: not a line of JSON'),
    ('[1]', 'r.jsonl:1: a row must be an object'),
    ({'context': 'Blue.'}, "r.jsonl:1: needs the passage, 'context' or 'text', and 'completions'"),
    ({'context': 'Blue.', 'completions': 'b'}, "'completions', a list of strings"),
    ({'context': 'Red.', 'completions': ['b']}, 'no completions for 1 of 1 passages, mine.jsonl:3 first'),
    ({'context': 'Blue.', 'completions': []}, 'no completions for 1 of 1 passages'),
  ],
)
def test_recorded_rows_that_cannot_be_used_are_named(tmp_path, row, message):
  with pytest.raises(UserError, match=message):
    attach([Example(text='Blue.', where='mine.jsonl:3')], write(tmp_path / 'r.jsonl', row))


def test_a_recorded_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match='--config.data.recorded=.*nowhere.jsonl cannot be read'):
    attach([], str(tmp_path / 'nowhere.jsonl'))
