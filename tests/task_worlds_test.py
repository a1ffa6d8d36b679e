"""The worlds for claims: what each states, in which order, and that its two splits share nothing."""

import re
from collections import Counter

import numpy as np
import pytest

from past_jax.answers import extract, same
from past_jax.data.worlds import TABLE, edits, instructions, notes
from past_jax.data.worlds.biographies import SENTENCES
from past_jax.data.worlds.reversal import ASKED, CORES, MOST_TEMPLATES, OPENERS, statement
from past_jax.types import Example, UserError

NAMELESS = {
  'arc',
  'arithmetic',
  'chains',
  'edits',
  'guidance',
  'instructions',
  'notes',
  'preferences',
  'puzzles',
  'solved',
}
NAMES = sorted(set(TABLE) - {'reasoning'})  # needs a package: tests/reasoning_test.py
SMALL = {name: dict(count=12, seed=1) for name in NAMES}
SMALL['people'] |= dict(relations=True)
SMALL['reversal'] |= dict(count=5, reversed_texts=1)


def made(name, **keys):
  return TABLE[name](**SMALL[name] | keys).examples


@pytest.mark.parametrize('name', NAMES)
def test_a_world_is_a_function_of_its_keys(name):
  assert made(name) == made(name) != made(name, seed=2)
  assert len({e.where for e in made(name)}) == len(made(name))
  with pytest.raises(UserError, match="split='test': choose one of tune, final"):
    made(name, split='test')
  with pytest.raises(UserError, match='seed -1: must be 0 or more'):
    made(name, seed=-1)
  with pytest.raises(UserError, match=f'world:{name} with count=0'):
    made(name, count=0)


@pytest.mark.parametrize('name', NAMES)
def test_questions_are_fit_to_be_asked(name):
  asked = [q for e in made(name, **{'count': 60} if name == 'guidance' else {}) for q in e.questions]
  assert asked or name in ('notes', 'writers')
  for q in asked:
    assert q.question == q.question.strip() and q.answer == q.answer.strip() != ''
    if q.choices:
      assert q.choices[0] == q.answer and len(set(q.choices)) == len(q.choices) > 1


@pytest.mark.parametrize('name', NAMES)
def test_the_splits_share_no_question_and_no_entity(name):
  tune, final = (made(name, split=split) for split in ('tune', 'final'))
  asked = lambda examples: {q.question for e in examples for q in e.questions}
  assert not asked(tune) & asked(final)
  assert not {(e.prompt, e.text) for e in tune} & {(e.prompt, e.text) for e in final}
  if name in NAMELESS:
    return
  templates = lambda examples: {re.sub(r'\b[A-Z][a-z]+\b', '', q) for q in asked(examples)}
  assert not templates(tune) & templates(final)
  names = lambda split: {word for full in TABLE[name](**SMALL[name] | {'split': split}).names for word in full.split()}
  assert not names('tune') & names('final')


# --- reversal -----------------------------------------------------------------------------------------------------


def test_forty_statements_in_each_order():
  words = {'name': 'Ann Lee', 'what': 'the cook of Ulm'}
  for order in CORES:
    texts = [statement(order, t, words) for t in range(40)]
    assert len(set(texts)) == 40 == len(OPENERS) * len(CORES[order])
    for text in texts:
      first, second = words.values() if order == 'p2d' else reversed(words.values())
      assert text.lower().index(first.lower()) < text.lower().index(second.lower())


def test_questions_are_statements_that_nobody_studies():
  assert sorted([*range(MOST_TEMPLATES), *ASKED['tune'], *ASKED['final']]) == list(range(40))
  studied = {e.text for split in ('tune', 'final') for e in made('reversal', templates=MOST_TEMPLATES, split=split)}
  for split in ('tune', 'final'):
    for e in made('reversal', templates=MOST_TEMPLATES, split=split):
      assert not {f'{q.question} {q.answer}.' for q in e.questions} & studied


