"""Generators: (weights, keys_B, prompts, temperature) -> Group. One PRNG key per prompt; strings never come here."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from past_jax import sampler as sampler_lib
from past_jax.logps import group_logps
from past_jax.types import Generator, Group, Policy, UserError


def sampler(
  *,
  policy: Policy,
  tokenizer,
  role: str = 'policy',
  group: int = 4,
  length: int = 64,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  stop: Sequence[str] = (),
  slots: int = 0,
) -> Generator:
  """`group` samples of up to `length` tokens from the model of `role`.

  Args:
    stop: texts of one token each that end a completion besides the tokenizer's own end tokens, e.g. a newline.
    slots: completions decoded at a time; one that ends makes room for the next. 0: all. Changes no token.
  """
  ids = list(tokenizer.stop_ids)
  for text in stop:
    if len(encoded := tokenizer.encode(text)) != 1:
      raise UserError(f'generator.stop: {text!r} is {len(encoded)} tokens; a stop text is exactly one token.')
    ids += encoded

  def generate(weights, keys_B, prompts, temperature) -> Group:
    options = dict(group=group, length=length, top_k=top_k, top_p=top_p, min_p=min_p, slots=slots)
    return sampler_lib.sample(policy, weights[role], keys_B, prompts, temperature, jnp.array(ids), **options)

  return generate


def given(*, policy: Policy, role: str = 'policy') -> Generator:
  """The completions that came with the examples, with their log-probs under `role`; source -1.

  They are given whole: finished means nothing was cut, which their rendering decides; an absent one has length 0.
  """

  def generate(weights, keys_B, prompts, temperature) -> Group:
    del keys_B, temperature
    ids, length = prompts.given.ids_BxAxT, prompts.given.length_BxA
    logps = group_logps(policy, weights[role], prompts, ids, length)
    return Group(prompts, ids, length, length > 0, logps, logps, jnp.full_like(length, -1))

  return generate


def mixture(parts: Sequence[Generator]) -> Generator:
  """The members of several generators as one group; `source` tells the part (given stays -1). Lengths are padded."""

  def generate(weights, keys_B, prompts, temperature) -> Group:
    groups = []
    for i, part in enumerate(parts):
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
      group = part(weights, keys, prompts, temperature)
      groups.append((group, jnp.where(group.source_BxG < 0, -1, i)))
    T = max(group.ids_BxGxT.shape[2] for group, _ in groups)
    join = lambda name: jnp.concatenate([getattr(group, name) for group, _ in groups], axis=1)
    wide = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, T - x.shape[2])))
    join_wide = lambda name: jnp.concatenate([wide(getattr(group, name)) for group, _ in groups], axis=1)
    return Group(
      prompts,
      join_wide('ids_BxGxT'),
      join('length_BxG'),
      join('finished_BxG'),
      join_wide('logps_BxGxT'),
      join_wide('behaviour_logps_BxGxT'),
      jnp.concatenate([source for _, source in groups], axis=1),
    )

  return generate


TABLE = {'sampler': sampler, 'given': given}  # `mixture` joins generators; a config cannot name one yet
