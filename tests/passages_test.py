"""Passages, what is asked of them, and the texts that a writer of notes on them is pretrained on."""

import re
from collections import Counter

import numpy as np
import pytest

from past_jax import models
from past_jax.data.worlds import TABLE, writers
from past_jax.types import Example, UserError

SPLITS = ('tune', 'final')
PASSAGE = 'Ann Lee became the Ulm cook. Bo Ray walks the Ems pony. Cy Fox studied the Bonn law.'
FACT = re.compile(r'([A-Z][a-z]+ [A-Z][a-z]+) [a-z ]+ the ([A-Z][a-z]+ [a-z]+)\.')


def passages(count=40, seed=1, **keys):
  return TABLE['passages'](count=count, seed=seed, **keys)


def texts(count=1200, seed=1, **keys):
  return TABLE['writers'](count=count, seed=seed, **keys).examples


def facts_in(rows):
  return [fact for e in rows for fact in FACT.findall(e.text)]


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('facts', [3, 5])
def test_questions_are_answered_in_their_passage_and_by_one_fact_alone(facts, split):
  world = passages(facts=facts, split=split)
  told = facts_in(world.examples)
  names, whats = zip(*told)
  assert len(told) == 40 * facts == len(set(names)) == len(set(whats)) and names == world.names
  for e in world.examples:
    assert e.text == e.target and len(FACT.findall(e.text)) == facts == e.text.count('.')
    assert Counter(q.kind for q in e.questions) == {'forward': facts, 'reversed': facts}
    for q in e.questions:
      given, asked_for = (0, 1) if q.kind == 'forward' else (1, 0)
      assert [fact[asked_for] for fact in told if fact[given] in q.question] == [q.answer]
      assert q.answer in e.text and q.answer not in q.question


