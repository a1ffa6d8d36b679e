"""Every family through every path against torch, from the same files. `-s` prints the table of largest deviations.

Slow: `pytest -m slow tests/parity_test.py -s`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")

import families  # noqa: E402
import paths  # noqa: E402
import transformers  # noqa: E402

from past_jax import mesh as mesh_lib  # noqa: E402
from past_jax import models  # noqa: E402
from past_jax.models import weights  # noqa: E402
from past_jax.sampler import sample  # noqa: E402
from past_jax.text import pack_completions, pack_prompts  # noqa: E402
from past_jax.types import Prompts  # noqa: E402

pytestmark = pytest.mark.slow

PER_TOKEN, PER_512, RELATIVE, TIE = 1e-5, 1e-3, 1e-4, 1e-4

# Four prompts of up to 72 tokens, one of them empty, with eight completions of up to 24, some of none and some of one:
# rows of 0 to 96 tokens, on both sides of every window and of longrope's limit of 32.
GROUPS = paths.ragged(
  seed=0,
  prompt_lengths=[72, 0, 17, 8],
  completion_lengths=[
    [24, 1, 0, 9, 24, 16, 3, 20],
    [24, 20, 1, 0, 2, 13, 24, 7],
    [0, 24, 12, 1, 19, 24, 5, 15],
    [23, 24, 1, 24, 11, 0, 17, 24],
  ],
  P=72,
  T=24,
)
LONG = paths.ragged(seed=1, prompt_lengths=[24], completion_lengths=[[488]], P=24, T=488)  # one row of 512
GREEDY = 64
CASES = [(name, rope) for name in families.FAMILIES for rope in (('short', 'long') if 'longrope' in name else ('',))]

# Compilation is nearly all of the time here. At this level it takes half of it, and the programs are run but once. Two
# families go through everything as users compile it.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
OPTIMIZED = ('llama', 'gemma2')


class Case:
  """A family, read by us under one choice of rope factors. Each program is compiled once, at its first use."""

  def __init__(self, name, rope, directory, deviations):
    self.name, self.rope, self.directory, self.deviations = name, rope, directory, deviations
    self.model = models.load(str(directory), **({'rope': rope} if rope else {}))
    self.params = self.model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
    policy = self.model.policy
    ways = {'rows': paths.by_rows, 'group': paths.by_group, 'decode': paths.by_decode}
    self.by = {way: jax.jit(functools.partial(score, policy)) for way, score in ways.items()}
    self.jit = jax.jit if name in OPTIMIZED else quick_jit
    self.quick_by = {way: self.jit(functools.partial(score, policy)) for way, score in ways.items()}
    self.sample = self.jit(functools.partial(sample, policy, group=2, length=GREEDY))

  def same_factors(self, row_length):
    """Whether torch, which goes by the length of the row, uses the rope factors that we use for all rows."""
    return not self.rope or (row_length <= families.LONGROPE_SHORT) == (self.rope == 'short')

  def torch_logps(self, prompts, ids_BxGxT, length_BxG):
    """(logps_BxGxT, float64; which rows are comparable, bool_BxG). Each row alone, without padding."""
    B, G, T = ids_BxGxT.shape
    rows = paths.rows_of(prompts, ids_BxGxT, length_BxG)
    whole = iter(families.oracle_logps(self.directory, [row for row in rows if len(row) > 1]))
    out = np.zeros((B, G, T))
    for n, row in enumerate(rows):
      (b, g), logps = divmod(n, G), next(whole) if len(row) > 1 else np.zeros(0)
      start, length = int(prompts.length_B[b]), int(length_BxG[b, g])
      first = 1 if start == 0 else 0  # after an empty prompt the first token has no log-prob
      out[b, g, first:length] = logps[start + first - 1 :][: max(length - first, 0)]
    comparable = np.array([self.same_factors(len(row)) for row in rows]).reshape(B, G)
    assert comparable.any()
    return out, comparable

  def record(self, path, deviation):
    row = self.deviations.setdefault(' '.join([self.name, self.rope]).strip(), {})
    row[path] = max(float(deviation), row[path] if path in row else 0.0)

  def check(self, path, ours, theirs, bound=PER_TOKEN):
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    assert np.isfinite(difference).all()
    self.record(path, difference.max())
    assert difference.max() <= bound, (path, np.unravel_index(difference.argmax(), difference.shape))


@pytest.fixture(scope='module')
def deviations():
  """(family, path) -> the largest deviation seen, printed when all is done."""
  table = {}
  yield table
  columns = list(dict.fromkeys(path for row in table.values() for path in row))
  width = max(map(len, table), default=0)
  print('\n\nlargest deviation from torch; sums: nats of 512 tokens; gradients: relative; agree: between our paths')
  print(' ' * width, *(f'{column:>9}' for column in columns))
  for name, row in table.items():
    print(f'{name:{width}}', *(f'{row[column]:9.1e}' if column in row else ' ' * 9 for column in columns))


@pytest.fixture(scope='module', params=CASES, ids=lambda case: '-'.join(filter(None, case)))
def case(request, deviations, tmp_path_factory):
  name, rope = request.param
  directory = families.make(name, tmp_path_factory.mktemp(name) / 'model', adds_bos=CASES.index(request.param) % 2 == 1)
  return Case(name, rope, directory, deviations)


@pytest.fixture(scope='module')
def expected(case):
  return case.torch_logps(*GROUPS)


@pytest.fixture(scope='module')
def plain(case):
  """Our own row-wise log-probs, which the other paths must repeat whatever torch says."""
  return np.asarray(case.by['rows'](case.params, *GROUPS))


def compare(case, expected, plain, path, ours, members=slice(None)):
  theirs, comparable = (a[:, members] for a in expected)
  case.check(path, np.asarray(ours)[comparable], theirs[comparable])
  case.check('agree', ours, plain[:, members])


def test_rows(case, expected, plain):
  compare(case, expected, plain, 'rows', plain)


def test_a_group_of_eight(case, expected, plain):
  compare(case, expected, plain, 'group 8', case.by['group'](case.params, *GROUPS))


def test_prefill_and_decode(case, expected, plain):
  compare(case, expected, plain, 'decode', case.by['decode'](case.params, *GROUPS))


def test_eight_devices(case, expected, plain):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  with jax.set_mesh(mesh):
    params, batch = case.model.read(mesh), mesh_lib.put_batch(mesh, GROUPS)
    for way in ('group', 'decode'):
      compare(case, expected, plain, '8 devices', case.quick_by[way](params, *batch))


def test_512_tokens_alone(case):
  """G = 1, no pad anywhere."""
  logps = {way: np.asarray(score(case.params, *LONG), np.float64) for way, score in case.quick_by.items()}
  theirs = case.torch_logps(*LONG)[0] if case.same_factors(512) else logps['rows']
  for ours in logps.values():
    case.check('512 alone', ours, theirs)
    case.check('its sum', ours.sum(), theirs.sum(), PER_512)


def sampling_prompts():
  prompts = GROUPS[0]
  return Prompts(prompts.ids_BxP, np.maximum(prompts.length_B, 1))


def test_sampled_log_probs(case):
  prompts = sampling_prompts()
  keys, stops = jax.random.split(jax.random.key(0), 4), jnp.array(case.model.tokenizer.stop_ids)
  group = case.sample(case.params, keys, prompts, 1.0, stops)
  ids, length, logps = map(np.asarray, (group.ids_BxGxT, group.length_BxG, group.logps_BxGxT))
  if case.rope == 'short':  # torch is asked about as much of each row as it reads with these factors
    length = np.minimum(length, np.maximum(families.LONGROPE_SHORT - prompts.length_B, 0)[:, None])
  theirs, comparable = case.torch_logps(prompts, ids, length)
  counted = comparable[:, :, None] & (np.arange(GREEDY) < length[:, :, None])
  case.check('sample', logps[counted], theirs[counted])
  assert len(np.unique(ids)) > 50  # of 512 tokens: the distributions are broad enough to say something


def test_greedy_decoding(case):
  prompts, nothing = sampling_prompts(), jnp.array([-1] * len(case.model.tokenizer.stop_ids))
  group = case.sample(case.params, jax.random.split(jax.random.key(0), 4), prompts, 0.0, nothing)
  compared = 0
  for b in (0, 3):  # the longest prompt, and one within every window
    row = paths.rows_of(prompts, np.zeros((4, 1, 0), np.int32), np.zeros((4, 1), np.int32))[b]
    theirs, gaps = families.oracle_greedy(case.directory, row, GREEDY)
    same = [case.same_factors(len(row) + t) for t in range(GREEDY)]
    n = next((t for t in range(GREEDY) if gaps[t] < TIE or not same[t]), GREEDY)
    assert list(np.asarray(group.ids_BxGxT)[b, 0, :n]) == theirs[:n]
    compared += n
  assert compared >= (20 if case.rope == 'short' else GREEDY)


def test_gradients_of_groups_of_three(case, expected, plain):
  """Of the summed log-prob, through the trainer's path."""
  prompts, ids, length = (GROUPS[0], GROUPS[1][:, :3], GROUPS[2][:, :3])
  rows = paths.rows_of(prompts, ids, length)
  counted = np.array([case.same_factors(len(row)) for row in rows])
  starts = np.repeat(prompts.length_B, 3)

  @case.jit
  def gradient(params, weight_BxG):
    def total(params):
      logps = paths.by_group(case.model.policy, params, prompts, ids, length)
      return (logps * weight_BxG[:, :, None]).sum(), logps

    return jax.grad(total, has_aux=True)(params)

  ours, logps = gradient(case.params, counted.reshape(-1, 3).astype(np.float32))
  compare(case, expected, plain, 'group 3', logps, slice(3))
  ours = {name: make() for name, (_, make) in weights.hf_tensors(ours, case.model.config).items()}
  theirs = families.oracle_gradients(
    case.directory, [row for row, c in zip(rows, counted) if c], [int(s) for s, c in zip(starts, counted) if c]
  )
  assert ours.keys() == theirs.keys()
  for name, gradient_ in theirs.items():
    scale = np.linalg.norm(gradient_)
    assert scale > 0, name
    case.check('gradients', np.linalg.norm(ours[name] - gradient_) / scale, 0.0, RELATIVE)