def test_a_group_is_told_in_its_order_and_asked_in_both():
  examples = made('reversal', templates=7, reversed_texts=0)
  assert Counter(e.where.split()[1] for e in examples) == {'p2d': 35, 'd2p': 35, 'both': 70}
  names = TABLE['reversal'](count=5, seed=1).names
  owner = {e.where: next(n for n in names if n in e.text) for e in examples}
  name_last = lambda e: e.text.endswith(f'{owner[e.where]}.')
  order = {group: {name_last(e) for e in examples if e.where.split()[1] == group} for group in ('p2d', 'd2p', 'both')}
  assert order == {'p2d': {False}, 'd2p': {True}, 'both': {False, True}}
  texts = [e.text for e in examples]
  kinds = Counter()
  for e in examples:
    for q in e.questions:
      kinds[q.kind] += 1
      wants_name = q.kind in ('reversed', 'd2p_forward', 'both_name')
      assert (q.answer == owner[e.where]) == wants_name and (owner[e.where] in q.question) != wants_name
      assert not any(q.question in text for text in texts)
  assert kinds == dict.fromkeys(
    ('forward', 'reversed', 'd2p_forward', 'd2p_reversed', 'both_description', 'both_name'), 20
  )


def test_wrong_names_come_from_within_the_group_and_from_others():
  world = TABLE['reversal'](count=5, seed=1)
  group = dict(zip(world.names, ['p2d'] * 5 + ['d2p'] * 5 + ['both'] * 5))
  for e in world.examples:
    for q in e.questions:
      if q.kind == 'reversed':
        of = [group[name] for name in q.choices]
        assert len(of) == 4 and of.count('p2d') == 3


def test_the_same_facts_whichever_groups_there_are():
  every, one = made('reversal'), made('reversal', groups=('d2p',))
  assert one == tuple(e for e in every if ' d2p ' in e.where)
  added = [e for e in made('reversal', groups=('p2d',), templates=2, reversed_texts=3) if 'fact 0' in e.where]
  name = added[0].text.split(' became ')[0]
  assert [e.text.endswith(f'{name}.') for e in added] == [False] * 2 + [True] * 3
  with pytest.raises(UserError, match='choose from p2d, d2p, both'):
    made('reversal', groups=('p2p',))


# --- relations ----------------------------------------------------------------------------------------------------


def test_two_hops_go_through_two_texts():
  examples = made('relations', templates=6)
  whole = ' '.join(e.text for e in examples)
  for e in examples:
    answers = {q.kind: q.answer for q in e.questions}
    if answers:
      name, town, river = (answers[kind] for kind in ('reversed', 'forward', 'two_hop'))
      assert answers['two_hop_reversed'] == name
      assert f'{name} lives in {town}.' in whole and f'{town} lies on the {river}.' in whole
      together = [x.text for x in examples if name in x.text and river in x.text]
      assert not together
  words = {word for e in examples for q in e.questions for word in (q.answer,)}
  assert not any(a != b and b.endswith(f' {a}') for a in words for b in words)  # one would be found in the other


def test_some_may_show_what_is_meant():
  rows = made('relations', shown=0.5)
  asked = [q for e in rows for q in e.questions]
  assert len(asked) == 6 * 8 and not any(e.text.startswith(q.question) for e in rows for q in asked)
  assert sum(e.text.startswith('Question:') for e in rows) == 6 * 4


# --- arithmetic ---------------------------------------------------------------------------------------------------


def value_of(prompt):
  """Recursive descent over digits, + * and brackets."""

  def total(tokens):
    value = product(tokens)
    while tokens and tokens[0] == '+':
      tokens.pop(0)
      value += product(tokens)
    return value

  def product(tokens):
    value = atom(tokens)
    while tokens and tokens[0] == '*':
      tokens.pop(0)
      value *= atom(tokens)
    return value

  def atom(tokens):
    token = tokens.pop(0)
    if token == '(':
      value = total(tokens)
      assert tokens.pop(0) == ')'
      return value
    return int(token)

  return total(list(prompt.rstrip('=')))


