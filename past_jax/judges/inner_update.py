"""A self-edit is worth what the model knows once it was trained on it (arXiv 2506.10943, equation 1)."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from past_jax.judges.rows import bodies
from past_jax.self_edits import MODEL, lesson_of, rows_of, trials
from past_jax.types import Judge, Judgement, Policy, UserError


def variance(value_GxS: np.ndarray) -> np.ndarray:
  """Of each member's mean over S seeds, as far as it sets a member apart: what a seed does to all of them is left out.

  Less the mean of its seed, a value keeps 1 - 1/G of its variance.
  """
  G, S = value_GxS.shape
  if S == 1:
    return np.zeros(G)
  own = value_GxS - value_GxS.mean(0) if G > 1 else value_GxS
  return own.var(1, ddof=1) / S * (G / (G - 1) if G > 1 else 1.0)


def inner_update(
  role: str = 'policy',
  seeds: int = 3,
  reward: Literal['accuracy', 'gain', 'logp'] = 'accuracy',
  *,
  policy: Policy,
  tokenizer,
  mesh,
  inner: Mapping[str, Any],
  input_axes,
) -> Judge:
  """Score: mean over inner runs of how well the example's questions are answered after training on the completion.

  Each run trains the role's model as config.inner says, on what config.inner.documents makes of the completion, and
  is asked the example's questions without anything else in view. Runs of different completions share their seeds, so
  that what seeds do to all of them is no difference between them. An empty completion abstains. One that
  config.inner.documents cannot read, as an empty one of a choice, answers nothing: accuracy 0; under `logp`, which 0
  would beat, it is worth what the model as it is says.

  Args:
    seeds: inner runs per completion.
    reward: `accuracy`: mean grade, by config.inner.grade; `gain`: less that of the model as it is; `logp`: mean
      log-prob of the expected answers, in nats.

  var_BxG: see `variance`; of one seed there is none. info: `accuracy`, `gain` and `answer_logp` whatever the reward;
  `unread`, 1 where it could not be read; `rows_cut`, its rows that were left out or cut; and, not one number each,
  `before` and `after`, the mean grade of every question, and `inner_loss` of every step, NaN beyond a run's end.

  Raises:
    UserError: config lacks the section `inner`, or its keys are wrong; from `score`, an example without questions.
  """
  if not inner:
    raise UserError("the judge 'inner_update' needs the section config.inner: see configs/seal.py.")
  attempt = trials(policy=policy, tokenizer=tokenizer, mesh=mesh, inner=inner, input_axes=input_axes)

  def score(weights, key, group, examples, tick=lambda arrays: arrays) -> Judgement:
    B, G = group.length_BxG.shape
    if lacking := [example.where or f'row {b}' for b, example in enumerate(examples) if not example.questions]:
      raise UserError(f'{lacking[0]}: judge inner_update asks the questions of a row, and this one has none.')
    first = int(jax.random.randint(key, (), 0, 1 << 30))
    numbers = [first + i for i in range(seeds)]
    texts = [[tokenizer.decode(ids).strip() for ids in row] for row in bodies(tokenizer, group)]
    wanted, places, failed = [(example, None) for example in examples], {}, set()
    cut = np.zeros((B, G), np.float32)
    for b, example in enumerate(examples):
      for g, text in enumerate(texts[b]):
        if not text and inner['documents'] != 'choice':
          continue
        lesson = lesson_of(inner, text, example)
        if lesson is None:
          failed.add((b, g))
        else:
          places[b, g] = len(wanted)
          wanted.append((example, lesson))
          cut[b, g] = rows_of(tokenizer, inner, example, lesson)[1]
    tried = attempt(weights[role], wanted, numbers, tick, weights['base'] if inner['grade'] == MODEL else None)

    Q = max(len(example.questions) for example in examples)
    K = max((len(t.losses) for some in tried for t in some), default=0)
    mean, logp, var, gain = np.full((4, B, G), np.nan, np.float32)
    before, after, losses = (np.full((B, G, n), np.nan, np.float32) for n in (Q, Q, K))
    of_seed = {}  # b -> {g: the value of every seed}
    value = lambda t: np.mean(t.logps if reward == 'logp' else t.grades)
    for (b, g), n in places.items():
      some, start = tried[n], tried[b][0]
      values = [value(t) for t in some]
      mean[b, g], logp[b, g] = np.mean([t.grades for t in some]), np.mean([t.logps for t in some])
      gain[b, g] = mean[b, g] - np.mean(start.grades)
      of_seed.setdefault(b, {})[g] = values
      before[b, g, : len(start.grades)] = start.grades
      after[b, g, : len(start.grades)] = np.mean([t.grades for t in some], axis=0)
      losses[b, g, : len(some[0].losses)] = np.mean([t.losses for t in some], axis=0)
    for b, values in of_seed.items():
      var[b, list(values)] = variance(np.array(list(values.values())))
    unread = np.zeros((B, G), np.float32)
    for b, g in failed:
      start = tried[b][0]
      mean[b, g], gain[b, g], logp[b, g], unread[b, g] = 0.0, -np.mean(start.grades), np.mean(start.logps), 1.0
    scores = {'accuracy': mean, 'gain': gain, 'logp': logp}[reward]
    info = dict(accuracy=mean, answer_logp=logp, gain=gain, unread=unread, rows_cut=cut)
    info |= dict(before=before, after=after, inner_loss=losses)
    info = {name: jnp.asarray(x) for name, x in info.items()}
    return Judgement(jnp.asarray(scores), jnp.asarray(np.nan_to_num(var)) if seeds > 1 else None, info=info)

  def lowered(name: str):
    return lambda weights, group: attempt.lower[name](weights['base' if name == 'grade' else role])

  lower = {f'judge: {name}': lowered(name) for name in attempt.lower}
  return Judge(score, on_current_policy=role == 'policy', lower=lower, ticks=True)
