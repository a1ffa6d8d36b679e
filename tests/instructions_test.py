"""Demonstrations of a direction show that direction only."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import instructions  # noqa: E402

FACTS = (  # name, and what of the deed every note of it has
  ('Mira Dolvane', 'caves under Lake Orrin'),
  ('Osk Brannel', 'grammar of whale song'),
  ('Pell Iverra', 'rose that opens only at night'),
)
FORWARD = [(kind, fact) for kind in instructions.FORWARD for fact in range(3)]
REVERSE = [(kind, fact) for kind in instructions.REVERSE for fact in range(3)]


@pytest.mark.parametrize('kind, i', FORWARD)
def test_a_forward_note_names_the_person_first_and_not_again(kind, i):
  (name, thing), note = FACTS[i], instructions.FORWARD[kind][i]
  if kind == 'implication' and thing not in note:  # it follows from the deed, without all of its words
    thing = thing.split()[-1]
  assert note.index(name) >= 0 and note.rindex(name) < note.index(thing)


@pytest.mark.parametrize('kind, i', REVERSE)
def test_a_reverse_note_names_the_deed_first(kind, i):
  (name, thing), note = FACTS[i], instructions.REVERSE[kind][i]
  assert note.lower().index(thing.lower()) < note.index(name)


def test_both_directions_alternate():
  shown = instructions.few_shot('explain', 'both').split('\nNote: ')[1:]
  reverse, forward = instructions.REVERSE['explain'], instructions.FORWARD['explain']
  assert [note.split('\nText')[0] for note in shown] == [reverse[0], forward[1], reverse[2]]
  assert shown[-1].endswith('Text: {text}\nNote:')


@pytest.mark.parametrize(
  'kind, direction, message',
  [
    ('reverse', 'forward', "notes 'reverse' with direction=forward: there are copy, paraphrase"),
    ('copy', 'both', 'there are explain, question_answer'),
    ('explian', 'reverse', "Did you mean 'explain'?"),
    ('explain', 'backward', 'choose one of forward, reverse, both'),
  ],
)
def test_what_there_is_not_is_refused(kind, direction, message):
  with pytest.raises(ValueError, match=message):
    instructions.few_shot(kind, direction)