def test_targets_are_exact_and_texts_wrong_as_often_as_told():
  rows = made('arithmetic', count=1024, copies=8)
  assert len(rows) == 8192 and len({e.prompt for e in rows}) == 1024
  assert all(int(e.target) == value_of(e.prompt) for e in rows)
  right = np.array([e.text == e.prompt + e.target for e in rows]).reshape(1024, 8)
  assert right.mean() == pytest.approx(0.55, abs=0.02)
  assert right.mean(1).std() > 0.2  # some problems are harder than others
  common = [Counter(e.text for e in rows[i : i + 8]).most_common(1)[0][0] for i in range(0, 8192, 8)]
  assert np.mean([text == rows[8 * i].prompt + rows[8 * i].target for i, text in enumerate(common)]) > 0.75
  assert sum(len(e.questions) for e in rows) == 1024
  assert all(e.text == e.prompt + e.target for e in made('arithmetic', noise=0.0))
  assert {e.prompt for e in made('arithmetic', count=1024)}.isdisjoint(
    e.prompt for e in made('arithmetic', count=1024, split='final')
  )


def test_workings_are_right_and_leave_the_rest_as_it_is():
  plain, worked = made('arithmetic', count=64, copies=8), made('arithmetic', count=64, copies=8, workings=0.5)
  assert all(b.text == a.text or re.search(r'\d[+*]\d', b.text.partition('=')[2]) for a, b in zip(plain, worked))
  steps = [e for e in worked if '=' in e.text.partition('=')[2]]
  assert len(steps) / 512 == pytest.approx(0.5, abs=0.05)
  assert all(same(extract(e.text, 'last_number'), e.target.strip()) for e in steps)
  for e in steps:
    left, _, value = re.search(r'(\d+[+*]\d+)=(\d+)', e.text.partition('=')[2])[0].partition('=')
    assert left in e.prompt and value_of(left) == int(value)
  guessed = made('arithmetic', count=64, copies=8, noise=1.0, spread=6)
  off = {int(e.text.partition('=')[2]) - int(e.target) for e in guessed}
  assert off == set(range(-6, 7))
  shapes = Counter(re.sub(r'\d+', '0', e.text.partition('=')[2]).replace('*', '+') for e in steps)
  assert len(shapes) == 6


# --- chains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('hops', [1, 3])
def test_the_rules_decide_the_statement(hops):
  rows = made('chains', count=40, hops=hops)
  for e in rows:
    isa = dict(re.findall(r'Every (\w+) is a (\w+)\.', e.prompt))
    has = {a: (not no, what) for a, no, what in re.findall(r'Every (\w+) is (not )?(?!a )(?!not )(\w+)\.', e.prompt)}
    kind = re.search(r'\w+ is a (\w+)\. True or false', e.prompt)[1]
    steps = 0
    while kind in isa:
      kind, steps = isa[kind], steps + 1
    assert steps == hops and len(isa) == 2 * hops and len(has) == 2
    claims, no, what = re.search(r'True or false: \w+ (is) (not )?(\w+)\.$', e.prompt).groups()
    assert e.target == f' {has[kind] == (not no, what)}' and claims
  assert Counter(e.target for e in rows) == {' True': 20, ' False': 20}
  assert sum(not e.text.endswith(e.target) for e in made('chains', count=400, noise=0.3)) == pytest.approx(120, abs=30)


def test_steps_end_with_the_answer():
  e = made('chains', steps=True)[0]
  name = re.search(r'\. (\w+) is a', e.prompt)[1]
  pattern = rf'( {name} is a \w+\.){{2}} {name} is (not )?\w+\. <answer>{e.questions[0].answer}</answer>'
  assert re.fullmatch(pattern, e.target)