# --- files and tokenizers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', families.FAMILIES)
def test_old_spellings_of_a_config_mean_the_same(name, tmp_path):
  rows = [list(range(100, 140))]
  directory = families.make(name, tmp_path / 'model')
  config, expected = models.load(str(directory)).config, families.oracle_logps(directory, rows)
  families.old_spelling(directory)
  np.testing.assert_array_equal(families.oracle_logps(directory, rows), expected)
  assert models.load(str(directory)).config == config


@pytest.mark.parametrize('adds_bos', [False, True])
def test_text_with_and_without_bos(adds_bos, tmp_path):
  directory = families.make('gemma2', tmp_path / 'model', adds_bos=adds_bos)
  case = Case('gemma2', '', directory, {})
  tokenizer = case.model.tokenizer
  theirs = transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
  texts = ['', 'Ada', 'Where does the River Wey rise? ', 'naïve 🌧️ <|bos|>']
  prompts = [tokenizer.plain(text) for text in texts]
  assert prompts == [theirs(text)['input_ids'] for text in texts]
  assert [ids.count(tokenizer.bos_id) for ids in prompts] == [adds_bos, adds_bos, adds_bos, 1 + adds_bos]
  answers = [[*tokenizer.encode(text), tokenizer.eos_id] for text in ('It rises in two places.', ' and Bob', '')]
  ids_BxP, length_B, _ = pack_prompts(prompts, 48)
  ids_BxGxT, length_BxG, _ = pack_completions([answers] * 4, 24)
  batch = Prompts(ids_BxP, length_B), ids_BxGxT, length_BxG
  ours = np.asarray(case.by['group'](case.params, *batch))
  case.check('group', ours, case.torch_logps(*batch)[0])
  assert (ours[0, :, 0] < 0).all() == adds_bos  # the empty prompt: a BOS predicts the first token, nothing does not


