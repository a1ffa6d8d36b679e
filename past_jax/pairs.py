"""Prompts about pairs or triples of the names in a passage, which a model finds first (arXiv 2409.07431)."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import jax

from past_jax.data.stream import permutation
from past_jax.render import fill
from past_jax.types import Example, Policy, UserError
from past_jax.writer import writer

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
  shape = dict(prompt_length=prompt_length, length=length, chunk=chunk)
  write = writer(policy=policy, tokenizer=tokenizer, mesh=mesh, stop=('\n',), **shape)

  def find(params, examples: Sequence[Example]) -> list[tuple[str, ...]]:
    rows = [tokenizer.plain(fill(instruction, example)) for example in examples]
    lists = write(params, jax.random.key(0), rows, 0.0)
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