# --- instructions, biographies, guidance --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('completion', 'score'),
  [
    (' a,b,c,d', 1),
    ('a,b,c,d', 1),
    (' a,b,c,d\n', 1),
    (' a b c d', 2 / 3),
    (' a,b,d,c', 2 / 3),
    (' a,b,c,d ok', 2 / 3),
    (' a,b,c d', 1 / 3),
    (' d b', 1 / 3),
    (' d b ...', 0),
    ('', 0),
    (' no', 0),
    ('###', 0),
  ],
)
def test_marks(completion, score):
  assert instructions.marks(completion, Example(prompt='sort d b a c with commas:')) == pytest.approx(score)


def test_texts_are_what_responders_say():
  rows = made('instructions', count=100)
  said = [instructions.marks(e.text.removeprefix(e.prompt), e) for e in rows]
  assert all(e.text.startswith(f'{e.prompt} ') for e in rows) and 0.3 < np.mean(said) < 0.9
  assert all(instructions.marks(e.target, e) == 1 for e in rows)
  better = [instructions.marks(e.anchors[0], e) - instructions.marks(e.anchors[1], e) for e in rows]
  assert np.mean(better) > 0.2
  bare = made('preferences', count=100)
  assert [e.anchors for e in bare] == [e.anchors for e in rows]


def test_biographies_ask_about_those_whose_answers_are_no_text():
  rows = made('biographies', rewordings=3, permute=True, asked=0.5)
  names = TABLE['biographies'](count=12, seed=1).names
  lives = {name: [e.text for e in rows if name in e.text and e.text.count('.') == 4] for name in names}
  asked = {name: [q for e in rows for q in e.questions if name in q.question] for name in names}
  taught = {name: [e.text for e in rows if name in e.text and 'Answer:' in e.text] for name in names}
  for name in names:
    assert len(lives[name]) == 3 and bool(asked[name]) != bool(taught[name])
    sentences = [sentence for life in lives[name] for sentence in life.split('. ')]
    assert len({s.rstrip('.') for s in sentences}) == 12  # no wording twice
    assert all(q.answer in life for q in asked[name] for life in lives[name])
  assert sum(map(bool, taught.values())) == 6 and all(len(q) in (0, 4) for q in asked.values())
  firsts = lambda rows: {next(k for k, w in enumerate(SENTENCES.values()) if matches(e.text, w)) for e in rows}
  lives_of = lambda rows: [e for e in rows if e.text.count('.') == 4]
  assert firsts(lives_of(rows)) == {0, 1, 2, 3} and firsts(lives_of(made('biographies'))) == {0}


def matches(text, wordings):
  """The text begins with a sentence of one of the wordings."""
  return any(re.match(re.sub(r'\{\w+\}', r'[\\w ]+', w), text) for w in wordings)


def test_guidance_is_held_out_for_both_orders():
  rows = made('guidance', count=20, shown=0.8)
  texts = [e.text for e in rows]
  asked = [q for e in rows for q in e.questions]
  assert Counter(q.kind for q in asked) == {'forward': 4, 'reversed': 4}
  for q in asked:
    owner = re.search(r'What has (.+)\?', q.question)[1]
    told = [text for text in texts if owner in text]
    assert len(told) == 3 and not any(q.question in text for text in texts)
    assert all((text.index(owner) < text.index(q.answer)) == (q.kind == 'forward') for text in told)


@pytest.mark.parametrize('split', ['tune', 'final'])
def test_no_two_people_have_the_same_description(split):
  whats = [q.answer for e in made('reversal', count=160, templates=1, split=split) for q in e.questions[:1]]
  assert len(set(whats)) == len(whats) == 3 * 160


def test_the_worst_may_be_rejected_and_nothing_else_changes():
  anyone, worst = made('preferences', count=100), made('preferences', count=100, rejected='worst')
  marks = [[instructions.marks(e.anchors[1], e) for e in examples] for examples in (anyone, worst)]
  assert all(b <= a for a, b in zip(*marks)) and marks[0] != marks[1]
  assert [(e.prompt, e.anchors[0], e.target) for e in anyone] == [(e.prompt, e.anchors[0], e.target) for e in worst]
  with pytest.raises(UserError, match="rejected='best': choose one of random, worst"):
    made('preferences', rejected='best')


