"""Examples to prompts, on the host: the sampling view, the training view and the raw text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from past_jax import transforms as transforms_lib
from past_jax.text import Tokenizer, pack_completions, pack_prompts
from past_jax.types import Batch, Completions, Example, Plan, Prompts, Selection, UserError

VIEWS = ('same', 'instruction', 'none')
TRANSFORMS = transforms_lib.TABLE
AS_IT_IS = '{prompt}'  # the instruction that adds nothing: the only one for prompts that are chats


class Rendered(NamedTuple):
  """Host arrays of one round."""

  sample: Prompts  # what the generator sees
  train: Prompts  # what the update sees before the completion
  text: Batch  # the raw passages, as completions of the empty prompt
  trimmed: dict[str, int]  # how many prompts, texts and anchors were cut to fit


def fill(template: str, example: Example, **more: str) -> str:
  """`{text}`, `{prompt}`, `{anchor}`, `{related}` and names of `more` replaced; braces in the data are left alone."""
  parts = {'{text}': example.text, '{prompt}': example.prompt, '{anchor}': ''.join(map(said, example.anchors[:1]))}
  parts |= {'{related}': ' '.join(example.related)} | {f'{{{name}}}': text for name, text in more.items()}
  # One pass over the template: text that happens to contain '{prompt}' is data.
  out, rest = '', template
  while rest:
    at, key = min(((i, k) for k in parts if (i := rest.find(k)) >= 0), default=(len(rest), ''))
    out, rest = out + rest[:at] + parts.get(key, ''), rest[at + len(key) :]
  return out


def said(anchor: Any) -> str:
  """A given completion as people read it."""
  return anchor if isinstance(anchor, str) else '\n'.join(message['content'] for message in anchor)


def sizes(view: Mapping[str, Any], improve: Mapping[str, Any], plan: Plan, completion_length: int):
  """(P, A, T): tokens of a prompt, given completions of one, tokens of a completion, in rounds of such a plan."""
  if plan.draft == 'none':
    return view['prompt_length'], view['anchors'], completion_length
  P, room = improve['prompt_length'], improve['prompt_length'] - view['prompt_length']
  return (view['prompt_length'], 4, room + completion_length) if plan.draft == 'orders' else (P, 1, completion_length)


def common(a: Sequence[int], b: Sequence[int]) -> int:
  """How many of the first ids are the same."""
  return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def prompt_ids(tokenizer: Tokenizer, template: str, example: Example, chat: bool, **more: str) -> list[int]:
  """The ids of a filled template, as it is written or as a user's message; of AS_IT_IS those of the example's chat."""
  if example.messages and template == AS_IT_IS:
    return tokenizer.chat(example.messages)
  text = fill(template, example, **more)
  return tokenizer.chat([{'role': 'user', 'content': text}]) if chat else tokenizer.plain(text)


def filled(rendered: Rendered, count: int) -> Rendered:
  """Repeats rows until there are `count`; the text of one that only fills up has no tokens."""
  n = len(rendered.sample.length_B)
  pick = lambda tree: jax.tree.map(lambda x: x[np.arange(count) % n], tree)
  text = pick(rendered.text)
  length = np.where(np.arange(count)[:, None] < n, text.length_BxG, 0)
  return Rendered(
    pick(rendered.sample), pick(rendered.train), dataclasses.replace(text, length_BxG=length), rendered.trimmed
  )


def text_batch(tokenizer: Tokenizer, texts: Sequence[str], length: int, end: bool = True) -> tuple[Batch, int]:
  """Raw texts after the empty prompt, closed by the end token if `end`; and how many were cut to `length`.

  An empty text has no token at all: it does not teach to end at once.
  """
  prompts = empty_prompts(tokenizer, len(texts))
  rows = [[tokenizer.encode(text, start=True) + [tokenizer.eos_id] * end if text else []] for text in texts]
  ids, lengths, trimmed = pack_completions(rows, length)
  zeros, none = np.zeros((len(texts), 1), np.float32), np.zeros((len(texts), 0), np.int32)
  selection = Selection(none, none, none.astype(np.float32), zeros + 1, zeros, zeros.astype(np.int32))
  return Batch(prompts, ids, lengths, None, None, np.full_like(lengths, -1), selection), trimmed


def pack(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], length: int):
  """`pack_prompts`, which keeps the BOS of a trimmed prompt where the tokenizer adds one."""
  return pack_prompts(rows, length, tokenizer.bos_id if tokenizer.adds_bos else None)


def empty_prompts(tokenizer: Tokenizer, count: int) -> Prompts:
  ids, length, _ = pack_prompts([tokenizer.plain('')] * count, 1)
  return Prompts(ids, length)


def renderer(
  *,
  tokenizer: Tokenizer,
  instruction: str,
  prompt_length: int,
  text_length: int,
  completion_length: int,
  train_view: str = 'same',
  train_instruction: str = '',
  chat: bool = False,
  anchors: int = 0,
  transforms: Sequence[str] = (),
  segment: int = 5,
  improve: Mapping[str, Any] = {},
):
  """Returns render(examples, plan) -> Rendered.

  With `plan.draft` a prompt is `improve['instruction']`, a template over `{draft}`, too, of up to
  `improve['prompt_length']` tokens, and its one given completion, if the plan gives any, is the best anchor. The draft
  is an anchor, or for `sampled` and `improved` the last one: whoever samples puts it there. In `orders` a row has both
  anchors after each of both: what the two prompts share is the prompt, and the rest leads the completions.

  Args:
    instruction: the study instruction, a template over `{text}`, `{prompt}`, `{anchor}` and `{related}`.
    train_view: `same` as sampled; `instruction`: `train_instruction` alone, the passage out of view; `none`: nothing.
    chat: instructions become a user's message in the model's chat template; else they are used as written.
    anchors: given completions per prompt (`A`), used when the plan says anchor_source='given'.
    transforms: names in `TRANSFORMS`: what they make of the text comes before the example's own anchors. A name
      that stands there several times has another seed each time.
    segment: most words of a segment of the transform `segment_reversal`.
  """

  def encode(template: str, example: Example, **more: str) -> list[int]:
    return prompt_ids(tokenizer, template, example, chat, **more)

  def completion(example: Example, anchor: Any) -> list[int]:
    """With its end token, once, wherever the text or the template may have written it; nothing: no token at all."""
    ids = tokenizer.reply(example.messages, anchor) if example.messages and anchor else tokenizer.encode(said(anchor))
    ended = ids[-1:] if isinstance(anchor, str) else ids  # templates may go on behind the end, with a line break
    return ids if not ids or set(ended) & set(tokenizer.stop_ids) else [*ids, tokenizer.eos_id]

  def transformed(example: Example) -> list[list[int]]:
    made = [
      TRANSFORMS[name](example.text, tokenizer, segment, transforms[:i].count(name))
      for i, name in enumerate(transforms)
    ]
    return [[*ids, tokenizer.eos_id] if ids else [] for ids in made]

  def asked(i: int, example: Example, plan: Plan) -> list[int]:
    """Ids of the i-th prompt of a round."""
    if plan.draft == 'none':
      return encode(instruction, example)
    place = {'chosen': 0, 'given': i % 2}.get(plan.draft, -1)
    return encode(improve['instruction'], example, draft=said(example.anchors[place]) if example.anchors else '')

  def in_orders(example: Example) -> tuple[list[int], list[list[int]], int]:
    """(what the prompts share, the four completions behind the rest of their prompts, rests that were cut).

    The order is that of `losses.judges.gap`. What is cut of a rest is its beginning, as of any prompt.
    """
    better, worse = example.anchors[:2]
    room = improve['prompt_length'] - prompt_length
    whole = {draft: encode(improve['instruction'], example, draft=said(draft)) for draft in (better, worse)}
    n = common(*(whole.values() if len(whole) > 1 else [whole[better]] * 2))
    rest = {draft: ids[n:][-room:] for draft, ids in whole.items()}
    orders = ((better, worse), (better, better), (worse, worse), (worse, better))
    members = [completion(example, a) and [*rest[b], *completion(example, a)] for a, b in orders]
    return whole[better][:n], members, sum(len(ids) - n > room for ids in whole.values())

  def render(examples: Sequence[Example], plan: Plan) -> Rendered:
    P, A, T = sizes(dict(prompt_length=prompt_length, anchors=anchors), improve, plan, completion_length)
    if plan.draft == 'orders':
      asked_ids, rows, cut_drafts = zip(*map(in_orders, examples))
    else:
      asked_ids, rows, cut_drafts = [asked(i, e, plan) for i, e in enumerate(examples)], None, ()
    sample_ids, sample_length, cut = pack(tokenizer, asked_ids, P)
    if not sample_length.all():
      where = examples[int(np.argmin(sample_length))].where
      raise UserError(
        f'{where or "an example"}: its prompt for sampling is empty, and this tokenizer writes no BOS, so nothing '
        f'predicts a first token. Put some words into config.view.instruction.'
      )
    given, cut_anchors = None, 0
    if plan.anchor_source == 'given':
      rows = rows or [[*transformed(e), *(completion(e, anchor) for anchor in e.anchors)][:A] for e in examples]
      rows = [row + [[]] * (A - len(row)) for row in rows]
      ids, length, cut_anchors = pack_completions(rows, T)
      given = Completions(ids, length)
    sample = Prompts(sample_ids, sample_length, given)
    if train_view == 'none':
      train = empty_prompts(tokenizer, len(examples))
    elif train_view == 'instruction':
      rows = [encode(train_instruction, dataclasses.replace(e, text='', anchors=())) for e in examples]
      train = Prompts(*pack(tokenizer, rows, prompt_length)[:2])
    else:
      train = Prompts(sample_ids, sample_length)
    text, cut_texts = text_batch(tokenizer, [e.text for e in examples], text_length)
    trimmed = {'prompts': cut, 'texts': cut_texts, 'anchors': cut_anchors}
    return Rendered(sample, train, text, trimmed | ({'drafts': sum(cut_drafts)} if cut_drafts else {}))

  return render
