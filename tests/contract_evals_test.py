"""Every evaluation keeps the contract, and the known answers of each are those of an independent float64 loop.

The model's next token depends on the last one alone, by a table. A new evaluation is one more line in CASES.
"""

import json

import numpy as np
import pytest
from table_model import POLICY, TOKENIZER, TABLE_VxV, V, logp

from past_jax.evals import TABLE
from past_jax.evals.setting import Setting
from past_jax.types import Example, Question, UserError

EXAMPLES = [
  Example(
    prompt=f'ask {i}',
    anchors=(f' good {i}', f' bad{i}'),
    questions=(Question(f'what is {i}?', str(i), kind, (str(i), 'xy', f'no{i}')), Question(f'who {i}:', 'me', 'other')),
    where=f'rows.jsonl:{i}',
  )
  for i, kind in enumerate(['forward', 'reversed', 'forward', 'forward', 'reversed'])
]
VIEW = dict(
  instruction='{prompt}',
  train_view='same',
  train_instruction='',
  chat=False,
  prompt_length=8,
  text_length=10,
  anchors=0,
)
IMPROVE = dict(instruction='{prompt}: {draft}', prompt_length=24, temperature=1.0)


def setting(mesh, examples=EXAMPLES, chunk=4, **changes):
  questions = [(i, q) for i, e in enumerate(examples) for q in e.questions]
  shape = dict(prompt_length=40, answer_length=10, chunk=chunk, view=VIEW, improve=IMPROVE)
  return Setting(POLICY, TOKENIZER, mesh, examples, questions, **shape | changes)


def letters(completion, example):
  return completion.count('a') / (1 + len(completion)) + 0.1 * example.prompt.endswith('1')


CASES = {
  'accuracy': dict(),
  'accuracy of a function': dict(function=f'{__name__}:letters', samples=2, temperature=1.0),
  'accuracy sampled': dict(rule='last_number', samples=3, temperature=0.8),
  'closed_book': dict(),
  'forced_choice': dict(),
  'improvement': dict(judges={'letters': f'{__name__}:letters', 'model': 'likelihood'}, iterations=2),
  'improvement beside self-refine': dict(
    judges={'model': 'likelihood'},
    temperatures=(0.0, 0.7),
    drafts='given',
    baseline='self_refine',
    feedback='{prompt}: {draft}?',
    refine='{draft}: {feedback}',
  ),
  'multiple_choice': dict(),
  'pair_accuracy': dict(),
}


def made(mesh, case, **keys):
  return TABLE[case.split()[0]](setting(mesh, **keys), **CASES[case])


def run(evaluation, *args):
  return evaluation.run(*[TABLE_VxV] * len(evaluation.roles), *args)


def test_every_evaluation_of_the_table_is_in_the_battery():
  trained = {'judge_accuracy', 'self_edits', 'continued', 'sequential'}  # trained_judge_test.py, self_edits_test.py
  assert {case.split()[0] for case in CASES} == set(TABLE) - trained - {'lm_eval'}  # harness_test.py


@pytest.fixture(scope='module')
def results(mesh):
  """(metrics, samples, ticks, calls promised) of each; computed once."""
  out = {}
  for case in CASES:
    ticks, evaluation = [], made(mesh, case)
    out[case] = (*run(evaluation, lambda x, ticks=ticks: ticks.append(1) or x), len(ticks), evaluation.calls)
  return out


@pytest.mark.parametrize('case', CASES)
def test_metrics_are_finite_numbers_under_one_name(results, case):
  metrics, _, _, _ = results[case]
  assert metrics and len({name.split('/')[0] for name in metrics}) == 1
  assert all(isinstance(value, int | float) and np.isfinite(value) for value in metrics.values())
  shares = {name for name in metrics if f'{name}/n' in metrics}
  assert shares and all(0 <= metrics[name] <= 1 for name in shares)
  assert all(metrics[f'{name}/n'] in (2, 3, 5) for name in shares)


@pytest.mark.parametrize('case', CASES)
def test_samples_are_what_the_report_shows(results, case):
  _, samples, _, _ = results[case]
  assert samples and json.loads(json.dumps(samples)) == samples
  for sample in samples:
    assert {'kind', 'question', 'answer', 'output', 'correct'} <= set(sample) and isinstance(sample['correct'], bool)