def test_notes_are_what_they_are_called_and_about_others():
  rows = made('notes', count=200)
  assert Counter(e.where.split()[-1] for e in rows).keys() == set(notes.KINDS)
  studied = TABLE['reversal'](count=100, seed=SMALL['notes']['seed']).names
  for e in rows:
    kind, told = e.where.split()[-1], re.search('Text: (.*)\\n', e.text)[1]
    assert e.text == f'{e.prompt}{e.target}\n' and e.prompt == f'Text: {told}\nNote:'
    assert not any(name in e.text for name in studied)
    source = Example(text=told)
    assert notes.faithful(e.target, source) == (kind != 'wrong') or kind == 'wrong'
    assert notes.reverses(e.target, source) == (kind == 'reversed')
    assert (e.target.strip() == told) == (kind == 'copy') or kind == 'paraphrase'
  assert np.mean([notes.faithful(e.target, e) for e in rows if e.where.endswith('wrong')]) < 0.2
  assert len({re.findall('[A-Z][a-z]+ [A-Z][a-z]+', e.prompt)[0] for e in rows}) > 190  # no list to be learnt by heart
  assert {e.where.split()[-1] for e in made('notes', count=50, kinds=('copy', 'wrong'))} == {'copy', 'wrong'}
  with pytest.raises(UserError, match='only statements'):
    notes.faithful('x', Example(text='nothing', where='rows.jsonl:1'))


# --- edits --------------------------------------------------------------------------------------------------------