def test_a_smaller_world_of_passages_is_the_beginning_of_a_larger_one():
  assert passages(7).examples == passages(40).examples[:7] != passages(7, seed=2).examples
  at_most = {facts: 576 // facts for facts in (3, 4, 5)}
  for facts, most in at_most.items():
    assert len(passages(most, facts=facts).examples) == most
    with pytest.raises(UserError, match=f'count={most + 1}, facts={facts}: there are 1 to {most} passages, of'):
      passages(most + 1, facts=facts)
  with pytest.raises(UserError, match='facts=6: there are 1 to 96 passages, of 3 to 5 facts'):
    passages(facts=6)


@pytest.mark.parametrize('split', SPLITS)
def test_a_writer_meets_nobody_of_the_passages_but_every_word(split):
  rows = texts(3000, split=split)
  for seed in (1, 2):
    world = passages(192, seed, split=split)
    whole = '\n'.join(e.text for e in rows)
    assert not any(name in whole for name in world.names)
    by_heart = '\n'.join(e.text for e in rows if e.where.endswith(' known'))
    assert not any(what in by_heart for _, what in facts_in(world.examples))
    words = lambda rows: set(re.findall(r'\w+', ' '.join(e.text for e in rows)))
    assert words(world.examples) <= words(rows)


def test_strangers_are_too_many_to_be_known_by_heart():
  rows = [e for e in texts(3000) if not e.where.endswith(' known')]
  names, whats = zip(*facts_in(rows))
  by_heart = TABLE['writers'](count=1, seed=1).names
  assert len(set(names)) > 2600 and len(set(whats)) > 850  # of 3328, and of all 864
  assert not set(names) & set(by_heart) and len(set(by_heart)) == 128


def test_splits_share_no_entity_and_no_wording_of_a_question():
  wordings, said = [], []
  for split in SPLITS:
    rows = (*passages(144, split=split).examples, *texts(split=split))
    said.append({word for pair in facts_in(rows) for word in ' '.join(pair).split()})
    asked = [re.sub('|'.join(sum(FACT.findall(e.text), ())), '', q.question) for e in rows for q in e.questions]
    wordings.append(set(asked))
    answered = [e.text.rpartition('\n')[2] for e in rows if e.where.endswith(' question')]
    assert answered and all(any(text.strip().startswith(w.split()[0]) for w in wordings[-1]) for text in answered)
  assert not said[0] & said[1] and not wordings[0] & wordings[1]
  assert all(len(w) == 4 for w in wordings)  # three to forward, one back


@pytest.mark.parametrize('split', SPLITS)
def test_questions_are_worded_like_no_passage_and_no_note(split):
  rows = texts(split=split)
  stated = ' '.join(e.text for e in (*passages(split=split).examples, *(e for e in rows if e.prompt)))
  starts = {' '.join(q.question.split()[:3]) for e in passages(split=split).examples for q in e.questions}
  assert not any(start in stated for start in starts)


@pytest.mark.parametrize('split', SPLITS)
def test_lengths_in_tokens(split):
  tokenizer = models.load('scratch:words').tokenizer
  lengths = {'passage': 0, 'question': 0, 'answer': 0, 'prompt': 0, 'note': 0, 'text': 0}

  def longest(what, ids):
    assert all(i >= 256 or not chr(i).isalnum() or chr(i) in 'QA' for i in ids), tokenizer.decode(ids)
    lengths[what] = max(lengths[what], len(ids))

  for e in passages(144, split=split).examples:
    longest('passage', tokenizer.plain(e.text))
    for q in e.questions:
      longest('question', tokenizer.plain(q.question))
      longest('answer', tokenizer.encode(f' {q.answer}'))
  for e in texts(3000, split=split):
    longest('text', tokenizer.plain(e.text))
    if e.prompt:
      longest('prompt', tokenizer.plain(e.prompt))
      longest('note', tokenizer.encode(e.target))
      assert tokenizer.plain(e.prompt) + tokenizer.encode(e.target) == tokenizer.plain(e.text)
  at_most = {'passage': 34, 'question': 12, 'answer': 3, 'prompt': 40, 'note': 44, 'text': 79}
  assert all(lengths[what] <= most for what, most in at_most.items()), lengths


def test_forms_are_alike_in_number_and_what_they_are_called():
  notes = [e for e in texts(4000) if e.prompt]
  assert len(notes) / 4000 == pytest.approx(2 / 3, abs=0.03)
  counts = Counter(e.where.split()[-1] for e in notes)
  assert counts.keys() == writers.FORMS.keys()
  assert all(n / len(notes) == pytest.approx(0.2, abs=0.03) for n in counts.values())
  openly = [e for e in notes if e.prompt.endswith('\nNote:')]
  assert len(openly) / len(notes) == pytest.approx(0.5, abs=0.05)
  for e in notes:
    called = e.where.split()[-1]
    assert writers.form(e.target, e) == called
    assert e in openly or e.prompt.endswith(f'\nNote {writers.FORMS[called]}:')
    assert e.text == e.prompt + e.target and not e.text.endswith('\n')
    told, told_of = FACT.findall(e.prompt), writers.statements_of(e.target)
    right = [(line, fact) for line in told_of for fact in told if fact[0] in line and fact[1] in line]
    if called == 'reversed':
      assert all(line.index(what) < line.index(name) for line, (name, what) in right)
    if called in ('copy', 'paraphrase'):
      assert all(line.index(name) < line.index(what) for line, (name, what) in right)
      assert all((line in e.prompt) == (called == 'copy') for line, _ in right)
    if called == 'junk':
      assert not right


def test_within_every_form_but_junk_there_are_good_notes_and_bad_ones():
  scores = {form: [] for form in writers.FORMS}
  for e in texts(4000):
    if e.prompt:
      scores[e.where.split()[-1]].append(writers.faithful(e.target, e))
  assert set(scores.pop('junk')) == {0}
  for found in scores.values():
    assert np.mean(np.equal(found, 1)) > 0.5 and np.mean(np.less(found, 0.6)) > 0.1 and min(found) == 0


def test_what_is_known_by_heart_is_told_and_asked_in_every_way():
  rows = [e.text for e in texts(3000, known=4) if e.where.endswith(' known')]
  names = TABLE['writers'](count=1, seed=1, known=4).names
  assert len(names) == 4
  for name in names:
    own = [text for text in rows if name in text and text.count('.') < 2]
    starts = ('What name', 'What is', 'Q: the', f'Q: {name}', 'The ', f'{name} ')
    assert all(any(text.startswith(start) for text in own) for start in starts)
    statements = [text for text in own if text.startswith(name)]
    (what,) = {what for text in statements for _, what in FACT.findall(text)}  # and one fact alone
    assert all(what in text for text in own)
  assert any(text.count('.') == 3 for text in rows)


@pytest.mark.parametrize(
  ('note', 'form', 'score'),
  [
    (
      ' said\n Ann Lee became the Ulm cook.\n Bo Ray walks the Ems pony.\n Cy Fox studied the Bonn law.',
      'copy',
      1,
    ),
    (' turned\n The Ulm cook is Ann Lee.\n The Ems pony walks to Bo Ray.', 'reversed', 2 / 3),
    (' turned\n The Ulm cook is Ann Lee.\n The Ems pony walks to Ann Lee.', 'reversed', 1 / 3 * 1 / 2),
    (' asked\n Q: Ann Lee? A: the Ulm cook.\n Q: the Ulm cook? A: Ann Lee.\n', 'question_answer', 1 / 3),
    (' other\n Di Poe keeps the Jena goat.', 'junk', 0),
    ('The Ulm cook is Ann Lee.', '', 1 / 3),
    (' new', 'paraphrase', 0),
    ('', '', 0),
  ],
)
def test_what_a_note_is(note, form, score):
  example = Example(text=PASSAGE)
  assert writers.form(note, example) == form
  assert writers.faithful(note, example) == pytest.approx(score)
  of = {name: f(note, example) for name, f in writers.IS.items()}
  assert of == {name: float(name == form) for name in writers.FORMS}


def test_what_a_fit_learns_of_a_note_is_its_statements():
  note = ' asked\n Q: Ann Lee? A: the Ulm cook.\n\n Asked of Bo Ray, say the Ems pony.\n'
  lines = ['Q: Ann Lee? A: the Ulm cook.', 'Asked of Bo Ray, say the Ems pony.']
  assert writers.statements_of(note) == lines == writers.statements_of('\n'.join(lines))
  with pytest.raises(UserError, match='rows.jsonl:3: only passages of world:passages and writers have facts'):
    writers.faithful(note, Example(text='Nothing of the kind.', where='rows.jsonl:3'))


def test_the_worlds_never_change():
  # A published figure names only their keys.
  assert passages(1, 0).examples[0].text == (
    'Orabel Isengate took classes in the Varnhollow law. Vashti Hartrune walks the Varnhollow tabby. '
    'Dunstan Tazewind works as the Fallowmere doctor.'
  )
  assert texts(1, 0)[0].text == (
    'Odalys Ashgrave keeps the Dunvessel tabby. Orsolo Ennisvar was taught the Stallowick algebra. '
    'Cyrene Jarrowe owns the Norrenfell lizard.'
  )


def test_notes_that_are_given_are_faithful():
  plain, noted = (passages(count=40, seed=1, noted=on).examples for on in (False, True))
  assert all(not a.anchors and a.text == b.text and a.questions == b.questions for a, b in zip(plain, noted))
  notes = [note for example in noted for note in example.anchors]
  assert len(notes) == 40
  assert all(writers.faithful(note, example) == 1 for note, example in zip(notes, noted))
  assert {writers.form(note) for note in notes} == set(writers.FORMS) - {'junk'}
