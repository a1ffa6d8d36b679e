"""Error bounds against float64 for completions of 512 tokens (peers.md P9), and what stays float32 under bfloat16.

The bounds stand in docs/design.md. `pytest -m slow` adds whole models against torch in float64.
"""

import dataclasses
import math
from importlib.resources import files

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from past_jax import logps, losses, update
from past_jax.mesh import path_string
from past_jax.models.config import TINY
from past_jax.models.transformer import transformer
from past_jax.types import Batch, Prompts, Selection

T = 512
HEAD = {'float32': 2e-3, 'bfloat16': 0.25}  # nats per 512 tokens that the head alone may add


def head_only(dtype, vocab=32_000, width=64):
  """A policy whose trunk is a given array, so that the head is all that is measured, and its inputs."""
  rng = np.random.default_rng(0)
  config = dataclasses.replace(TINY, vocab=vocab, width=width)
  policy = transformer(config, dtype=dtype)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(policy.init, jax.random.key(0)))
  params['embed']['embedding'] = rng.normal(size=(vocab, width)).astype(np.float32) * 0.4
  hidden = rng.normal(size=(1, 1, T, width)).astype(np.float32)
  ids = rng.integers(0, vocab, (1, 1, T)).astype(np.int32)
  return policy._replace(groups=lambda *_: [jnp.asarray(hidden, dtype)]), params, hidden[0, 0], ids


def reference(hidden_TxD, table_VxD, ids_T):
  """log-softmax in float64."""
  logits = hidden_TxD.astype(np.float64) @ table_VxD.astype(np.float64).T
  top = logits.max(axis=-1)
  total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
  return logits[np.arange(len(ids_T)), ids_T] - total


@pytest.mark.parametrize('dtype', HEAD)
def test_p9_head_and_sum_of_512_tokens(dtype):
  policy, params, hidden, ids = head_only(dtype)
  table = params['embed']['embedding']
  prompts, length = Prompts(np.zeros((1, 1), np.int32), np.ones(1, np.int32)), np.full((1, 1), T, np.int32)
  found = jax.jit(lambda p: logps.group_logps(policy, p, prompts, ids, length))(params)
  assert found.dtype == jnp.float32
  total = float(found.sum())  # in float32, as losses and judges do
  expected = reference(hidden, table, ids[0, 0])
  assert expected.sum() < -4000  # thousands of nats: where bfloat16 sums are off by hundreds
  print(f'{dtype} head: off by {abs(total - expected.sum()):.2g} of {-total:.0f} nats')
  assert abs(total - expected.sum()) < HEAD[dtype]
  if dtype == 'float32':
    np.testing.assert_allclose(np.asarray(found)[0, 0], expected, atol=2e-5)
  else:
    # Rounding the head's inputs is all that bfloat16 costs: products and logits are exact to float32 from there.
    rounded = [x.astype(ml_dtypes.bfloat16).astype(np.float64) for x in (hidden, table)]
    np.testing.assert_allclose(np.asarray(found)[0, 0], reference(*rounded, ids[0, 0]), atol=2e-5)


def test_a_float32_sum_of_512_log_probs_is_within_a_thousandth():
  logps_T = -np.random.default_rng(0).gamma(2.0, 4.0, T).astype(np.float32)
  assert abs(float(jnp.sum(logps_T)) - math.fsum(logps_T.tolist())) < 1e-3


