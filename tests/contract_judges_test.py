"""Every judge keeps the contract, and the known answers of each are those of an independent float64 loop.

The model is one that a loop can repeat: the logits of the next token are the sum of a table's rows for all tokens
before it, each times 0.9 per token passed since. A new judge is one more line in JUDGES.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from past_jax.answers import extract
from past_jax.judges import TABLE
from past_jax.text import byte_tokenizer, pack_completions, pack_prompts
from past_jax.types import Example, Group, Policy, Prompts, Question, UserError

TOKENIZER = byte_tokenizer()
WITH_BOS = byte_tokenizer(adds_bos=True)
V = TOKENIZER.vocab_size
DECAY = 0.9
KEY = jax.random.key(0)


def history_policy(traces=None) -> Policy:
  def group(params, prompts, ids_BxGxT, length_BxG):
    if traces is not None:
      traces.append(ids_BxGxT.shape)
    P = prompts.ids_BxP.shape[1]
    age = P - 1 - jnp.arange(P)
    faded = jnp.where(age[None] < prompts.length_B[:, None], DECAY ** age[None], 0.0)
    seen_BxV = (jax.nn.one_hot(prompts.ids_BxP, V) * faded[..., None]).sum(1)
    T = ids_BxGxT.shape[2]
    gap = jnp.arange(T)[:, None] - 1 - jnp.arange(T)[None]
    own = jnp.einsum('ts,bgsv->bgtv', jnp.where(gap >= 0, DECAY**gap, 0.0), jax.nn.one_hot(ids_BxGxT, V))
    return own + seen_BxV[:, None, None] * (DECAY ** jnp.arange(T))[None, None, :, None]

  def no_part(*args):
    raise AssertionError('judges score groups only')

  groups = lambda params, batches: [group(params, *batch) for batch in batches]
  return Policy(no_part, no_part, groups, lambda params, hidden: hidden @ params, *[no_part] * 4)


TABLE_VxV = np.asarray(jax.random.normal(jax.random.key(7), (V, V)), np.float32) * 0.5
JUDGE_VxV = np.where(np.isin(np.arange(V), list(b' |'))[:, None], 0, TABLE_VxV[::-1])  # only letters and digits matter
WEIGHTS = {'base': jnp.asarray(TABLE_VxV), 'judge': jnp.asarray(JUDGE_VxV)}


def oracle(prompt, ids, table=TABLE_VxV):
  """Log-prob of every id after `prompt`, one by one in float64; an id that follows nothing has none: 0."""
  out, past = [], list(prompt)
  for i in ids:
    if not past:
      out.append(0.0)
    else:
      logits = DECAY ** np.arange(len(past))[::-1] @ table[past].astype(np.float64)
      out.append(logits[i] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    past.append(i)
  return np.array(out)


def make_group(prompts, completions, P=12, T=20, eos=True, tokenizer=TOKENIZER) -> Group:
  """Completions as texts; '' has no token at all."""
  rows = [[tokenizer.encode(c) + [tokenizer.eos_id] * (eos and c != '') for c in row] for row in completions]
  ids, length, _ = pack_completions(rows, T)
  prompt_ids, prompt_length, _ = pack_prompts([tokenizer.plain(p) for p in prompts], P)
  zeros = np.zeros(ids.shape, np.float32)
  return Group(
    prompts=Prompts(prompt_ids, prompt_length),
    ids_BxGxT=ids,
    length_BxG=length,
    finished_BxG=np.full(length.shape, eos) & (length > 0),
    logps_BxGxT=zeros,
    behaviour_logps_BxGxT=zeros,
    source_BxG=np.zeros(length.shape, np.int32),
  )


COMPLETIONS = [
  ['ann ran 3', 'who ran? ann', '', 'x 12'],
  ['bo sang', 'he sang 7', 'sang: bo', 'sang: bo'],
  ['cow', 'a cup of tea', 'tea, by cy 5', 'no'],
]
PROMPTS = ['Note:', '', 'Long prompt']
EXAMPLES = [
  Example(
    prompt=f'p{i}',
    text=text,
    target=f'{text} 12',
    questions=(Question('who?', name), Question('what did they do?', 'it')),
    where=f'data.jsonl:{i + 1}',
  )
  for i, (text, name) in enumerate([('ann won it', 'ann'), ('bo made one', 'bo'), ('cy met him', 'cy')])
]


def letters(completion, example):
  return None if '7' in completion else float(completion.count('a')) + len(example.text)


MODEL = {'policy': history_policy(), 'chunk': 4}
GAIN = MODEL | {'tokenizer': TOKENIZER, 'target_length': 24}
JUDGES = {
  'likelihood': lambda: TABLE['likelihood'](**MODEL),
  'length_normalised': lambda: TABLE['length_normalised'](**MODEL),
  'majority': lambda: TABLE['majority'](rule='line', **MODEL, tokenizer=TOKENIZER),
  'majority likelihood': lambda: TABLE['majority'](rule='line', weight='likelihood', **MODEL, tokenizer=TOKENIZER),
  'likelihood_gain': lambda: TABLE['likelihood_gain'](**GAIN),
  'likelihood_gain target': lambda: TABLE['likelihood_gain'](target='target', **GAIN),
  'likelihood_gain answers': lambda: TABLE['likelihood_gain'](target='answers', **GAIN),
  'likelihood_gain bos': lambda: TABLE['likelihood_gain'](**GAIN | {'tokenizer': WITH_BOS}),
  'text regex': lambda: TABLE['text'](pattern='s.n', tokenizer=TOKENIZER),
  'text exact': lambda: TABLE['text'](rule='exact', tokenizer=TOKENIZER),
  'text numeric': lambda: TABLE['text'](rule='numeric', tokenizer=TOKENIZER),
  'text function': lambda: TABLE['text'](rule='function', function=letters, tokenizer=TOKENIZER),
  'preference': lambda: TABLE['preference'](
    role='judge', template='{text}|{a}|{b}', prompt_length=64, **MODEL, tokenizer=TOKENIZER
  ),
  'rubric': lambda: TABLE['rubric'](
    role='judge',
    template='{text}|{completion}|{criterion}',
    criteria=('use', 'truth'),
    marks=(' 1', ' 2', ' 9'),
    prompt_length=64,
    **MODEL,
    tokenizer=TOKENIZER,
  ),
  'tool': lambda: TABLE['tool'](rule='last_number', tokenizer=TOKENIZER),
  'order': lambda: of_given(TABLE['order']()),
  'random': lambda: TABLE['random'](),
  'constant': lambda: TABLE['constant'](2.0),
}


def of_given(judge):
  given = lambda group: dataclasses.replace(group, source_BxG=np.full_like(group.source_BxG, -1))
  return judge._replace(score=lambda weights, key, group, examples: judge.score(weights, key, given(group), examples))


def test_every_judge_of_the_table_is_in_the_battery():
  assert {name.split()[0] for name in JUDGES} == set(TABLE) - {
    'reward',
    'inner_update',
  }  # trained_judge_test.py, self_edits_test.py


@pytest.fixture(scope='module')
def scored():
  """What each judge says of the same group; computed once."""
  group = make_group(PROMPTS, COMPLETIONS)
  built = {}

  def get(name):
    if name not in built:
      judge = JUDGES[name]()
      built[name] = group, judge, jax.device_get(judge.score(WEIGHTS, KEY, group, EXAMPLES))
    return built[name]

  return get


def same(a, b):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)  # NaN equals NaN


@pytest.mark.parametrize('name', JUDGES)
def test_shapes_and_dtypes(scored, name):
  group, judge, judgement = scored(name)
  B, G = group.length_BxG.shape
  assert judgement.score_BxG.shape == (B, G) and judgement.score_BxG.dtype == jnp.float32
  assert not np.isinf(judgement.score_BxG).any()
  assert np.isfinite(judgement.score_BxG).any()
  assert all(x.shape == (B, G) and x.dtype == jnp.float32 for x in judgement.info.values())
  assert judge.on_current_policy is False


@pytest.mark.parametrize('name', [name for name in JUDGES if name not in ('random', 'order')])
def test_permuting_members_permutes_scores(scored, name):
  group, judge, judgement = scored(name)
  order = np.array([2, 0, 3, 1])
  moved = {f: getattr(group, f)[:, order] for f in ('ids_BxGxT', 'length_BxG', 'finished_BxG', 'source_BxG')}
  again = judge.score(WEIGHTS, KEY, dataclasses.replace(group, **moved), EXAMPLES)
  same(again.score_BxG, judgement.score_BxG[:, order])
  for info in judgement.info:
    same(again.info[info], judgement.info[info][:, order])
  if judgement.wins_BxGxG is not None:
    same(again.wins_BxGxG, judgement.wins_BxGxG[:, order][:, :, order])


@pytest.mark.parametrize('name', JUDGES)
def test_padding_and_what_is_in_it_do_not_matter(scored, name):
  group, judge, judgement = scored(name)
  beyond = np.arange(20)[None, None] >= group.length_BxG[:, :, None]
  before = np.arange(12)[None] < 12 - group.prompts.length_B[:, None]
  ids, prompt_ids = np.where(beyond, 65, group.ids_BxGxT), np.where(before, 66, group.prompts.ids_BxP)
  padded = dataclasses.replace(
    group,
    prompts=Prompts(np.pad(prompt_ids, ((0, 0), (2, 0)), constant_values=66), group.prompts.length_B),
    ids_BxGxT=np.pad(ids, ((0, 0), (0, 0), (0, 3)), constant_values=65),
  )
  same(judge.score(WEIGHTS, KEY, padded, EXAMPLES).score_BxG, judgement.score_BxG)


@pytest.mark.parametrize('name', JUDGES)
def test_batch_mates_do_not_matter(scored, name):
  group, judge, judgement = scored(name)
  alone = judge.score(WEIGHTS, KEY, jax.tree.map(lambda x: x[:1], group), EXAMPLES[:1])
  same(alone.score_BxG, judgement.score_BxG[:1])


@pytest.mark.parametrize('name', JUDGES)
def test_the_same_key_gives_the_same_bits(scored, name):
  group, judge, judgement = scored(name)
  for a, b in zip(jax.tree.leaves(judgement), jax.tree.leaves(judge.score(WEIGHTS, KEY, group, EXAMPLES)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  'name', [name for name in JUDGES if name not in ('random', 'constant') and 'text ' not in name]
)
def test_an_empty_completion_abstains(scored, name):
  group, _, judgement = scored(name)
  assert np.isnan(judgement.score_BxG[0, 2])


@pytest.mark.parametrize('name', JUDGES)
def test_a_group_of_one(scored, name):
  judgement = scored(name)[1].score(WEIGHTS, KEY, make_group(['q'], [['one 12']]), EXAMPLES[:1])
  assert judgement.score_BxG.shape == (1, 1)
  assert np.isnan(judgement.score_BxG[0, 0]) == (name == 'preference')  # no opponent


# --- known answers ------------------------------------------------------------------------------------------------


def test_the_order_of_what_was_given_is_its_score():
  group = make_group(PROMPTS, COMPLETIONS)
  source = np.array([[-1, -1, -1, 0], [-1, -1, -2, -2], [0, 0, 0, -1]], np.int32)
  found = TABLE['order']().score(WEIGHTS, KEY, dataclasses.replace(group, source_BxG=source), EXAMPLES).score_BxG
  nan = float('nan')  # the empty one, whose place counts, those that were sampled, those of another prompt
  np.testing.assert_array_equal(found, [[2, 1, nan, nan], [1, 0, nan, nan], [nan, nan, nan, 0]])


@pytest.mark.parametrize('per_token', [False, True])
def test_likelihood_is_the_loop(scored, per_token):
  group, _, judgement = scored('length_normalised' if per_token else 'likelihood')
  for b, prompt in enumerate(PROMPTS):
    for g, completion in enumerate(COMPLETIONS[b]):
      ids = TOKENIZER.encode(completion) + [TOKENIZER.eos_id]
      if completion:
        tokens = len(ids) - (prompt == '')  # nothing predicts the first token after an empty prompt
        expected = oracle(TOKENIZER.encode(prompt), ids).sum() / (tokens if per_token else 1)
        np.testing.assert_allclose(judgement.score_BxG[b, g], expected, rtol=1e-5)


@pytest.mark.parametrize('tokenizer', [TOKENIZER, WITH_BOS], ids=['no bos', 'bos'])
@pytest.mark.parametrize('target', ['text', 'target', 'answers'])
def test_likelihood_gain_is_the_loop(tokenizer, target):
  group = make_group(PROMPTS, COMPLETIONS, tokenizer=tokenizer)
  judge = TABLE['likelihood_gain'](target=target, joiner=' / ', **GAIN | {'tokenizer': tokenizer})
  judgement = judge.score(WEIGHTS, KEY, group, EXAMPLES)
  bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
  assert np.isfinite(judgement.score_BxG).sum() == 11  # the loop below compares something
  for b, example in enumerate(EXAMPLES):
    for g, completion in enumerate(COMPLETIONS[b]):
      if not completion:
        continue
      context = bos + list(completion.encode()) + list(b' / ')  # the end token is not part of the context
      gain, tokens = 0.0, 0
      parts = [('', example.text if target == 'text' else example.target)]
      if target == 'answers':
        parts = [(q.question, ' ' + q.answer) for q in example.questions]
      for question, answer in parts:
        ids, start = list((question + answer).encode()), len(question)
        start = max(start, 0 if bos else 1)
        gain += (oracle(context, ids) - oracle(bos, ids))[start:].sum()
        tokens += len(ids) - start
      np.testing.assert_allclose(judgement.score_BxG[b, g], gain, rtol=1e-4, atol=1e-4)
      np.testing.assert_allclose(judgement.info['gain_per_token'][b, g], gain / tokens, rtol=1e-4, atol=1e-5)


VOTES = [
  ['so 7', 'it is 7.0', 'so 7', '8', '', 'no idea'],  # two spellings of one number, two copies, two without an answer
  ['1,000', 'x 1000', '$1000', '999', '1000', '1000.5'],
]


def test_majority_counts_votes():
  group = make_group(['q', 'r'], VOTES)
  group = dataclasses.replace(group, source_BxG=np.array([[0] * 6, [0] * 4 + [-2] * 2], np.int32))
  found = TABLE['majority'](**MODEL, tokenizer=TOKENIZER).score(WEIGHTS, KEY, group, EXAMPLES[:2])
  # the empty one is no member, and neither are those of another prompt; who has no answer still counts as one
  nan = float('nan')
  expected = [[3 / 5, 3 / 5, 3 / 5, 1 / 5, nan, nan], [3 / 4, 3 / 4, 3 / 4, 1 / 4, nan, nan]]
  np.testing.assert_allclose(found.score_BxG, expected, rtol=1e-6)
  assert found.info == {}


def test_majority_by_likelihood_adds_different_completions():
  found = TABLE['majority'](weight='likelihood', **MODEL, tokenizer=TOKENIZER).score(
    WEIGHTS, KEY, make_group(['q', 'r'], VOTES), EXAMPLES[:2]
  )
  p = lambda b, g: np.exp(oracle(b'qr'[b : b + 1], [*VOTES[b][g].encode(), TOKENIZER.eos_id]).sum())
  nan = float('nan')
  seven = p(0, 0) + p(0, 1)  # the copy adds nothing
  thousand = p(1, 0) + p(1, 1) + p(1, 2) + p(1, 4)
  mass = [[seven, seven, seven, p(0, 3), nan, nan], [thousand] * 3 + [p(1, 3), thousand, p(1, 5)]]
  np.testing.assert_allclose(found.score_BxG, np.log(mass), rtol=1e-5)
  np.testing.assert_allclose(found.info['logp'][0, 3], np.log(p(0, 3)), rtol=1e-5)


@pytest.mark.parametrize('keys', [{'rule': 'lines'}, {'weight': 'votes'}])
def test_majority_names_a_wrong_key(keys):
  ((key, value),) = keys.items()
  with pytest.raises(UserError, match=f"judge.{key}='{value}': choose one of"):
    TABLE['majority'](**keys, **MODEL, tokenizer=TOKENIZER)


def test_gain_leaves_the_stop_token_of_the_sampler_out_but_not_the_end_of_a_given_text():
  group = make_group(['q'], [['one\n', 'one\n', 'one']], eos=False)
  group = dataclasses.replace(group, finished_BxG=np.ones((1, 3), bool), source_BxG=np.array([[0, -1, -1]]))
  score = np.asarray(TABLE['likelihood_gain'](**GAIN).score(WEIGHTS, KEY, group, EXAMPLES[:1]).score_BxG[0])
  assert score[0] == score[2] != score[1]


def test_copies_abstain():
  passage = 'the cat sat on the mat'
  completions = ['the cat sat on the mat', 'the cat sat. And a dog ran off', 'mat', 'cow', ' ', '  the cat sat on']
  judgement = TABLE['likelihood_gain'](**GAIN).score(
    WEIGHTS, KEY, make_group(['q'], [completions], T=40), [Example(text=passage)]
  )
  overlap = np.asarray(judgement.info['overlap'][0])
  grams = lambda text: [text[i : i + 4] for i in range(len(text) - 3)]
  expected = np.mean([gram in grams(passage) for gram in grams(completions[1])])
  # shorter than four tokens: one gram, found (mat) or not (cow); blanks around a copy do not hide it
  np.testing.assert_allclose(overlap, [1, expected, 1, 0, 0, 1], rtol=1e-6)
  assert 0 < expected < 0.5
  np.testing.assert_array_equal(np.isnan(judgement.score_BxG[0]), [True, False, True, False, True, True])
  np.testing.assert_array_equal(np.isnan(judgement.info['gain_per_token'][0]), np.isnan(judgement.score_BxG[0]))


def test_max_overlap_itself_does_not_abstain():
  judge = TABLE['likelihood_gain'](ngram=1, **GAIN)
  half, more = 'abxy', 'abcx'
  judgement = judge.score(WEIGHTS, KEY, make_group(['q'], [[half, more]]), [Example(text='abc')])
  np.testing.assert_array_equal(np.isnan(judgement.score_BxG[0]), [False, True])


def test_a_long_target_is_cut_and_counted():
  judge = TABLE['likelihood_gain'](**GAIN | {'target_length': 5})
  group = make_group(['q', 'q'], [['one'], ['one']])
  long, short = (judge.score(WEIGHTS, KEY, group, [Example(text=t)] * 2) for t in ('abcdefgh', 'abcde'))
  same(long.score_BxG, short.score_BxG)
  assert np.asarray(long.info['target_trimmed']).tolist() == [[1], [1]]
  assert np.asarray(short.info['target_trimmed']).tolist() == [[0], [0]]


def test_a_target_without_a_predicted_token_abstains():
  judgement = TABLE['likelihood_gain'](**GAIN).score(WEIGHTS, KEY, make_group(['q'], [['one']]), [Example(text='z')])
  assert np.isnan(judgement.score_BxG[0, 0])


def test_one_program_whatever_the_round_and_equal_rows_once():
  traces = []
  judge = TABLE['likelihood_gain'](**GAIN | {'policy': history_policy(traces), 'target': 'answers'})
  for B in (1, 2, 3):
    group = make_group(PROMPTS[:B], COMPLETIONS[:B])
    judge.score(WEIGHTS, KEY, group, EXAMPLES[:B])
  assert traces == [(4, 1, 24)]
  judge = TABLE['preference'](policy=history_policy(traces), tokenizer=TOKENIZER, chunk=4, prompt_length=64)
  for B in (1, 2, 3):
    judge.score(WEIGHTS, KEY, make_group(PROMPTS[:B], COMPLETIONS[:B]), EXAMPLES[:B])
  assert traces[1:] == [(4, 2, 2)]


def test_gain_of_the_transformer_is_each_row_scored_alone(policy, params):
  completions = ['ann ran 3', 'who', 'a longer note']
  judge = TABLE['likelihood_gain'](**GAIN | {'policy': policy})
  score = judge.score({'base': params}, KEY, make_group(['q'], [completions]), [Example(text='bo sang')]).score_BxG

  ids = list(b'bo sang')
  rows = [list(context) + ids for context in [b'', *(f'{c}\n'.encode() for c in completions)]]
  padded = np.array([row + [0] * (32 - len(row)) for row in rows], np.int32)
  lengths = np.array([len(row) for row in rows])
  logits = np.asarray(jax.jit(lambda p: policy.head(p, policy.rows(p, padded, lengths)))(params), np.float64)
  logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total = [sum(logps[n, len(row) - i - 1, row[-i]] for i in range(1, len(ids))) for n, row in enumerate(rows)]
  np.testing.assert_allclose(score[0], [x - total[0] for x in total[1:]], atol=1e-4)


# --- preference ---------------------------------------------------------------------------------------------------


def test_preference_is_the_loop(scored):
  group, _, judgement = scored('preference')
  log_sigmoid = lambda x: -np.log1p(np.exp(-x))
  ties = np.zeros((3, 4))
  for b, example in enumerate(EXAMPLES):
    wins = np.full((4, 4), 0.5)
    decided = np.zeros((4, 4), bool)
    for i, j in [(i, j) for i in range(4) for j in range(4) if i != j]:

      def odds(x, y, b=b, example=example):
        prompt = list(f'{example.text}|{COMPLETIONS[b][x]}|{COMPLETIONS[b][y]}'.encode())
        return oracle(prompt, list(b' A'), JUDGE_VxV).sum() - oracle(prompt, list(b' B'), JUDGE_VxV).sum()

      there, back = odds(i, j), -odds(j, i)
      if there * back > 0 and COMPLETIONS[b][i] and COMPLETIONS[b][j]:
        wins[i, j] = np.exp(log_sigmoid(np.array([there, back]))).mean()
        decided[i, j] = True
    ties[b] = 1 - decided.sum(1) / 3
    score = [wins[i, decided[i]].mean() if decided[i].any() else np.nan for i in range(4)]
    np.testing.assert_allclose(judgement.wins_BxGxG[b], wins, atol=1e-5)
    np.testing.assert_allclose(judgement.score_BxG[b], score, atol=1e-5)
  np.testing.assert_allclose(judgement.info['ties'], ties, atol=1e-6)
  assert 0 < ties.mean() < 1  # both cases were compared
  same(judgement.wins_BxGxG + judgement.wins_BxGxG.swapaxes(1, 2), np.ones((3, 4, 4)))


def test_a_judge_that_only_sees_position_makes_ties():
  table = np.zeros((V, V), np.float32)
  table[ord('|'), ord('A')] = 3.0  # whatever came before the bar, the first one is better
  judge = TABLE['preference'](template='{a}|{b}|', first='A', second='B', policy=history_policy(), tokenizer=TOKENIZER)
  judgement = judge.score(
    {'base': jnp.asarray(table)}, KEY, make_group(['', ''], [['u', 'v'], ['w', 'w']]), EXAMPLES[:2]
  )
  assert np.isnan(judgement.score_BxG).all()
  np.testing.assert_array_equal(judgement.wins_BxGxG, np.full((2, 2, 2), 0.5))
  np.testing.assert_array_equal(judgement.info['ties'], np.ones((2, 2)))
  np.testing.assert_array_equal(judgement.info['order_disagreement'], np.ones((2, 2)))


def test_long_preference_prompts_are_cut_on_the_left_and_counted():
  kwargs = {'template': '{text}{a}|{b}|', 'prompt_length': 24, 'policy': history_policy(), 'tokenizer': TOKENIZER}
  judge = TABLE['preference'](**kwargs)
  group = make_group(['q'], [['a longer one', 'second']])
  cut, fits = (judge.score(WEIGHTS, KEY, group, [Example(text=text)]) for text in ('x' * 90 + 'abcd', 'abcd'))
  same(cut.wins_BxGxG, fits.wins_BxGxG)
  assert np.asarray(cut.info['prompt_trimmed']).tolist() == [[1, 1]]
  assert np.asarray(fits.info['prompt_trimmed']).tolist() == [[0, 0]]


def test_text_in_braces_is_not_a_placeholder():
  judge = TABLE['preference'](template='{text}|{a}|{b}', policy=history_policy(), tokenizer=TOKENIZER)
  judgement = judge.score(WEIGHTS, KEY, make_group(['q'], [['{b}', '{text}{z}']]), [Example(text='{a} }{')])
  assert judgement.score_BxG.shape == (1, 2)


# --- text ---------------------------------------------------------------------------------------------------------


def text_scores(completions, target='', **kwargs):
  judge = TABLE['text'](**kwargs, tokenizer=TOKENIZER)
  group = make_group(['q'], [completions], T=60)
  return np.asarray(
    judge.score(WEIGHTS, KEY, group, [Example(text='t', target=target, where='d.jsonl:4')]).score_BxG[0]
  )


def test_regex_sees_the_text_without_its_end_token():
  assert text_scores(['it ends', 'ends it', ''], pattern='ends$').tolist() == [1, 0, 0]


def test_exact_ignores_white_space_only():
  assert text_scores(['a  b\n', ' a b', 'A b', 'a b.'], 'a b', rule='exact').tolist() == [1, 1, 0, 0]


def test_numeric_compares_values():
  completions = ['so 1,234.50 in all', '12 then 1234.5', '#### 1234.5\nNext: 3', '1234', 'none', '-1234.5']
  assert text_scores(completions, 'sum 7 #### 1,234.5', rule='numeric').tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('#### 42', '42'),
    ('a 3 #### 42. Then 5', '42'),
    ('7 ####', '7'),
    ('is -3', '-3'),
    ('10-5', '5'),
    ('x = .5', '0.5'),
    ('$1,000,000.', '1000000'),
    ('1, 2,3', '3'),
    ('12,34', '34'),
    ('9007199254740993', '9007199254740993'),
    ('3.0', '3'),
    ('no', None),
    ('', None),
  ],
)
def test_number(text, value):
  assert extract(text, 'last_number') == value


def test_function_by_name_and_by_value(tmp_path, monkeypatch):
  (tmp_path / 'my_judge_module.py').write_text(
    'def length(completion, example):\n  return len(completion) or None\nNUMBER = 3\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  named = text_scores(['abc', ''], rule='function', function='my_judge_module:length')
  np.testing.assert_array_equal(named, [3, np.nan])
  given = text_scores(['abc', 'ab'], rule='function', function=lambda completion, example: example.text == 't')
  assert given.tolist() == [1, 1]
  with pytest.raises(UserError, match='my_judge_module:NUMBER.*not a function'):
    TABLE['text'](rule='function', function='my_judge_module:NUMBER', tokenizer=TOKENIZER)
  with pytest.raises(UserError, match='my_judge_module:lenght.*AttributeError'):
    TABLE['text'](rule='function', function='my_judge_module:lenght', tokenizer=TOKENIZER)


def raises(completion, example):
  raise KeyError('oops')


WRONG = {
  'unknown rule': (lambda: TABLE['text'](rule='regexp', tokenizer=TOKENIZER), 'regexp.*regex, exact'),
  'bad pattern': (lambda: TABLE['text'](pattern='(', tokenizer=TOKENIZER), 'judge.pattern'),
  'no pattern': (lambda: TABLE['text'](tokenizer=TOKENIZER), 'judge.pattern is empty'),
  'no module': (
    lambda: TABLE['text'](rule='function', function='nowhere_at_all:f', tokenizer=TOKENIZER),
    'nowhere_at_all',
  ),
  'no colon': (lambda: TABLE['text'](rule='function', function='json', tokenizer=TOKENIZER), 'module:function'),
  'nothing': (lambda: TABLE['text'](rule='function', tokenizer=TOKENIZER), 'module:function'),
  'raises': (lambda: text_scores(['abc'], rule='function', function=raises), "d.jsonl:4.*raises.*'abc'.*oops"),
  'no float': (lambda: text_scores(['abc'], rule='function', function=lambda c, e: 'x'), 'd.jsonl:4.*ValueError'),
  'no target': (lambda: text_scores(['abc'], rule='exact'), 'd.jsonl:4.*target'),
  'no number': (lambda: text_scores(['1'], 'one', rule='numeric'), "d.jsonl:4.*number.*'one'"),
  'unknown target': (lambda: TABLE['likelihood_gain'](target='txt', **GAIN), "'txt'.*text, target, answers"),
  'template': (lambda: TABLE['preference'](template='{a}', policy=MODEL['policy'], tokenizer=TOKENIZER), '{b}'),
  'answers': (
    lambda: TABLE['preference'](first='A', second='A', policy=MODEL['policy'], tokenizer=TOKENIZER),
    'differ',
  ),
}


@pytest.mark.parametrize('case', WRONG)
def test_user_errors_say_what_and_where(case):
  call, message = WRONG[case]
  with pytest.raises(UserError) as error:
    call()
  assert re.search(message, str(error.value), re.S)


@pytest.mark.parametrize('target', ['text', 'target', 'answers'])
def test_gain_names_the_row_without_a_target(target):
  judge = TABLE['likelihood_gain'](target=target, **GAIN)
  with pytest.raises(UserError, match='rows.jsonl:9.*questions' if target == 'answers' else f'rows.jsonl:9.*{target}'):
    judge.score(WEIGHTS, KEY, make_group(['q'], [['one']]), [Example(where='rows.jsonl:9')])


def test_gain_refuses_a_question_longer_than_the_target():
  judge = TABLE['likelihood_gain'](target='answers', **GAIN | {'target_length': 4})
  with pytest.raises(UserError, match='r:1.*target_length=4'):
    judge.score(WEIGHTS, KEY, make_group(['q'], [['one']]), [Example(questions=(Question('whoo', 'x'),), where='r:1')])


# --- controls -----------------------------------------------------------------------------------------------------


def test_random_depends_on_the_key_only_and_is_the_same_jitted():
  group, judge = make_group(PROMPTS, COMPLETIONS), TABLE['random']()
  score = judge.score(WEIGHTS, KEY, group, EXAMPLES).score_BxG
  jitted = jax.jit(lambda key, group: judge.score({}, key, group, None).score_BxG)
  np.testing.assert_array_equal(jitted(KEY, group), score)
  np.testing.assert_array_equal(jitted(KEY, dataclasses.replace(group, ids_BxGxT=group.ids_BxGxT + 1)), score)
  assert len(np.unique(np.concatenate([score.ravel(), jitted(jax.random.key(1), group).ravel()]))) == 24
  assert ((score >= 0) & (score < 1)).all()


def test_constant_is_the_same_jitted():
  group, judge = make_group(PROMPTS, COMPLETIONS), TABLE['constant'](0.25)
  np.testing.assert_array_equal(
    jax.jit(lambda g: judge.score({}, KEY, g, None).score_BxG)(group), np.full((3, 4), 0.25)
  )


def test_rubric_is_the_expected_mark(scored):
  group, _, judgement = scored('rubric')
  marks = [TOKENIZER.encode(mark) for mark in (' 1', ' 2', ' 9')]
  for b, row in enumerate(COMPLETIONS):
    for g, text in enumerate(row):
      if not text:
        assert np.isnan(judgement.score_BxG[b, g])
        continue
      expected = []
      for name in ('use', 'truth'):
        prompt = TOKENIZER.plain(f'{EXAMPLES[b].text}|{text}|{name}')
        p = np.exp([oracle(prompt, ids, JUDGE_VxV).sum() for ids in marks])
        expected.append((p @ [1, 2, 3]) / p.sum())
        np.testing.assert_allclose(judgement.info[name][b, g], expected[-1], rtol=1e-4)
      np.testing.assert_allclose(judgement.score_BxG[b, g], np.mean(expected), rtol=1e-4)


def test_a_rubric_names_what_is_missing():
  make = lambda **keys: TABLE['rubric'](**MODEL, tokenizer=TOKENIZER, **keys)
  with pytest.raises(UserError, match='judge.template lacks {criterion}'):
    make(template='{completion}')
  for keys in (dict(marks=(' 1',)), dict(marks=(' 1', ' 1')), dict(criteria=())):
    with pytest.raises(UserError, match='judge.marks are two or more different texts'):
      make(**keys)