@pytest.mark.parametrize('case', CASES)
def test_every_device_call_is_counted(results, case):
  _, _, ticks, calls = results[case]
  assert ticks == calls > 1


@pytest.mark.parametrize('case', CASES)
def test_neither_the_chunk_nor_another_run_changes_anything(mesh, results, case):
  metrics, samples, _, _ = results[case]
  evaluation = made(mesh, case, chunk=3)
  for _ in range(2):
    again, seen = run(evaluation)
    assert again == pytest.approx(metrics, abs=1e-5)
    outputs = lambda rows: [(row['output'], row['correct']) for row in rows]
    assert outputs(seen) == outputs(samples)


# --- known answers ------------------------------------------------------------------------------------------------


def test_forced_choice_compares_log_probs(results):
  metrics, _, _, _ = results['forced_choice']
  for kind in ('forward', 'reversed'):
    rows = [
      (np.array([logp(q.question, f' {c}') for c in q.choices]), np.array([1 + len(c) for c in q.choices]))
      for e in EXAMPLES
      for q in e.questions
      if q.kind == kind
    ]
    share = lambda scores: np.mean([s.argmax() == 0 for s in scores])
    gap = lambda scores: np.mean([s[0] - s[1:].mean() for s in scores])
    sums, means = [s for s, _ in rows], [s / n for s, n in rows]
    expected = {'': share(sums), '/per_token': share(means), '/gap': gap(sums), '/gap_per_token': gap(means)}
    expected |= {'/chance': 1 / 3, '/n': len(rows), '/questions': len(rows)}
    found = {name: metrics[f'forced_choice/{kind}{name}'] for name in expected}
    assert found == pytest.approx(expected, abs=1e-4)
  assert 'forced_choice/other' not in metrics  # one answer alone: nothing to choose from


def test_without_choices_others_answers_are_the_wrong_ones(mesh):
  examples = [Example(questions=(Question(f'q{i}?', f'a{i}'),)) for i in range(6)]
  metrics, samples = TABLE['forced_choice'](setting(mesh, examples), distractors=2).run(TABLE_VxV)
  assert metrics['forced_choice/forward/chance'] == pytest.approx(1 / 3)
  assert {s['output'] for s in samples} <= {f'a{i}' for i in range(6)}
  alone = [Example(questions=(Question('q?', 'a'),))]
  with pytest.raises(UserError, match='two different answers'):
    TABLE['forced_choice'](setting(mesh, alone))


def test_equal_log_probs_share_a_point(mesh):
  examples = [Example(questions=(Question('q', 'aa', 'k', ('aa', 'bb', 'cc')),)) for _ in range(2)]
  metrics, _ = TABLE['forced_choice'](setting(mesh, examples)).run(np.zeros((V, V), np.float32))
  assert metrics['forced_choice/k'] == metrics['forced_choice/k/per_token'] == pytest.approx(1 / 3)


def test_multiple_choice_goes_by_the_letter(mesh):
  examples = [Example(questions=(Question(f'q{i}', 'yes', 'k', ('yes', 'no', 'so')),)) for i in range(40)]
  always_a = np.zeros((V, V), np.float32)
  always_a[ord(' '), ord('A')] = 9
  metrics, samples = TABLE['multiple_choice'](setting(mesh, examples, 20)).run(always_a)
  assert 0.1 < metrics['multiple_choice/k'] < 0.6  # the answer's place is not always the first
  assert {s['output'] for s in samples} == {'yes', 'no', 'so'} and metrics['multiple_choice/k/chance'] == 1 / 3


