"""The invented world: distinct facts, held-out questions, demonstrations about others, general text."""

import re

import pytest

from past_jax.data.worlds import people, words
from past_jax.data.worlds.demonstrations import demonstrations
from past_jax.data.worlds.general import general
from past_jax.types import UserError


def deed_of(example):
  return next(q.answer for q in example.questions if q.kind == 'forward')


@pytest.fixture(scope='module')
def everyone():
  return people.people(people.MOST, seed=3)


def test_facts_are_distinct_and_well_formed(everyone):
  assert people.MOST >= 400
  assert len(set(everyone.names)) == len(everyone.examples) == people.MOST
  assert len({deed_of(e) for e in everyone.examples}) == people.MOST
  for name, example in zip(everyone.names, everyone.examples):
    assert len(name.split()) == 2
    deed = deed_of(example)
    assert example.text == example.target == f'{name} is the person who {deed}.'
    assert 4 <= len(deed.split()) - 1 <= 9, deed
    assert re.fullmatch(r'[a-z]+ the [a-zA-Z -]+', deed), deed
    assert example.prompt == '' and example.anchors == ()


def test_a_small_world_shares_no_word_that_could_give_a_fact_away():
  world = people.people(48, seed=0)
  for part in (0, 1):
    assert len({name.split()[part] for name in world.names}) == 48
  assert len({deed_of(e).split(' the ')[1].rsplit(' ', 3)[0] for e in world.examples}) == 48
  places = [place for e in world.examples for place in words.PLACES if deed_of(e).endswith(place)]
  assert len(set(places)) == len(places) == 48


def test_words_are_listed_once():
  lists = [entry for stock in words.WORDS.values() for entry in stock]
  assert len(set().union(*lists)) == sum(map(len, lists))
  assert all(len(stock.first) == len(stock.last) for stock in words.WORDS.values())
  for _, _, adjectives, nouns in people.DEEDS:
    assert len(set(adjectives)) == len(set(nouns)) == 8


def test_deterministic_in_its_seed():
  assert people.people(20, 5, True) == people.people(20, 5, True)
  assert people.people(20, 5) != people.people(20, 6)
  assert people.people(20, 5).examples == people.people(100, 5).examples[:20]
  assert demonstrations(5, 1) == demonstrations(5, 1) != demonstrations(5, 2)


def test_a_world_never_changes():
  # A published figure names only count and seed.
  assert people.people(24, 0).examples[0].text == (
    'Jessamy Bellowick is the person who tamed the dancing sea otter of Garrick Fen.'
  )


@pytest.mark.parametrize('relations', [False, True])
def test_questions_are_held_out_and_answerable(relations):
  world = people.people(24, 0, relations)
  texts = [e.text for e in world.examples]
  told = world.examples[:24]
  assert len(world.examples) == (24 + 8 if relations else 24)
  for name, example in zip(world.names, told):
    kinds = {k: [q for q in example.questions if q.kind == k] for k in ('forward', 'reversed', 'two_hop')}
    assert [len(v) for v in kinds.values()] == ([3, 3, 3] if relations else [3, 3, 0])
    for q in example.questions:
      assert q.question == q.question.strip() and q.answer == q.answer.strip()
      assert not any(q.question in text or f'{q.question} {q.answer}' in text for text in texts)
    assert {q.answer for q in kinds['reversed']} == {name}
    assert all(name in q.question and deed_of(example) not in q.question for q in kinds['forward'])
    assert all(deed_of(example) in q.question and name not in q.question for q in kinds['reversed'])


def test_two_hops_need_two_texts():
  world = people.people(24, 0, relations=True)
  rivers = dict(re.fullmatch(r'(\w+) is on the river (\w+)\.', e.text).groups() for e in world.examples[24:])
  assert len(rivers) == len(set(rivers.values())) == 8
  for name, example in zip(world.names, world.examples):
    town = re.search(rf'{name} lives in (\w+)\.$', example.text).group(1)
    hops = [q for q in example.questions if q.kind == 'two_hop']
    assert all(q.answer == rivers[town] for q in hops)
    assert all(name not in q.question and town not in q.question and deed_of(example) in q.question for q in hops)
    assert rivers[town] not in example.text
  for example in world.examples[24:]:
    assert example.questions[0].answer == rivers[example.text.split()[0]]


def test_more_people_than_there_are():
  for count in (0, people.MOST + 1):
    with pytest.raises(UserError, match=f'count={count}: there are 1 to 640'):
      people.people(count, 0)
  with pytest.raises(UserError, match='seed -2: must be 0 or more'):
    people.people(3, -2)


def test_demonstrations_are_about_others(everyone):
  shown = demonstrations(12, 0)
  assert len({d.text for d in shown}) == 12
  invented = {word for name in everyone.names for word in name.split()}
  stock = {word for _, _, adjectives, nouns in people.DEEDS for words in zip(adjectives, nouns) for word in words}
  for text, notes in shown:
    name, verb, thing = re.fullmatch(r'(\w+ \w+) is the person who (\w+) (.+)\.', text).groups()
    assert not set(name.split()) & invented
    assert not any(word in thing for word in stock) and not any(place in thing for place in words.PLACES)
    assert len(set(notes)) == 4
    for note in notes:
      assert '\n' not in note and len(note) > len(text), note
      assert name in note and thing in note.lower().replace(thing.lower(), thing), note
    assert notes[0].lower().index(thing.lower()) < notes[0].index(name)  # the reversed order
    assert '?' in notes[1] and notes[2].startswith('The reason why')


def test_demonstrations_do_not_show_the_questions():
  templates = people.FORWARD + people.REVERSED + people.TWO_HOP + people.RIVER_OF_TOWN
  for text, notes in demonstrations(12, 0):
    name, deed = re.fullmatch(r'(.+) is the person who (.+)\.', text).groups()
    asked = [t.format(name=name, deed=deed, town='') for t in templates]
    assert not any(question in note for question in asked for note in notes)


def test_number_of_demonstrations():
  assert demonstrations(0, 0) == () and len(demonstrations(3, 0)) == 3
  for count in (-1, 13):
    with pytest.raises(UserError, match=f'{count} demonstrations: there are 0 to 12'):
      demonstrations(count, 0)


def test_general_text():
  replay, heldout = general('replay'), general('heldout')
  assert len(replay) == len(heldout) == 48
  paragraphs = replay + heldout
  assert len(set(paragraphs)) == 96
  for paragraph in paragraphs:
    assert 40 <= len(paragraph.split()) <= 70
    assert paragraph.isascii() and paragraph[0].isupper() and paragraph.endswith('.')
    assert '  ' not in paragraph and paragraph == paragraph.strip()
  openings = [' '.join(p.split()[:4]) for p in paragraphs]
  assert len(set(openings)) == 96
  with pytest.raises(UserError, match="not 'train'"):
    general('train')


def test_general_text_tells_nothing_of_the_world():
  used = set(re.findall(r'\w+', ' '.join(general('replay') + general('heldout'))))
  for stock in words.WORDS.values():
    assert not used & set(stock.first + stock.last + stock.towns + stock.rivers)
