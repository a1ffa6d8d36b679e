"""Edits one after another, each merged before the next: what is kept of the earlier ones (2506.10943, section 5)."""

import numpy as np

from past_jax.data.worlds.general import general
from past_jax.evals.self_edits import graded, notes, run_calls, trials_of
from past_jax.evals.setting import Evaluation, Setting
from past_jax.inner import Job, Row, runner
from past_jax.mesh import batch_ways
from past_jax.self_edits import lesson_of, recipe, rows_of
from past_jax.types import UserError

ARMS = ('plain', 'replay', 'kl')


def sequential(
  setting: Setting,
  *,
  arms: tuple = ARMS[:1],
  edits: str = 'own',
  passages: int = 8,
  sequences: int = 8,
  kl: float = 1.0,
  kept: int = 4,
  length: int = 256,
  temperature: float = 1.0,
  top_p: float = 1.0,
  seed: int = 0,
  stop: tuple = (),
) -> Evaluation:
  """The model is trained on a note on one passage after another, as config.inner says; all its passages are asked.

  Arms: `plain`; `replay`: as many rows of earlier notes, drawn anew for every edit, are trained on, too, so it does up
  to twice the steps; `kl`: KL to the model before the edit, on `kept` texts of data/general.txt, of weight `kl`.

  Metrics `sequential/ARM/ROW/COLUMN`, mean accuracy of the passage at that place of its sequence after so many edits,
  row 0 before any; and of these `learned`, the mean of the diagonal, right after a passage's own edit; `final`, that of
  the last row; `before`, that of row 0; `retained`, `final` less `learned` over all but the last passage, which is the
  backward transfer (arXiv 1706.08840); `first`, the same of the first passage; `first_gain`, its last accuracy less
  that before any edit.

  Args:
    edits: `own`, which the model writes as it then is, or `given`, the row's first given completion.

  Raises:
    UserError: an unknown arm, too few rows, and as the evaluation `self_edits`.
  """
  if not arms or set(arms) - set(ARMS):
    raise UserError(f'arms={tuple(arms)!r}: choose from {", ".join(ARMS)}.')
  if edits not in ('own', 'given'):
    raise UserError(f'edits={edits!r}: choose one of own, given.')
  for key, value in dict(passages=passages, sequences=sequences, kept=kept).items():
    if value < 1:
      raise UserError(f'{key}={value} must be at least 1.')
  if kl < 0:
    raise UserError(f'kl={kl} must be at least 0.')
  if len(setting.examples) < passages * sequences:
    raise UserError(
      f'{sequences} sequences of {passages} passages need {passages * sequences} rows, and there are '
      f'{len(setting.examples)}.'
    )
  inner, tokenizer = setting.inner, setting.tokenizer
  parts = [setting.examples[i * passages : (i + 1) * passages] for i in range(sequences)]
  alone = setting._replace(chunk=batch_ways(setting.mesh))  # one passage at a time is written about
  made = notes(alone, (edits,), count=1, length=length, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
  attempt = trials_of(setting)
  options = dict(policy=setting.policy, tokenizer=tokenizer, mesh=setting.mesh, input_axes=setting.input_axes)
  learners = {
    'plain': runner(**options, recipe=recipe(inner)).learn,
    'replay': runner(**options, recipe=recipe(inner, rows=2 * inner['rows'], steps=2 * inner['steps'])).learn,
    'kl': runner(**options, recipe=recipe(inner, kl=kl, kept=kept)).learn,
  }
  texts = general('replay')[:kept]
  calm = [Row((*tokenizer.encode(text, start=True), tokenizer.eos_id)) for text in texts]

  def asked(params, part, tick, grader) -> list[float]:
    return [float(np.mean(t.grades)) for (t,) in attempt(params, [(e, None) for e in part], (seed,), tick, grader)]

  def sequence(params, s: int, arm: str, tick, grader) -> np.ndarray:
    """[passages + 1, passages]"""
    part, earlier, out = parts[s], [], [asked(params, parts[s], tick, grader)]
    luck = np.random.default_rng((seed, s))
    for k, example in enumerate(part):
      ((text,),) = made.write(params, tick, [s * passages + k])[edits]
      lesson = lesson_of(inner, text, example)
      rows = [] if lesson is None else list(rows_of(tokenizer, inner, example, lesson)[0])
      again = [earlier[i] for i in luck.permutation(len(earlier))[: len(rows)]] if arm == 'replay' else []
      own = (None, None) if lesson is None else (lesson.lr, lesson.epochs)
      job = Job([*rows, *again], (), seed + k, *own, kept=calm if arm == 'kl' else ())
      params, _ = learners[arm](params, job, tick)
      earlier += rows
      out.append(asked(params, part, tick, grader))
    return np.array(out)

  def run(params, grader, tick):
    metrics = {}
    for arm in arms:
      found = np.mean([sequence(params, s, arm, tick, grader) for s in range(sequences)], axis=0)
      own = np.array([found[k + 1, k] for k in range(passages)])
      name = f'sequential/{arm}'
      metrics |= {f'{name}/{i}/{j}': float(x) for (i, j), x in np.ndenumerate(found)}
      metrics |= {
        f'{name}/learned': float(own.mean()),
        f'{name}/final': float(found[-1].mean()),
        f'{name}/before': float(found[0].mean()),
        f'{name}/retained': float((found[-1] - own)[:-1].mean()) if passages > 1 else 0.0,
        f'{name}/first': float(found[-1, 0] - own[0]),
        f'{name}/first_gain': float(found[-1, 0] - found[0, 0]),
      }
    return metrics | {'sequential/n': sequences}, []

  each = run_calls(setting, passages)
  return graded(setting, run, len(arms) * sequences * (each + passages * (each + 1 + (edits == 'own'))))
