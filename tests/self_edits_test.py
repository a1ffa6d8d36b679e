"""Self-edits: how texts become rows, the judge that tries them, and the evaluations that train on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from past_jax import judges, selects
from past_jax import mesh as mesh_lib
from past_jax.data.grids import Pair, Task, task_example
from past_jax.evals import TABLE
from past_jax.evals.self_edits import gains, means
from past_jax.evals.setting import Setting
from past_jax.grading import contains, exact, f1, verbatim
from past_jax.inner import Asked, Job, runner
from past_jax.judges.inner_update import variance
from past_jax.logps import group_logps
from past_jax.model_grader import TEMPLATE, model_grader
from past_jax.models.transformer import INPUT_AXES
from past_jax.self_edits import Lesson, lesson_of, lines, questions, questions_of, recipe, refuse_long, rows_of, whole
from past_jax.text import byte_tokenizer, pack_completions, pack_prompts
from past_jax.types import Example, Group, Judgement, Prompts, Question, UserError

TOKENIZER = byte_tokenizer()
INNER = dict(
  **dict(documents='lines', document='{prompt}{line}', question='{prompt}{question}', passage=True, grade='exact'),
  **dict(rank=3, alpha=3.0, targets=(), optimizer='adamw', lr=3e-3, schedule='constant', clip=1.0),
  **dict(epochs=2, steps=0, batch=2, rows=4, length=24, questions=2),
  **dict(prompt_length=16, answer_length=6, until='line', chunk=8),
)
EXAMPLES = [
  Example(
    prompt=f'{name}: ',
    text=f'{name} is {what}.',
    questions=(Question('is', what), Question('who?', name, 'reversed')),
    anchors=(f'{what} is {name}.',),
    where=f'data.jsonl:{i + 1}',
  )
  for i, (name, what) in enumerate([('ann', 'red'), ('bo', 'blue'), ('cy', 'pink')])
]
GRIDS = [np.array(grid) for grid in ([[1, 2], [3, 0]], [[2, 1], [0, 3]], [[1, 1], [0, 2]], [[1, 1], [2, 0]])]
EDITS = [['red is ann\nann: red', 'ann', ''], ['bo?', 'bo?', 'blue bo'], ['x', 'y', 'z']]


@pytest.fixture(scope='module')
def one_device():
  return mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])


# --- texts --------------------------------------------------------------------------------------------------------


def test_lines_are_rows_and_a_heading_before_a_list_is_none():
  learned = lambda edit: [text for _, text in lines(edit, EXAMPLES[0]).rows]
  assert learned('a b\n\n  c \n') == ['a b', 'c']
  assert learned('Implications:\n1. a\n2. b') == ['1. a', '2. b']
  assert learned('Implications:\na') == ['a'] and learned('a') == ['a']
  assert learned('') == [] and learned('\n ') == []


def test_a_question_is_a_row_with_what_follows_it():
  text = 'Here they are.\nQuestion 1: who?\nAnswer: ann\n\nQuestion 2: what?\nAnswer: red'
  expected = ['Question 1: who?\nAnswer: ann', 'Question 2: what?\nAnswer: red']
  assert [learned for _, learned in questions(text, EXAMPLES[0]).rows] == expected
  assert [learned for _, learned in questions('Q: who?\nA: ann\nQ: what?', EXAMPLES[0]).rows] == [
    'Q: who?\nA: ann',
    'Q: what?',
  ]
  assert questions('no question', EXAMPLES[0]).rows == []
  assert whole(' a\nb\n', EXAMPLES[0]).rows == [('', 'a\nb')] and whole(' ', EXAMPLES[0]).rows == []


def test_rows_have_the_template_and_the_passage_comes_last():
  text = lambda row: TOKENIZER.decode([i for i in row.ids if i != TOKENIZER.eos_id])
  rows, cut = rows_of(TOKENIZER, INNER, EXAMPLES[0], lines('a c\nb', EXAMPLES[0]))
  assert cut == 0
  assert [text(row) for row in rows] == ['ann: a c', 'ann: b', 'ann: ann is red.']
  assert all(row.ids[-1] == TOKENIZER.eos_id and row.start == 0 for row in rows)
  assert len(rows_of(TOKENIZER, INNER | {'passage': False}, EXAMPLES[0], lines('a c\nb', EXAMPLES[0]))[0]) == 2
  ((row, _), _) = rows_of(TOKENIZER, INNER, EXAMPLES[0], Lesson([('read this', ' learn')]))
  assert TOKENIZER.decode(row.ids[: row.start]) == 'read this' and text(row) == 'read this learn'
  asked = questions_of(TOKENIZER, INNER, EXAMPLES[0])
  assert [TOKENIZER.decode(q.answer) for q in asked] == [' red', ' ann']
  assert TOKENIZER.decode(asked[0].prompt).endswith('ann: is')


def test_a_choice_is_rows_a_rate_and_epochs():
  task = Task((Pair(*GRIDS[:2]), Pair(*GRIDS[2:])), (Pair(*GRIDS[1:3]),), 'here')
  example = task_example(task, 'How?', 'here', 'grids', shown=False)
  inner = INNER | dict(documents='choice', passage=False, batch=2, steps=4)
  choice = 'basic=0 size=0 chain=0 repeat=0 loss=outputs lr=0.01 epochs={}'
  lesson = lesson_of(inner, choice.format(4), example)
  assert (lesson.lr, lesson.epochs, len(lesson.rows)) == (0.01, 4, 2)
  (first, _), _ = rows_of(TOKENIZER, inner, example, lesson)
  assert TOKENIZER.decode(first.ids[: first.start]) == '12/30>'
  assert TOKENIZER.decode([i for i in first.ids[first.start :] if i != TOKENIZER.eos_id]) == ' 21/03'
  assert lesson_of(inner, choice.format(5), example) is None  # five steps
  assert lesson_of(inner, 'basic=1', example) is None


def test_the_passage_stays_when_rows_are_left_out_and_what_is_cut_is_counted():
  long = 'a line of more than twenty-four tokens'
  edit = '\n'.join(['a b', long, 'c d', 'e f', 'g h'])
  rows, cut = rows_of(TOKENIZER, INNER, EXAMPLES[0], lines(edit, EXAMPLES[0]))
  text = lambda row: TOKENIZER.decode([i for i in row.ids if i != TOKENIZER.eos_id])
  assert [text(row) for row in rows] == ['ann: a b', f'ann: {long}', 'ann: c d', 'ann: ann is red.']  # of four
  assert cut == 3  # two are left out, one is longer than a row
  blocks = INNER | {'documents': 'blocks'}
  rows, cut = rows_of(TOKENIZER, blocks, EXAMPLES[0], lesson_of(blocks, long, EXAMPLES[0]))
  joined = ''.join(TOKENIZER.decode([i for i in row.ids if i != TOKENIZER.eos_id]) for row in rows)
  assert (cut, joined) == (0, f'ann: {long}ann: ann is red.') and max(len(row.ids) for row in rows) == INNER['length']
  full = lesson_of(blocks, 'x' * (INNER['length'] - len('ann: ')), EXAMPLES[0])
  assert [len(row.ids) for row in rows_of(TOKENIZER, blocks, EXAMPLES[0], full)[0]] == [INNER['length'], 17]
  longer = dataclasses.replace(EXAMPLES[1], text=long * INNER['rows'])
  assert rows_of(TOKENIZER, INNER, longer, Lesson())[1] == 1  # of the passage the head is trained on
  with pytest.raises(UserError, match=r'inner.rows=4 leaves none for an edit: the passage data.jsonl:2 alone takes 7'):
    refuse_long(TOKENIZER, blocks, [EXAMPLES[0], longer])
  unlearned = Lesson([('x' * 24, ' y'), ('x' * 20, ' y')])
  rows, cut = rows_of(TOKENIZER, INNER | {'passage': False}, EXAMPLES[0], unlearned)
  assert len(rows) == 1 and cut == 1
  more = (Question('is', 'far too long'), Question('a', 'b'))
  with pytest.raises(
    UserError, match='answer_length=6 is too short for 1 of 6 answers: the longest, data.jsonl:3, has'
  ):
    refuse_long(TOKENIZER, INNER, [*EXAMPLES[:2], dataclasses.replace(EXAMPLES[2], questions=more)])


@pytest.mark.parametrize(
  ('output', 'answer', 'expected'),
  [
    ('The Red fox.', 'red fox', (1, 1, 1.0, 0)),
    ('it is a red fox, yes\nred fox', 'red fox', (1, 0, 2 * 2 / (5 + 2), 0)),
    ('red', 'red fox', (0, 0, 2 / 3, 0)),
    ('', 'red', (0, 0, 0, 0)),
    ('red', 'the', (0, 0, 0, 0)),
    (' 1 2\n3 4 ', '1 2\n3 4', (0, 0, 2 * 2 / (2 + 4), 1)),
  ],
)
def test_grades(output, answer, expected):
  found = [grade(output, answer) for grade in (contains, exact, f1, verbatim)]
  np.testing.assert_allclose(found, expected)


@pytest.fixture
def words(monkeypatch):
  """Of as many bytes: to a random model the shorter word is always likelier."""
  monkeypatch.setattr('past_jax.model_grader.WORDS', (' oui', ' non'))
  return ' oui', ' non'


def test_a_model_grades_by_the_likelier_of_yes_and_no(policy, params, words, monkeypatch):
  grade = model_grader(policy=policy, tokenizer=TOKENIZER, inner=INNER)
  asked = [(f'what is {q}?', output, 'red') for q in ('ann', 'bo', 'cy', 'di') for output in ('red', 'a red', 'x', '')]
  found = grade(params, asked * 2)
  assert set(found) == {0.0, 1.0} and found[: len(asked)] == found[len(asked) :]
  assert [x for x, (_, output, _) in zip(found, asked) if not output] == [0.0] * 4
  for x, (question, output, answer) in list(zip(found, asked))[:8]:
    text = TEMPLATE.replace('{question}', question).replace('{answer}', answer).replace('{output}', output)
    ids = np.array(TOKENIZER.encode(text, start=True))[None]
    prompt = Prompts(ids, np.array([ids.size]))
    said = [np.array([[TOKENIZER.encode(word)]]) for word in words]
    yes, no = (float(group_logps(policy, params, prompt, ids, np.array([[ids.size]])).sum()) for ids in said)
    assert x == float(yes > no) if output else x == 0
  for same in ((' yes', ' yes'), (' yes', ' no')):  # the shorter would win
    monkeypatch.setattr('past_jax.model_grader.WORDS', same)
    with pytest.raises(UserError, match='different words of as many tokens'):
      model_grader(policy=policy, tokenizer=TOKENIZER, inner=INNER)


# --- the judge ----------------------------------------------------------------------------------------------------


def group_of(edits) -> Group:
  rows = [[TOKENIZER.encode(text) + [TOKENIZER.eos_id] * (text != '') for text in row] for row in edits]
  ids, length, _ = pack_completions(rows, 24)
  prompts = Prompts(*pack_prompts([TOKENIZER.plain(e.text) for e in EXAMPLES], 24)[:2])
  zeros = np.zeros(ids.shape, np.float32)
  return Group(prompts, ids, length, length > 0, zeros, zeros, np.zeros(length.shape, np.int32))


def judge(policy, mesh, inner=INNER, **keys):
  resources = dict(policy=policy, tokenizer=TOKENIZER, mesh=mesh, inner=inner, input_axes=INPUT_AXES)
  return judges.TABLE['inner_update'](**keys, **resources)


@pytest.fixture(scope='module')
def judged(policy, params, one_device):
  made = judge(policy, one_device, seeds=3, reward='logp')
  return jax.device_get(made.score({'policy': params}, jax.random.key(3), group_of(EDITS), EXAMPLES))


def test_a_score_is_the_mean_over_runs_of_an_edit_alone(policy, params, one_device, judged):
  shape = dataclasses.replace(recipe(INNER), chunk=1)
  options = dict(policy=policy, tokenizer=TOKENIZER, mesh=one_device, recipe=shape, input_axes=INPUT_AXES)
  run, first = runner(**options).run, int(jax.random.randint(jax.random.key(3), (), 0, 1 << 30))
  for b, g in ((0, 0), (1, 2)):
    lesson = lines(EDITS[b][g], EXAMPLES[b])
    rows, asked = rows_of(TOKENIZER, INNER, EXAMPLES[b], lesson)[0], questions_of(TOKENIZER, INNER, EXAMPLES[b])
    values = [np.mean(run(params, [Job(rows, asked, first + i)])[0].logps) for i in range(3)]
    np.testing.assert_allclose(judged.score_BxG[b, g], np.mean(values), rtol=1e-4)
  losses = run(params, [Job(rows, asked, first)])[0].losses
  np.testing.assert_allclose(judged.info['inner_loss'][1, 2, 0], losses[0], rtol=0.1)
  base = run(params, [Job((), (Asked(*asked[0]),))])[0]
  assert base.logps[0] != judged.score_BxG[1, 2]


def test_what_is_judged(judged):
  assert np.isnan(judged.score_BxG[0, 2]) and np.isfinite(np.delete(judged.score_BxG.ravel(), 2)).all()
  assert judged.score_BxG[1, 0] == judged.score_BxG[1, 1]  # the same text, the same seeds
  assert judged.var_BxG.shape == (3, 3) and (judged.var_BxG >= 0).all() and judged.var_BxG[2].max() > 0
  assert judged.info['before'].shape == (3, 3, 2) == judged.info['after'].shape
  assert judged.info['inner_loss'].shape == (3, 3, 4)  # 3 rows in pairs, twice
  assert np.isnan(judged.info['inner_loss'][0, 1, 2:]).all()  # 2 rows: one step an epoch
  np.testing.assert_allclose(judged.info['gain'][2], judged.info['accuracy'][2] - judged.info['before'][2, 0].mean())


def test_an_edit_that_cannot_be_read_scores_nothing_and_another_role_can_learn(policy, params, one_device, monkeypatch):
  from past_jax import self_edits

  refuse = lambda edit, example: None if edit == 'x' else lines(edit, example)
  monkeypatch.setitem(self_edits.DOCUMENTS, 'lines', refuse)
  made = judge(policy, one_device, seeds=1, role='base')
  assert not made.on_current_policy and judge(policy, one_device).on_current_policy
  found = made.score({'base': params}, jax.random.key(0), group_of(EDITS), EXAMPLES)
  assert found.score_BxG[2, 0] == 0 == found.info['accuracy'][2, 0] and found.info['unread'][2, 0] == 1
  assert found.info['unread'].sum() == 1 and found.var_BxG is None  # of one seed nothing is known
  by_logp = judge(policy, one_device, seeds=1, role='base', reward='logp')
  logps = by_logp.score({'base': params}, jax.random.key(0), group_of(EDITS), EXAMPLES)
  shape = dict(policy=policy, tokenizer=TOKENIZER, mesh=one_device, recipe=recipe(INNER), input_axes=INPUT_AXES)
  base = runner(**shape).run(params, [Job((), tuple(questions_of(TOKENIZER, INNER, EXAMPLES[2])))])[0]
  np.testing.assert_allclose(logps.score_BxG[2, 0], np.mean(base.logps), rtol=1e-4)


def test_variance_leaves_out_what_a_seed_does_to_all():
  rng = np.random.default_rng(0)
  own = rng.normal(0, 0.3, (4000, 5, 3))
  shared = rng.normal(0, 2.0, (4000, 1, 3)) + rng.normal(0, 1.0, (4000, 5, 1))
  found = np.array([variance(values) for values in own + shared])
  np.testing.assert_allclose(found.mean(), 0.09 / 3, rtol=0.03)
  np.testing.assert_allclose(variance(own[:1, 0]), own[0, 0].var(ddof=1) / 3)
  assert variance(own[0, :, :1]).tolist() == [0.0] * 5


def test_noise_is_the_share_of_chance():
  rng = np.random.default_rng(0)
  true, error = rng.normal(0, 1.0, (3000, 5)), rng.normal(0, 0.5, (3000, 5))
  judgement = Judgement(jnp.asarray(true + error, jnp.float32), jnp.full((3000, 5), 0.25))
  np.testing.assert_allclose(selects.noise(judgement, jnp.ones((3000, 5), bool)), 0.25 / 1.25, rtol=0.05)
  same = Judgement(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
  assert selects.noise(same, jnp.ones((2, 3), bool)) == 0 == selects.noise(same, jnp.zeros((2, 3), bool))


def test_what_the_judge_needs_is_said(policy, params, one_device):
  with pytest.raises(UserError, match='needs the section config.inner'):
    judge(policy, one_device, inner={})
  with pytest.raises(UserError, match="config.inner.grade='right': choose one of contains, exact, f1, verbatim"):
    judge(policy, one_device, inner=INNER | {'grade': 'right'})
  bare = [dataclasses.replace(e, questions=()) for e in EXAMPLES]
  with pytest.raises(UserError, match=r'data.jsonl:1: judge inner_update asks the questions of a row'):
    judge(policy, one_device).score({'policy': params}, jax.random.key(0), group_of(EDITS), bare)


# --- evaluations --------------------------------------------------------------------------------------------------

VIEW = dict(instruction='{text}\nNotes:', prompt_length=24, chat=False)


@pytest.fixture(scope='module')
def setting(policy, one_device):
  asked = [(i, q) for i, e in enumerate(EXAMPLES) for q in e.questions]
  options = dict(view=VIEW, inner=INNER, input_axes=INPUT_AXES, chunk=4)
  return Setting(policy, TOKENIZER, one_device, EXAMPLES, asked, **options)


def test_arms_of_single_passages(policy, params, one_device, setting):
  evaluation = TABLE['self_edits'](setting, arms=('base', 'passage', 'own', 'given'), seeds=2, length=12)
  ticks = []
  metrics, samples = evaluation.run(params, lambda x: ticks.append(0) or x)
  assert len(ticks) == evaluation.calls
  options = dict(policy=policy, tokenizer=TOKENIZER, mesh=one_device, recipe=recipe(INNER), input_axes=INPUT_AXES)
  run = runner(**options).run
  asked = [questions_of(TOKENIZER, INNER, e) for e in EXAMPLES]
  texts = {'passage': [''] * 3, 'given': [e.anchors[0] for e in EXAMPLES]}
  for arm, edits in texts.items():
    rows = [rows_of(TOKENIZER, INNER, e, lines(edit, e))[0] for e, edit in zip(EXAMPLES, edits)]
    found = [run(params, [Job(r, q, seed) for seed in range(2)]) for r, q in zip(rows, asked)]
    logps = np.mean([outcome.logps for runs in found for outcome in runs])
    np.testing.assert_allclose(metrics[f'self_edits/{arm}/logp'], logps, rtol=1e-3)
  base = [run(params, [Job((), q)])[0].logps for q in asked]
  np.testing.assert_allclose(metrics['self_edits/base/logp'], np.mean(base), rtol=1e-5)
  of = lambda arm: metrics[f'self_edits/{arm}/accuracy']
  assert metrics['self_edits/own/over_passage'] == pytest.approx(of('own') - of('passage'))
  assert metrics['self_edits/given/over_own'] == pytest.approx(of('given') - of('own'))
  assert 'self_edits/given/over_own_stderr' in metrics
  assert metrics['self_edits/n'] == 3 and metrics['self_edits/questions'] == 6
  assert metrics['self_edits/own/logp'] != metrics['self_edits/passage/logp']
  assert {'forward', 'reversed'} < {name.rpartition('/')[2] for name in metrics}
  assert len(samples) == 4 * 6


def test_errors_are_those_of_means_over_passages():
  grades = {'base': [[0, 1, 1], [0, 0], [1, 0]], 'own': [[1, 1, 1], [0, 1], [0, 0]]}
  each = {arm: np.array([np.mean(own) for own in rows]) for arm, rows in grades.items()}
  found = gains('x', grades)
  assert found['x/own/over_base'] == pytest.approx(np.mean(each['own'] - each['base']))
  assert found['x/own/over_base_stderr'] == pytest.approx(scipy.stats.sem(each['own'] - each['base']))
  metrics = means('x/own', EXAMPLES, grades['own'], grades['own'])
  assert metrics['x/own/stderr'] == pytest.approx(scipy.stats.sem(each['own']))
  assert not any('stderr' in name for name in means('x', EXAMPLES[:1], [[1, 0]], [[1, 0]]))


def test_a_frozen_model_grades_the_answers(policy, params, one_device, setting, words):
  inner, other = INNER | {'grade': 'model', 'passage': False}, jax.tree.map(lambda x: 0.5 * x, params)
  evaluation = TABLE['self_edits'](setting._replace(inner=inner), arms=('base', 'given'), length=12)
  assert evaluation.roles == ('policy', 'base')
  metrics, samples = evaluation.run(params, other)
  grade = model_grader(policy=policy, tokenizer=TOKENIZER, inner=inner)
  expected = grade(other, [(s['question'], s['output'], s['answer']) for s in samples])
  assert np.mean(expected[:6]) == pytest.approx(metrics['self_edits/base/micro'])
  assert np.mean(expected[6:]) == pytest.approx(metrics['self_edits/given/micro'])
  scores = judge(policy, one_device, inner=inner, seeds=1).score(
    {'policy': params, 'base': other}, jax.random.key(3), group_of(EDITS), EXAMPLES
  )
  assert len(set(expected)) == 2
  np.testing.assert_array_equal(scores.info['before'][:, 0].ravel(), expected[:6])
  shapes = {'policy': params, 'base': other}
  assert 'dot' in judge(policy, one_device, inner=inner, seeds=1).lower['judge: grade'](shapes, None).as_text()


def test_all_passages_in_one_run(policy, params, one_device, setting):
  evaluation = TABLE['continued'](setting, arms=('base', 'given'), edits=1, rank=0, lr=1e-3, epochs=2, batch=2)
  ticks = []
  metrics, _ = evaluation.run(params, lambda x: ticks.append(0) or x)
  assert len(ticks) == evaluation.calls
  rows = [row for e in EXAMPLES for row in rows_of(TOKENIZER, INNER, e, whole(e.anchors[0], e))[0]]
  shape = recipe(INNER, rank=0, lr=1e-3, epochs=2, batch=2, rows=6)
  learn = runner(policy=policy, tokenizer=TOKENIZER, mesh=one_device, recipe=shape, input_axes=INPUT_AXES)
  asked = [q for e in EXAMPLES for q in questions_of(TOKENIZER, INNER, e)]
  expected = learn.run(params, [Job(rows, asked)])[0]
  np.testing.assert_allclose(metrics['continued/given/logp'], np.mean(expected.logps), rtol=1e-3)
  assert metrics['continued/given/steps'] == 6 and metrics['continued/base/steps'] == 0
  assert metrics['continued/given/tokens'] == 2 * sum(len(row.ids) for row in rows)
  assert metrics['continued/given/rows_cut'] == 0
  long = [dataclasses.replace(e, anchors=('x ' * 20,)) for e in EXAMPLES]
  for documents, cut, tokens in (('whole', 1, 24), ('blocks', 0, None)):
    options = dict(arms=('given',), edits=1, rank=0, epochs=1, batch=2, documents=documents)
    metrics, _ = TABLE['continued'](setting._replace(examples=long), **options).run(params, lambda x: x)
    notes = sum(tokens or len(TOKENIZER.encode(f'{e.prompt}{e.anchors[0].strip()}', start=True)) + 1 for e in long)
    passages = sum(len(TOKENIZER.encode(f'{e.prompt}{e.text}', start=True)) + 1 for e in long)
    assert (metrics['continued/given/rows_cut'], metrics['continued/given/tokens']) == (cut, notes + passages)


def test_edits_one_after_another(policy, params, one_device, setting):
  evaluation = TABLE['sequential'](setting, arms=('plain', 'replay', 'kl'), edits='given', passages=3, sequences=1)
  ticks = []
  metrics, _ = evaluation.run(params, lambda x: ticks.append(0) or x)
  assert len(ticks) == evaluation.calls
  for arm in ('plain', 'replay', 'kl'):
    matrix = np.array([[metrics[f'sequential/{arm}/{i}/{j}'] for j in range(3)] for i in range(4)])
    own = matrix[[1, 2, 3], [0, 1, 2]]
    np.testing.assert_allclose(metrics[f'sequential/{arm}/learned'], own.mean())
    np.testing.assert_allclose(metrics[f'sequential/{arm}/final'], matrix[-1].mean())
    np.testing.assert_allclose(metrics[f'sequential/{arm}/retained'], (matrix[-1] - own)[:2].mean())
    np.testing.assert_allclose(metrics[f'sequential/{arm}/first'], matrix[3, 0] - matrix[1, 0])
    np.testing.assert_allclose(metrics[f'sequential/{arm}/first_gain'], matrix[3, 0] - matrix[0, 0])
  with pytest.raises(UserError, match='2 sequences of 3 passages need 6 rows, and there are 3'):
    TABLE['sequential'](setting, passages=3, sequences=2)


def test_what_the_evaluations_need_is_said(setting):
  with pytest.raises(UserError, match='the section config.inner is missing'):
    TABLE['self_edits'](setting._replace(inner={}))
  with pytest.raises(UserError, match=r"arms=\('basis',\): choose from base, passage, own, given"):
    TABLE['self_edits'](setting, arms=('basis',))
  bare = [dataclasses.replace(e, anchors=()) for e in EXAMPLES[:2]] + EXAMPLES[2:]
  with pytest.raises(UserError, match='2 of 3 rows have no anchors, data.jsonl:1 first'):
    TABLE['continued'](setting._replace(examples=bare), arms=('given',))
  for keys, message in ((dict(batch=0), 'batch=0 must be'), (dict(rank=8, alpha=0), 'rank=8, alpha=0: ')):
    with pytest.raises(UserError, match=message):
      TABLE['continued'](setting, **keys)
  with pytest.raises(UserError, match='passages=0 must be at least 1'):
    TABLE['sequential'](setting, passages=0)
  with pytest.raises(UserError, match='config.inner.passage is off'):
    TABLE['self_edits'](setting._replace(inner=INNER | {'passage': False}))
  with pytest.raises(UserError, match=r"arms=\('pure',\): choose from plain, replay, kl"):
    TABLE['sequential'](setting, arms=('pure',), passages=1, sequences=1)
  odd = [dataclasses.replace(e, questions=(Question('is', 'x', 'micro'),)) for e in EXAMPLES]
  with pytest.raises(UserError, match="questions of the kind 'micro' would hide the figure"):
    TABLE['self_edits'](setting._replace(examples=odd))