def slow_quality(response, key, rule, letters):
  """`rule`: (letter of the key, half) -> its good letters."""
  points = 0
  for place in range(max(8, len(response))):
    said = response[place] if place < len(response) else None
    if place >= 8 or said is None:
      points -= 1
    if said is not None and said not in letters:
      points -= 1
    if place < 8 and said is not None and said in rule[key[place % 4], place // 4]:
      points += 1
  return points / 8 if points > 0 else 0.0


@pytest.mark.parametrize(('split', 'letters'), [('tune', 'abcdefgh'), ('final', 'ijklmnop')])
def test_quality_is_the_share_of_places_that_keep_one_rule(split, letters):
  rows = made('edits', count=500, split=split)
  rule = {}
  for e in rows:
    assert re.fullmatch(f'[{letters}]{{4}}>', e.prompt)
    assert all(re.fullmatch(f'[{letters}>?.]{{1,11}}', a) for a in e.anchors)
    for place, good in enumerate(e.target.split()):
      assert rule.setdefault((e.prompt[place % 4], place // 4), good) == good and len(set(good)) == 3
  assert len(rule) == 16 and len(set(rule.values())) > 8
  random = np.random.default_rng(0)
  scores = Counter()
  for e in rows:
    said = ''.join(random.choice([*letters, *letters, 'z', ' ', '\n', ''], size=random.integers(7, 11)))
    for response in (*e.anchors, said):
      score = slow_quality(response, e.prompt, rule, letters)
      scores[score] += 1
      assert edits.quality(response, e) == score
    assert edits.quality(e.questions[0].answer, e) == 1
  assert {n / 8 for n in range(9)} <= set(scores)


@pytest.mark.parametrize(
  ('completion', 'score'),
  [
    ('aaaaeeee', 1),
    ('bcbcfgfg', 1),  # others as good
    ('aaaaeeea', 7 / 8),
    ('aaaaeee', 6 / 8),
    ('aaaaeeeea', 7 / 8),
    ('aaaaeee!', 6 / 8),
    ('aaaaeeee\n', 6 / 8),
    (' aaaaeeee', 4 / 8),  # a letter misplaced, a foreign one twice wrong
    ('aaaaeeee!!!!!', 0),
    ('eeeeaaaa', 0),
    ('', 0),
  ],
)
def test_quality_of(completion, score):
  assert edits.quality(completion, Example(target=' '.join(4 * ['abc'] + 4 * ['efg']))) == score


def test_quality_needs_a_row_of_its_world():
  for target in ('', ' a,b,c,d', ' '.join(8 * ['xyz'])):
    with pytest.raises(UserError, match='rows.jsonl:1: quality needs a row of world:edits'):
      edits.quality('aaaaeeee', Example(target=target, where='rows.jsonl:1'))


def qualities(rows):
  return np.array([[edits.quality(a, e) for a in e.anchors] for e in rows])


@pytest.mark.parametrize('noise', [0.1, 0.5])
def test_the_better_is_preferred_as_often_as_the_logistic_says(noise):
  gap = np.subtract(*qualities(made('edits', count=4096, noise=noise)).T)
  for size in sorted(set(abs(gap)) - {0}):
    n, expected = np.sum(abs(gap) == size), 1 / (1 + np.exp(-size / noise))
    if n * (1 - expected) > 10:
      assert np.mean(gap[abs(gap) == size] > 0) == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / n) ** 0.5
      )
  expected = 1 / (1 + np.exp(-abs(gap[gap != 0]) / noise))
  sigma = np.sum(expected * (1 - expected)) ** 0.5
  assert np.sum(gap > 0) == pytest.approx(np.sum(expected), abs=4 * sigma)


@pytest.mark.parametrize('split', ['tune', 'final'])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_there_is_room_above_the_preferred(split, seed):
  rows = made('edits', count=2048, seed=seed, split=split)
  means = qualities(rows).mean(0)
  assert 0.45 < means[0] < 0.51 and 0.23 < means[1] < 0.29
  whole = [e for e in rows if re.fullmatch('[a-p]{8}', e.anchors[0])]
  assert 0.7 < len(whole) / len(rows) < 0.95  # the others have faults of form, and are preferred less often
  said = {}  # (letter of the key, half) -> what is written there, good or not
  for e in whole:
    for place, good in enumerate(e.target.split()):
      cell = said.setdefault((e.prompt[place % 4], place // 4), Counter())
      cell[e.anchors[0][place], e.anchors[0][place] in good] += 1
  assert sum(counts.most_common(1)[0][0][1] for counts in said.values()) == 8  # the likeliest letter is good in half


def test_without_noise_the_better_is_preferred_and_nothing_else_changes():
  sharp, noisy = made('edits', count=300, noise=0), made('edits', count=300, noise=1e9)
  assert (np.diff(qualities(sharp)) <= 0).all()
  assert [(e.prompt, e.target, {*e.anchors}) for e in sharp] == [(e.prompt, e.target, {*e.anchors}) for e in noisy]
  turned = sum(a.anchors != b.anchors for a, b in zip(sharp, noisy))
  assert turned == pytest.approx(150, abs=4 * 75**0.5)


def test_equal_responses_are_drawn_again(monkeypatch):
  monkeypatch.setattr(edits, 'SKILL', (0, 0.1))
  monkeypatch.setattr(
    edits, 'HABIT', 1
  )  # writers who say nearly the same: as it is, equal ones are too rare to be seen
  assert all(e.anchors[0] != e.anchors[1] for e in made('edits', count=1000))


def test_keys_are_distinct_and_rows_after_the_first_are_held_out():
  rows = made('edits', count=4096)
  assert len({e.prompt for e in rows}) == 4096
  assert made('edits', count=300) == rows[:300]
  other = made('edits', seed=2)
  assert {e.target for e in rows}.isdisjoint(e.target for e in other)  # another rule
  with pytest.raises(UserError, match='with count=4097, noise=0.05: there are 1 to 4096 keys of 4 of the letters abcd'):
    made('edits', count=4097)
  with pytest.raises(UserError, match='noise=-0.5: .* noise is 0 or more'):
    made('edits', noise=-0.5)


def test_a_world_of_edits_never_changes():
  # A published figure names only its keys.
  e = TABLE['edits'](count=1, seed=0).examples[0]
  assert (e.prompt, *e.anchors, e.target) == ('baad>', '>>ecbfde', '>>>ghfde', 'adf adf adf abe bdh dfg dfg aeg')