def test_accuracy_extracts_and_counts(mesh):
  table = np.full((V, V), -60, np.float32)
  for a, b, p in [(':', ' ', 1), (' ', '7', 0.7), (' ', '8', 0.3), ('7', '.', 1), ('8', '\n', 1), ('\n', '\n', 1)]:
    table[ord(a), ord(b)] = np.log(p)
  table[ord('.'), TOKENIZER.eos_id] = 0
  examples = [Example(questions=(Question('1+6:', 'it is #### 7.0', 'sum'),)) for _ in range(30)]
  at = setting(mesh, examples, 10, prompt_length=8, answer_length=6)
  greedy, samples = TABLE['accuracy'](at, rule='last_number').run(table)
  assert greedy['accuracy/sum'] == 1 and greedy['accuracy/sum/length'] == 4 and samples[0]['output'] == ' 7.'
  assert greedy['accuracy/sum/n'] == 30
  drawn, _ = TABLE['accuracy'](at, rule='last_number', samples=20, temperature=1.0).run(table)
  assert drawn['accuracy/sum'] == pytest.approx(0.7, abs=0.06) and drawn['accuracy/sum/any'] == 1
  assert drawn['accuracy/sum/length'] == pytest.approx(0.7 * 4 + 0.3 * 6, abs=0.2)
  other, _ = TABLE['accuracy'](at, rule='last_number', samples=20, temperature=1.0, seed=1).run(table)
  assert other['accuracy/sum'] != drawn['accuracy/sum']
  none, _ = TABLE['accuracy'](at, rule='boxed').run(table)
  assert none['accuracy/sum'] == 0 and none['accuracy/sum/unanswered'] == 1
  line, _ = TABLE['accuracy'](at, rule='line', samples=20, temperature=1.0).run(table)
  assert line['accuracy/sum/length'] == pytest.approx(0.7 * 4 + 0.3 * 3, abs=0.2)  # a line break ends it


def test_pairs_against_a_loop_and_against_the_start_of_the_run(mesh, results):
  metrics, samples, _, _ = results['pair_accuracy']
  margins = lambda table: np.array(
    [logp(e.prompt, e.anchors[0], table, end=True) - logp(e.prompt, e.anchors[1], table, end=True) for e in EXAMPLES]
  )
  before = margins(TABLE_VxV)
  assert metrics['pairs/margin'] == pytest.approx(before.mean(), abs=1e-4) and 'pairs/accuracy' not in metrics
  assert metrics['pairs/likelier'] == np.mean(before > 0)
  assert [s['output'] for s in samples] == [e.anchors[0 if m > 0 else 1] for e, m in zip(EXAMPLES, before)]
  trained = TABLE_VxV + np.random.default_rng(1).normal(size=(V, V)).astype(np.float32)
  after, _ = made(mesh, 'pair_accuracy').run(trained, before=samples)
  assert after['pairs/accuracy'] == np.mean(margins(trained) > before) and after['pairs/accuracy/n'] == 5


# --- what users get wrong -----------------------------------------------------------------------------------------

BARE = [Example(prompt='p', questions=(Question('q', ''),), where='rows.jsonl:1')]
WRONG = {
  'rule': (lambda m: TABLE['accuracy'](setting(m), rule='numbers'), "'numbers'.*last_number"),
  'no answer': (lambda m: TABLE['accuracy'](setting(m, BARE)), "has none: 'q'"),
  'no question': (lambda m: TABLE['accuracy'](setting(m, [])), 'questions'),
  'no function': (lambda m: TABLE['accuracy'](setting(m), function='os:nothing'), 'os:nothing'),
  'no choices': (lambda m: TABLE['multiple_choice'](setting(m, BARE)), 'choices'),
  'no pair': (lambda m: TABLE['pair_accuracy'](setting(m, BARE)), 'two given completions'),
  'long prompts': (
    lambda m: TABLE['accuracy'](setting(m, prompt_length=4)),
    'prompt_length=4 is .* 10 of 10',
  ),
  'no improver': (lambda m: TABLE['improvement'](setting(m, improve={}), judges={'a': 'likelihood'}), 'config.improve'),
  'no judge': (lambda m: TABLE['improvement'](setting(m), judges={}), 'judges is empty'),
  'long choices': (lambda m: TABLE['forced_choice'](setting(m, answer_length=3)), 'answer_length=3 .* has 4 tokens'),
}


@pytest.mark.parametrize('case', WRONG)
def test_user_errors_say_what_is_wrong(mesh, case):
  build, message = WRONG[case]
  with pytest.raises(UserError, match=message):
    build(mesh)


def test_closed_book_of_no_answer_is_nothing(mesh):
  evaluation = TABLE['closed_book'](setting(mesh, BARE))
  assert evaluation.run(TABLE_VxV) == ({}, []) and evaluation.calls == 0
