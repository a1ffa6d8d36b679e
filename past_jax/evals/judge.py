"""How well a judge that was trained tells the better of two given responses, and how sure it may be of it."""

from typing import Literal

import jax
import numpy as np

from past_jax.evals.setting import Evaluation, Setting, calls, padded
from past_jax.mesh import host, put_batch
from past_jax.render import renderer, said
from past_jax.scores import group_scores
from past_jax.types import Plan, Prompts, UserError

NAME = 'judge'
BINS = 10


def judge_accuracy(setting: Setting, *, reads: Literal['draft', 'prompt'] = 'draft') -> Evaluation:
  """Of rows with two given responses w and l, the better first, by the role `judge`.

  Its margin is g(w, l) - g(l, w), or of a judge that reads no drafts r(w) - r(l). Metrics: `judge/accuracy`, share of
  margins above 0 (ties half); `judge/loss`, the mean of -log s(margin), nats; `judge/calibration`, the expected
  calibration error of s(|margin|) in 10 bins of as many pairs (arXiv 1706.04599); `judge/longer`, how often the better
  is the longer one, in tokens (ties half): a judge that says no more than that knows nothing else. Of gaps also
  `judge/better`, `judge/equal` and `judge/worse`, the means of g(w, l), of g(w, w) with g(l, l), and of g(l, w), and
  `judge/right_of_better` and `judge/right_of_worse`, how often g(w, l) is above g(l, l), and g(l, w) below g(w, w): the
  loss knows differences alone, so no gain is what a response has over itself, not 0.

  Args:
    reads: `draft`: the judge is one of gaps, trained by the loss gap. `prompt`: it was trained by bradley_terry.

  Raises:
    UserError: no row has two responses, or there are no drafts without config.improve.
  """
  examples = [e for e in setting.examples if len(e.anchors) > 1]
  if not examples:
    raise UserError('judge_accuracy needs rows with two given responses, the better one first.')
  gaps = reads == 'draft'
  if gaps and not setting.improve:
    raise UserError("judge_accuracy with reads='draft' needs config.improve; reads='prompt' is for other judges.")
  view = {**setting.view, 'anchors': 2, 'transforms': ()}
  render = renderer(tokenizer=setting.tokenizer, completion_length=view['text_length'], improve=setting.improve, **view)
  plan = Plan(anchor_source='given', draft='orders' if gaps else 'none')
  program = jax.jit(lambda params, *args: group_scores(setting.policy, params, *args))

  def run(params, tick=lambda x: x, before=()):
    del before
    found, length = [], []
    for part in padded(examples, setting.chunk):
      prompts = render(part, plan).sample
      given = prompts.given
      rows = put_batch(setting.mesh, (Prompts(prompts.ids_BxP, prompts.length_B), given.ids_BxAxT, given.length_BxA))
      found.append(host(tick(program(params, *rows))))
      length.append(given.length_BxA)
    scores, length = (np.concatenate(x)[: len(examples)].astype(np.float64) for x in (found, length))
    margins = scores[:, 0] - scores[:, -1]
    other = 2 if gaps else 1  # the worse, behind the same draft
    right, longer = share(margins), share(length[:, 0] - length[:, other])
    metrics = {'accuracy': right, 'accuracy/n': len(margins), 'longer': longer, 'longer/n': len(margins)}
    metrics |= {'loss': float(np.logaddexp(0, -margins).mean()), 'calibration': calibration(margins)}
    if gaps:
      better, same_w, same_l, worse = scores.T
      metrics |= {'better': better.mean(), 'equal': (same_w + same_l).mean() / 2, 'worse': worse.mean()}
      metrics |= {'right_of_better': share(better - same_l), 'right_of_worse': share(same_w - worse)}
    shown = [
      {
        'kind': NAME,
        'question': e.prompt,
        'answer': said(e.anchors[0]),
        'output': said(e.anchors[0 if margin > 0 else 1]),
        'correct': bool(margin > 0),
        'margin': float(margin),
      }
      for e, margin in zip(examples, margins)
    ]
    return {f'{NAME}/{key}': float(x) for key, x in metrics.items()}, shown

  return Evaluation(run, calls(setting, len(examples)), roles=('judge',))


def share(x) -> float:
  """Of numbers above 0, ties half."""
  return float(np.mean((np.sign(x) + 1) / 2))


def calibration(margins) -> float:
  """Mean over bins of |how often right - how sure|, bins of as many pairs by how sure, each by its number of pairs."""
  sure = 1 / (1 + np.exp(-np.abs(margins)))
  right = (np.sign(margins) + 1) / 2
  parts = np.array_split(np.argsort(sure, kind='stable'), min(BINS, len(margins)))
  return float(sum(len(p) * abs(right[p].mean() - sure[p].mean()) for p in parts) / len(margins))
