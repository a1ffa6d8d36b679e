"""Inner runs: stacked ones are those that each would be alone, and one alone is a loop written out here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from past_jax import lora
from past_jax import mesh as mesh_lib
from past_jax.inner import Asked, Job, Recipe, Row, order_of, runner
from past_jax.models.transformer import INPUT_AXES, RULES
from past_jax.text import byte_tokenizer
from past_jax.types import UserError

TOKENIZER = byte_tokenizer()
RECIPE = Recipe(
  rank=3,
  alpha=3.0,
  lr=3e-3,
  epochs=3,
  batch=2,
  rows=4,
  length=24,
  questions=2,
  prompt_length=16,
  answer_length=6,
  chunk=8,
)


def row(text: str, start: int = 0) -> Row:
  return Row((*TOKENIZER.encode(text, start=True), TOKENIZER.eos_id), start)


def job(i: int, rows: int = 3, seed: int = 0, asked: int = 2, **keys) -> Job:
  questions = tuple(
    Asked(tuple(TOKENIZER.plain(f'n{i}{j}:')), tuple(TOKENIZER.encode(f' {i * j}'))) for j in range(asked)
  )
  return Job(tuple(row(f'n{i}{j}: {i * j}') for j in range(rows)), questions, seed, **keys)


def made(policy, mesh, **changed):
  recipe = dataclasses.replace(RECIPE, **changed)
  return runner(policy=policy, tokenizer=TOKENIZER, mesh=mesh, recipe=recipe, input_axes=INPUT_AXES)


@pytest.fixture(scope='module')
def one_device():
  return mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])


JOBS = [job(i, rows=1 + i % 4, seed=s) for i in range(4) for s in range(2)]
JOBS += [job(3, lr=0.1), job(3, epochs=1), job(5, asked=3), Job(asked=job(3).asked), job(2, rows=6)]


def alike(found, expected, tolerance=1e-4):
  assert len(found) == len(expected)
  for a, b in zip(found, expected):
    assert len(a.losses) == len(b.losses) and len(a.logps) == len(b.logps)
    np.testing.assert_allclose(a.losses, b.losses, rtol=tolerance)
    np.testing.assert_allclose(a.logps, b.logps, rtol=tolerance)
    assert a.answers == b.answers


@pytest.mark.parametrize('rank', [3, 0])
def test_many_runs_at_once_are_each_alone(policy, params, one_device, rank):
  """Whatever their numbers of rows, steps and questions, their seeds and rates; more runs than a chunk has."""
  changed = dict(
    rank=rank, optimizer='sgd', lr=0.05 if rank else 0.01
  )  # Adam divides by gradients, however small: roundings grow
  together = made(policy, one_device, **changed).run(params, JOBS)
  alone = made(policy, one_device, chunk=1, **changed).run
  alike(together, [alone(params, [one])[0] for one in JOBS], 1e-3)
  assert [len(t.losses) for t in together[:4]] == [3, 3, 3, 3] and len(together[6].losses) == 6
  assert len(together[9].losses) == 2 and together[11].losses == []
  assert all(t.losses[-1] < t.losses[0] for t in together[:9])


def test_a_mesh_runs_the_same(policy, params, one_device):
  whole = made(policy, one_device, optimizer='sgd').run(params, JOBS)
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  placed = mesh_lib.put(jax.device_get(params), mesh_lib.shardings(mesh, params, RULES))
  with jax.set_mesh(mesh):
    alike(made(policy, mesh, optimizer='sgd').run(placed, JOBS), whole)


def test_one_run_is_a_plain_loop(policy, params, one_device):
  """Against optax on rows of their own length, one after another, without padding, stacking or trees."""
  own = job(4, rows=3, seed=5)
  found = made(policy, one_device, clip=0.5).run(params, [own])[0]

  adapters = lora.init(jax.random.key(5), params, targets=(), rank=3, input_axes=INPUT_AXES)
  optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(RECIPE.lr, 0.9, 0.999, 1e-8, weight_decay=0.0))
  bos, L = TOKENIZER.plain(''), RECIPE.prompt_length + RECIPE.answer_length

  @jax.jit
  def logits(adapters, ids):
    hidden = policy.rows(lora.merge(params, adapters, 1.0), ids[None], jnp.array([L]))
    return policy.head(params, hidden)[0]

  padded = lambda ids: jnp.array([*ids] + [0] * (L - len(ids)))

  @jax.jit
  def logp(adapters, ids, start, end):
    """Sum over the tokens start..end, each after those before it."""
    each = jnp.take_along_axis(jax.nn.log_softmax(logits(adapters, ids))[:-1], ids[1:, None], axis=1)[:, 0]
    t = jnp.arange(1, L)
    return jnp.where((t >= start) & (t < end), each, 0.0).sum()

  state, losses = optimizer.init(adapters), []
  gradient = jax.jit(jax.value_and_grad(logp))
  for step in order_of(3, 2, 3, 5):
    rows = [[*bos, *own.rows[i].ids] for i in step if i >= 0]
    found_ = [gradient(adapters, padded(ids), max(1, len(bos)), len(ids)) for ids in rows]
    share = -1 / sum(len(ids) - max(1, len(bos)) for ids in rows)
    losses.append(share * sum(float(value) for value, _ in found_))
    grads = optax.tree.scale(share, jax.tree.map(lambda *x: sum(x), *(g for _, g in found_)))
    updates, state = optimizer.update(grads, state, adapters)
    adapters = optax.apply_updates(adapters, updates)
  np.testing.assert_allclose(found.losses, losses, atol=1e-4)
  for q, answer, value in zip(own.asked, found.answers, found.logps):
    ids = [*q.prompt, *q.answer]
    np.testing.assert_allclose(value, float(logp(adapters, padded(ids), len(q.prompt), len(ids))), atol=1e-3)
    ids = list(q.prompt)
    for _ in range(RECIPE.answer_length):
      ids.append(int(jnp.argmax(logits(adapters, padded(ids))[len(ids) - 1])))
    said = ids[len(q.prompt) :]
    ends = [i for i, id_ in enumerate(said) if id_ in TOKENIZER.stop_ids or id_ == ord('\n')]
    assert answer == said[: ends[0] if ends else None]


def test_an_order_has_every_row_once_an_epoch():
  order = order_of(5, 2, 4, seed=1)
  assert order.shape == (12, 2)
  for epoch in range(4):
    part = order[3 * epoch : 3 * epoch + 3].ravel()
    assert sorted(part) == [-1, 0, 1, 2, 3, 4] and part[-1] == -1
  assert len({tuple(part) for part in order.reshape(4, -1)}) > 1
  assert (order == order_of(5, 2, 4, seed=1)).all() and (order != order_of(5, 2, 4, seed=2)).any()
  assert order_of(0, 2, 4, seed=1).shape == (0, 2)


def test_what_is_read_is_not_learned(policy, params, one_device):
  """A row whose first tokens are read only has the loss of the others; one of which all is read teaches nothing."""
  run = made(policy, one_device, epochs=1, batch=1).run
  text, start = 'n1: 2345', len(TOKENIZER.encode('n1:', start=True))
  whole, part, none = (run(params, [Job((row(text, s),), job(1).asked)])[0] for s in (0, start, 99))
  n = len(row(text).ids)
  read = run(params, [Job((Row(row(text).ids[:start]),), job(1).asked)])[0]
  first = 0 if TOKENIZER.plain('') else 1  # a token that nothing precedes has no log-prob
  expected = (whole.losses[0] * (n - first) - read.losses[0] * (start - first)) / (n - start)
  np.testing.assert_allclose(part.losses[0], expected, rtol=1e-4)
  untrained = run(params, [Job(asked=job(1).asked)])[0]
  assert none.losses == [0.0]
  np.testing.assert_allclose(none.logps, untrained.logps, atol=1e-5)
  assert np.abs(np.array(part.logps) - untrained.logps).max() > 1e-3


def test_a_run_can_be_kept_as_a_model(policy, params, one_device):
  runs = made(policy, one_device)
  before, own = jax.device_get(params), job(4)
  learned, losses = runs.learn(params, own)
  there = runs.run(params, [own])[0]
  np.testing.assert_allclose(losses, there.losses, atol=1e-5)
  again = runs.run(learned, [Job(asked=own.asked)])[0]
  np.testing.assert_allclose(again.logps, there.logps, atol=1e-3)
  assert jax.tree.structure(learned) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(params))


def test_runs_begin_at_the_model_with_its_adapters(policy, params, one_device):
  adapters = lora.init(jax.random.key(1), params, targets=(), rank=2, input_axes=INPUT_AXES)
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
  adapters, runs = jax.tree.map(noise, adapters), made(policy, one_device)
  some = [job(1), Job(asked=job(2).asked)]
  merged = runs.run(lora.merge(params, adapters, 0.5), some)
  alike(runs.run(lora.attach(params, adapters, 0.5), some), merged, 1e-3)
  plain = runs.run(params, some)
  assert np.abs(np.array(plain[1].logps) - merged[1].logps).max() > 1e-2


def test_kl_keeps_other_texts_as_they_are(policy, params, one_device):
  calm = [row('the rest of it'), row('is as it was')]
  changed = dict(rank=0, lr=1e-3, epochs=6)
  free, held = made(policy, one_device, **changed), made(policy, one_device, **changed, kl=3.0, kept=2)
  asked = [Asked(TOKENIZER.plain(''), r.ids[:6]) for r in calm]
  if not TOKENIZER.plain(''):
    asked = [Asked(r.ids[:2], r.ids[2:8]) for r in calm]
  before = np.array(free.run(params, [Job(asked=asked)])[0].logps)
  own = job(3)._replace(asked=tuple(asked))
  moved = np.abs(np.array(free.run(params, [own])[0].logps) - before).sum()
  kept = held.run(params, [own._replace(kept=calm)])[0]
  assert np.abs(np.array(kept.logps) - before).sum() < 0.7 * moved
  assert kept.losses[-1] < kept.losses[0]


def test_what_does_not_fit_is_said(policy, params, one_device):
  run = made(policy, one_device).run
  long = Asked(tuple(TOKENIZER.plain('a question of many tokens?')), tuple(TOKENIZER.encode(' a')))
  with pytest.raises(UserError, match='config.inner.prompt_length=16 is too short: a question needs 2[67] tokens'):
    run(params, [Job(asked=(long,))])
  with pytest.raises(UserError, match='config.inner.answer_length=6 is too short: a question needs 8 tokens'):
    run(params, [Job(asked=(Asked(TOKENIZER.plain('q'), TOKENIZER.encode(' 1234567')),))])
  with pytest.raises(UserError, match="optimizer='adam': choose one of adamw"):
    made(policy, one_device, optimizer='adam')
  with pytest.raises(UserError, match="schedule='cosine': choose one of constant, linear"):
    made(policy, one_device, schedule='cosine')


@pytest.mark.parametrize('rank', [3, 0])
def test_what_is_learned_lies_where_it_lay(policy, params, rank):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  placed = mesh_lib.put(jax.device_get(params), mesh_lib.shardings(mesh, params, RULES))
  with jax.set_mesh(mesh):
    learned, _ = made(policy, mesh, rank=rank, epochs=1).learn(placed, job(1))
  assert jax.tree.map(lambda x: x.sharding, learned) == jax.tree.map(lambda x: x.sharding, placed)
