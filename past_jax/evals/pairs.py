"""Preference accuracy on given pairs: whether the better completion is the likelier, and whether it became so."""

import jax
import numpy as np

from past_jax.evals.setting import Evaluation, Setting, calls, padded
from past_jax.logps import group_logps
from past_jax.mesh import host, put_batch
from past_jax.render import renderer, said
from past_jax.types import Plan, UserError

NAME = 'pairs'


def pair_accuracy(setting: Setting) -> Evaluation:
  """Of rows with two given completions, the better first, rendered as for training (config.view).

  Metrics: `pairs/likelier`, the share in which the better has the larger log-prob (ties half), and `pairs/margin`, the
  mean difference in nats; and once a run has evaluated before training, `pairs/accuracy`, the share in which training
  moved the difference towards the better (`rewards/accuracies` of a loss of pairs whose reference is the run's start).

  Raises:
    UserError: no row has two completions.
  """
  examples = [e for e in setting.examples if len(e.anchors) > 1]
  if not examples:
    raise UserError('pair_accuracy needs rows with two given completions, the better one first.')
  view = {**setting.view, 'anchors': 2}
  render = renderer(tokenizer=setting.tokenizer, completion_length=view['text_length'], **view)
  plan = Plan(anchor_source='given')
  program = jax.jit(lambda params, *args: group_logps(setting.policy, params, *args).sum(-1))

  def run(params, tick=lambda x: x, before=()):
    logps = []
    for part in padded(examples, setting.chunk):
      rendered = render(part, plan)
      given, prompts = rendered.sample.given, rendered.train
      prompts = type(prompts)(prompts.ids_BxP, prompts.length_B)
      args = put_batch(setting.mesh, (prompts, given.ids_BxAxT, given.length_BxA))
      logps.append(host(tick(program(params, *args))))
    logps_Nx2 = np.concatenate(logps)[: len(examples)].astype(np.float64)
    margins = logps_Nx2[:, 0] - logps_Nx2[:, 1]
    metrics = {f'{NAME}/likelier': likelier(margins), f'{NAME}/margin': float(margins.mean())}
    metrics[f'{NAME}/likelier/n'] = len(examples)
    first = [s['margin'] for s in before if s['kind'] == NAME]
    if len(first) == len(margins):
      metrics |= {f'{NAME}/accuracy': likelier(margins - first), f'{NAME}/accuracy/n': len(examples)}
    samples = [
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
    return metrics, samples

  return Evaluation(run, calls(setting, len(examples)))


def likelier(margins) -> float:
  return float(np.mean((np.sign(margins) + 1) / 2))
