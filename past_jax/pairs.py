"""Prompts about pairs or triples of the names in a passage, which a model finds first (arXiv 2409.07431)."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import jax

from past_jax.collect import collector, sample
from past_jax.data.stream import permutation
from past_jax.generators import sampler
from past_jax.mesh import host
from past_jax.render import fill, pack
from past_jax.text import completion_text
from past_jax.types import Example, Policy, Prompts, UserError

SEPARATOR = ','


def finder(
  *,
  policy: Policy,
  tokenizer,
  mesh,
  instruction: str,
  prompt_length: int,
  length: int,
  chunk: int,
) -> Callable[..., list[tuple[str, ...]]]:
  """Returns find(params, examples) -> the names in each passage, as `mentioned` reads them off a greedy completion.

  Args:
    instruction: a template over `{text}`, after which the model lists names, separated by commas, up to the line's end.
    prompt_length, length: tokens of prompt and list; what is longer is cut.
    chunk: passages per call of the sampler.
  """
  generate = sampler(policy=policy, tokenizer=tokenizer, role='model', group=1, length=length, stop=('\n',))
  c = collector(policy=policy, generate=generate, judge=None, select=None, mesh=mesh, prompts_per_call=chunk)

  def find(params, examples: Sequence[Example]) -> list[tuple[str, ...]]:
    rows = [tokenizer.plain(fill(instruction, example)) for example in examples]
    ids_BxP, length_B, _ = pack(tokenizer, rows, prompt_length)
    quiet = dict(phase=lambda name: None, tick=lambda arrays: arrays)
    prompts = Prompts(ids_BxP, length_B)
    group = sample(c, {'model': params}, jax.random.key(0), prompts, 0.0, len(examples), **quiet)
    ids_BxT, length_B = (x[:, 0] for x in host((group.ids_BxGxT, group.length_BxG)))
    lists = [completion_text(tokenizer, ids, int(n)) for ids, n in zip(ids_BxT, length_B)]
    return [mentioned(example.text, names) for example, names in zip(examples, lists, strict=True)]

  return find


def mentioned(text: str, names: str) -> tuple[str, ...]:
  """Those of a list of names that stand in the text, each once, in the order of the text; made-up ones are left out."""
  places = {}
  for name in names.split(SEPARATOR):
    name = name.strip(' \n.')
    if name and (found := re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text)):
      places[name] = found.start()
  return tuple(sorted(places, key=places.get))


def combined(examples: Sequence[Example], names: Sequence[Sequence[str]], size: int, most: int) -> tuple[Example, ...]:
  """One example per combination of `size` names of a passage, its `prompt` the names in the order of the text.

  A passage with more than `most` combinations keeps a fixed random choice of them; one with too few names is left out.

  Raises:
    UserError: no passage has enough names.
  """
  out = []
  for i, (example, found) in enumerate(zip(examples, names, strict=True)):
    all_ = list(itertools.combinations(found, size))
    kept = sorted(permutation(len(all_), i)[:most]) if all_ else []
    out += [dataclasses.replace(example, prompt=f'{SEPARATOR} '.join(all_[j])) for j in kept]
  if not out:
    raise UserError(
      f'config.pairs.size={size}: the model names fewer than that in each of {len(examples)} passages, '
      f'{max(map(len, names), default=0)} at most. Its first: {list(names[0]) if names else []}. Look at '
      'config.pairs.instruction, or choose another model.'
    )
  return tuple(out)