def test_bfloat16_is_a_policy_of_products_only(ragged):
  """Parameters, gradients, moments, logits, log-probs and the loss stay float32; hidden states do not."""
  policy = transformer(TINY, dtype='bfloat16')
  prompts, ids, length = ragged
  step = update.gradient(
    policy=policy,
    losses={'text': (1.0, losses.add([(1.0, 'nll', losses.TABLE['nll']())]))},
    optimizer=update.adamw(learning_rate=1e-3),
    learning_rate=optax.constant_schedule(1e-3),
  )
  state = jax.eval_shape(lambda key: step.init(policy.init(key)), jax.random.key(0))
  B, G = length.shape
  none, rows = jnp.zeros((B, 0), jnp.int32), jnp.ones((B, G))
  selection = Selection(none, none, none.astype(jnp.float32), rows, rows, jnp.broadcast_to(jnp.arange(G)[None], (B, G)))
  batch = Batch(prompts, ids, length, None, None, jnp.zeros((B, G), jnp.int32), selection)
  new, metrics = jax.eval_shape(step.step, state, {}, {'text': batch})
  floats = [x.dtype for x in jax.tree.leaves((state, new, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {jnp.dtype('float32')}
  hidden = jax.eval_shape(policy.groups, state.params, [(prompts, ids, length)])[0]
  assert hidden.dtype == jnp.bfloat16
  assert jax.eval_shape(policy.head, state.params, hidden).dtype == jnp.float32
  assert jax.eval_shape(lambda p: logps.group_logps(policy, p, *ragged), state.params).dtype == jnp.float32


def test_gradients_under_bfloat16_are_sums_in_float32():
  """Of 16 000 tokens of English, where the space is one in six: bfloat16 stops adding after a few hundred of a kind."""
  every = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
  config = dataclasses.replace(TINY, norm='layer', biased=every, learned_positions=True, tied=False)
  text = np.frombuffer(files('past_jax').joinpath('data/general.txt').read_bytes(), np.uint8).astype(np.int32)
  ids, length = text[: 32 * 500].reshape(8, 4, 500), np.full((8, 4), 500, np.int32)
  prompts = Prompts(np.full((8, 1), 256, np.int32), np.ones(8, np.int32))
  grads = {}
  for dtype in ('float32', 'bfloat16'):
    policy = transformer(config, dtype=dtype)
    params = jax.jit(policy.init)(jax.random.key(0))
    total = lambda p, policy=policy: logps.group_logps(policy, p, prompts, ids, length).mean()
    grads[dtype] = jax.device_get(jax.jit(jax.grad(total))(params))
  flat, low = jax.tree_util.tree_leaves_with_path(grads['float32']), jax.tree.leaves(grads['bfloat16'])
  off = {path_string(path): np.linalg.norm(b - a) / np.linalg.norm(a) for (path, a), b in zip(flat, low)}
  del off['layers/k/bias']  # exactly 0: a softmax does not see what is added to all scores of a query
  assert max(off.values()) < 0.02, off


# --- whole models -------------------------------------------------------------------------------------------------

# nats per completion of 512 tokens against torch in float64, on random models with peaked attention (worst of all
# found: 4.5e-4 and 0.46)
WHOLE = {'float32': 1e-3, 'bfloat16': 1.0}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['llama', 'qwen3', 'gemma2', 'gemma3', 'phi3', 'gpt2', 'gptneox'])
def test_whole_models_against_float64(name, tmp_path):
  torch = pytest.importorskip('torch', reason="the extra `test`: pip install 'past-jax[test]'")
  import families
  import transformers

  from past_jax import mesh as mesh_lib
  from past_jax import models

  families.make(name, tmp_path / 'model', max_position_embeddings=1024)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path / 'model'), dtype=torch.float64, attn_implementation='eager', local_files_only=True
  ).eval()
  row = np.random.default_rng(0).integers(0, 256, 8 + T)
  with torch.no_grad():
    logits = theirs(input_ids=torch.tensor(row[None]), use_cache=False).logits[0]
  expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[7:, 0].numpy()
  prompts, ids = Prompts(row[None, :8].astype(np.int32), np.full(1, 8, np.int32)), row[None, None, 8:].astype(np.int32)
  errors = {}
  for dtype in WHOLE:
    model = models.load(str(tmp_path / 'model'), dtype=dtype)
    params = model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
    found = logps.group_logps(model.policy, params, prompts, ids, np.full((1, 1), T, np.int32))
    errors[dtype] = abs(float(found.sum()) - expected.sum())
  print(f'{name}: {expected.sum():.1f} nats; off by {errors}')
  assert all(errors[dtype] < bound for dtype, bound in WHOLE.items()), errors