# --- the source itself --------------------------------------------------------------------------------------------

_ROPE = dict(rope_type='default', rope_theta=10_000.0)
_GEMMA3_ROPE = families.config('gemma3').rope_parameters
SWITCHES = [  # (family, what turns the switch off, how many log-probs that leaves as they are)
  ('llama3', dict(rope_parameters=_ROPE), 0),
  ('llama_linear', dict(rope_parameters=_ROPE), 0),
  ('llama_yarn', dict(rope_parameters=_ROPE), 0),
  ('smollm3', dict(no_rope_layers=[1] * 4), 0),
  ('mistral', dict(sliding_window=None), 8),
  ('qwen2_window', dict(use_sliding_window=False), 8),
  ('phi3', dict(sliding_window=None), 16),
  ('gemma2', dict(sliding_window=512), 8),
  ('gemma2', dict(attn_logit_softcapping=None), 0),
  ('gemma2', dict(final_logit_softcapping=None), 0),
  ('gemma2', dict(query_pre_attn_scalar=24), 0),
  ('gemma3', dict(sliding_window=512), 8),
  ('gemma3', dict(rope_parameters=_GEMMA3_ROPE | {'sliding_attention': _GEMMA3_ROPE['full_attention']}), 0),
  ('gemma3', dict(rope_parameters=_GEMMA3_ROPE | {'full_attention': _GEMMA3_ROPE['sliding_attention']}), 0),
  ('gptneox', dict(rope_parameters=_ROPE | dict(partial_rotary_factor=1.0)), 0),
  ('gptneox', dict(use_parallel_residual=False), 0),
]


@pytest.mark.parametrize('name, off, unchanged', SWITCHES, ids=lambda x: x if isinstance(x, str) else '')
def test_what_a_family_does_differently_shows_in_the_numbers(name, off, unchanged, tmp_path):
  rows = [list(range(100, 200))]
  on = families.oracle_logps(families.make(name, tmp_path / 'on'), rows)[0]
  off = families.oracle_logps(families.make(name, tmp_path / 'off', **off), rows)[0]
  np.testing.assert_allclose(off[:unchanged], on[:unchanged], atol=PER_TOKEN)
  assert np.abs(off - on)[unchanged:].max() > 0.01


@pytest.mark.parametrize('name', ['phi3_longrope', 'phi3_longrope_partial'])
def test_longrope_goes_by_the_length_of_the_row(name, tmp_path):
  limit = families.LONGROPE_SHORT
  rows = [list(range(100, 100 + limit)), list(range(100, 101 + limit))]
  at_limit, beyond = families.oracle_logps(families.make(name, tmp_path / 'model'), rows)
  assert np.abs(beyond[:-1] - at_limit).max() > 0.01
