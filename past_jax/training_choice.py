"""A self-edit that says how to train: the text of a choice, and what it means (SEAL's few-shot part, 2506.10943).

Two spellings, one meaning. JSON, with anything around it, and a line that a small model of bytes can learn to write:

    {"basic": true, "size": false, "chain": false, "repeat": true, "loss": "outputs", "lr": 0.001, "epochs": 4}
    basic=1 size=0 chain=0 repeat=1 loss=outputs lr=0.001 epochs=4
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

FLAGS = ('basic', 'size', 'chain', 'repeat')
LOSSES = ('all', 'outputs')
LR = (1e-6, 1.0)  # least and most
EPOCHS = (1, 100)


class Choice(NamedTuple):
  basic: bool  # these four: train on such augmentations, too (past_jax/augmentations.py)
  size: bool
  chain: bool
  repeat: bool
  loss: str  # all | outputs: which tokens are learned
  lr: float
  epochs: int

  def flags(self) -> tuple[str, ...]:
    return tuple(flag for flag in FLAGS if getattr(self, flag))


def choice_json(choice: Choice) -> str:
  return json.dumps(choice._asdict())


def choice_line(choice: Choice) -> str:
  return ' '.join(f'{key}={int(x) if isinstance(x, bool) else x}' for key, x in choice._asdict().items())


def read_choice(text: str) -> Choice | None:
  """The choice that a text makes: the first valid JSON object in it, else the words KEY=VALUE of the whole text.

  None: it makes none. Every key must be there, once and with a value of its type, within LR and EPOCHS; keys that mean
  nothing are passed over.
  """
  found = (choice for made in _objects(text) if (choice := _checked(made)))
  return next(found, None) or _checked(_words(text))


def _objects(text: str):
  """Every JSON object that begins somewhere in the text. One that has a key twice is none."""
  decoder = json.JSONDecoder(object_pairs_hook=_once)
  for start in (m.start() for m in re.finditer(r'\{', text)):
    try:
      made, _ = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
      continue
    yield made


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(items)
  if len(made) < len(items):
    raise ValueError('a key stands twice')
  return made


def _words(text: str) -> dict[str, Any]:
  items = re.findall(r'(?<!\S)([a-z]+)=(\S+)', text)
  if len({key for key, _ in items}) < len(items):
    return {}
  return {key: _value(key, word) for key, word in items}


def _value(key: str, word: str) -> Any:
  """What JSON would have said; the word itself where it says nothing."""
  if key in FLAGS:
    return {'0': False, '1': True}[word] if word in ('0', '1') else word
  if re.fullmatch(r'[0-9]{1,9}', word, re.ASCII):
    return int(word)
  if key == 'lr' and re.fullmatch(r'[0-9]*\.?[0-9]+(e-?[0-9]{1,3})?', word, re.ASCII):
    return float(word)
  return word


def _checked(made: Mapping[str, Any]) -> Choice | None:
  if not set(Choice._fields) <= set(made):
    return None
  choice = Choice(*(made[field] for field in Choice._fields))
  number = lambda x, *types: isinstance(x, types) and not isinstance(x, bool)
  valid = (
    all(isinstance(getattr(choice, flag), bool) for flag in FLAGS)
    and choice.loss in LOSSES
    and number(choice.lr, int, float)
    and LR[0] <= choice.lr <= LR[1]
    and number(choice.epochs, int)
    and EPOCHS[0] <= choice.epochs <= EPOCHS[1]
  )
  return choice._replace(lr=float(choice.lr)) if valid else None
