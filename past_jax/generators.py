"""Generators: (weights, keys_B, prompts, temperature) -> Group. One PRNG key per prompt; strings never come here."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from past_jax import sampler as sampler_lib
from past_jax.types import Generator, Group, Policy, UserError


def sampler(
  *,
  policy: Policy,
  tokenizer,
  role: str = 'policy',
  group: int = 4,
  opponent: str = 'base',
  opponents: int = 0,
  length: int = 64,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  stop: Sequence[str] = (),
  slots: int = 0,
  anchors: bool = False,
) -> Generator:
  """`group` samples of up to `length` tokens from the model of `role`.

  Args:
    opponents: as many members more from the model of the role `opponent`, of source 1: XPO, Nash-MD.
    stop: texts of one token each that end a completion besides the tokenizer's own end tokens, e.g. a newline.
    slots: completions decoded at a time; one that ends makes room for the next. 0: all. Changes no token.
    anchors: the prompt's given completions are members, too, of source -1: the original beside what is sampled.
      They stand first, so that of equals what is given is chosen.

  Raises:
    UserError: a stop text of several tokens.
  """
  ids = list(tokenizer.stop_ids)
  for text in stop:
    if len(encoded := tokenizer.encode(text)) != 1:
      raise UserError(f'generator.stop: {text!r} is {len(encoded)} tokens; a stop text is exactly one token.')
    ids += encoded
  options = dict(length=length, top_k=top_k, top_p=top_p, min_p=min_p, slots=slots)

  def of(role: str, group: int) -> Generator:
    def generate(weights, keys_B, prompts, temperature) -> Group:
      stops = jnp.array(ids)
      return sampler_lib.sample(policy, weights[role], keys_B, prompts, temperature, stops, group=group, **options)

    return generate

  parts = [of(role, group)] + [of(opponent, opponents)] * bool(opponents)
  return mixture(parts, given() if anchors else None) if anchors or len(parts) > 1 else parts[0]


def given(mismatched: bool = False) -> Generator:
  """The completions that came with the examples; source -1. An absent one has length 0.

  Nobody sampled them, so they have no log-probs of their own, and where a loss reads reference log-probs, `collect`
  scores them: once, in the update's shapes. All count as finished; what rendering cut, it has counted.

  Args:
    mismatched: as many members more, the completions of the prompt before in the same call; source -2, absent where
      that prompt is the same. No update learns from them; KTO reads the policy's drift off them (arXiv 2402.01306,
      section 3.3).

  Raises:
    UserError: `mismatched` with a single prompt in a call, whose completions are its own.
  """

  def generate(weights, keys_B, prompts, temperature) -> Group:
    del weights, keys_B, temperature
    ids, length = prompts.given.ids_BxAxT, prompts.given.length_BxA
    source = jnp.full_like(length, -1)
    if mismatched:
      if len(length) == 1:
        raise UserError('generator.mismatched takes the completions of another prompt: sample_prompts must be above 1.')
      before = lambda x: jnp.roll(x, 1, axis=0)
      same = (prompts.ids_BxP == before(prompts.ids_BxP)).all(1) & (prompts.length_B == before(prompts.length_B))
      others = jnp.where(same[:, None], 0, before(length))
      ids, length = jnp.concatenate([ids, before(ids)], axis=1), jnp.concatenate([length, others], axis=1)
      source = jnp.concatenate([source, source - 1], axis=1)
    return Group(prompts, ids, length, length > 0, None, None, source)

  return generate


def mixture(parts: Sequence[Generator], first: Generator | None = None) -> Generator:
  """The members of several generators as one group; `source` tells the part. Given ones, of `first`, stand first.

  Lengths are padded, and the log-probs of given members are 0.
  """

  def generate(weights, keys_B, prompts, temperature) -> Group:
    groups = []
    for i, part in enumerate(parts):
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
      group = part(weights, keys, prompts, temperature)
      groups.append((group, jnp.full_like(group.source_BxG, i)))
    if first is not None:
      group = first(weights, keys_B, prompts, temperature)
      groups.insert(0, (group, group.source_BxG))
    T = max(group.ids_BxGxT.shape[2] for group, _ in groups)
    join = lambda name: jnp.concatenate([getattr(group, name) for group, _ in groups], axis=1)
    wide = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, T - x.shape[2])))
    join_wide = lambda arrays: jnp.concatenate([wide(x) for x in arrays], axis=1)
    known = lambda x, group: jnp.zeros(group.ids_BxGxT.shape) if x is None else x
    return Group(
      prompts,
      join_wide(group.ids_BxGxT for group, _ in groups),
      join('length_BxG'),
      join('finished_BxG'),
      join_wide(known(group.logps_BxGxT, group) for group, _ in groups),
      join_wide(known(group.behaviour_logps_BxGxT, group) for group, _ in groups),
      jnp.concatenate([source for _, source in groups], axis=1),
    )

  return generate


TABLE = {'sampler': sampler, 'given': given}
