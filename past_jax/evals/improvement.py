"""How much better improved responses are than the drafts they were made of, as judges say that nobody trained on."""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from past_jax.evals.chains import of_drafts, of_scores, of_texts, settled, shown
from past_jax.evals.setting import Evaluation, Setting, calls, prompt_parts, refuse_long
from past_jax.functions import scorer
from past_jax.logps import group_logps, token_mask
from past_jax.mesh import host, put_batch
from past_jax.render import prompt_ids, said
from past_jax.text import pack_completions
from past_jax.types import UserError
from past_jax.writer import writer

NAME, BASELINE, TEXT = 'improvement', 'baseline', 'text'
LIKELIHOOD = 'likelihood'


def improvement(
  setting: Setting,
  *,
  judges: Mapping[str, str],
  iterations: int = 1,
  temperatures: Sequence[float] = (1.0,),
  drafts: Literal['base', 'given'] = 'base',
  baseline: Literal['', 'self_refine'] = '',
  feedback: str = '',
  refine: str = '',
  seed: int = 0,
  copies: float = 1.0,
  good: float = 0.5,
  limit: int = 256,
) -> Evaluation:
  """Win rate less lose rate of improved responses against their drafts (arXiv 2310.00898), over the setting's rows.

  A draft y_0 is a sample of the role `base` in the plain view (config.view.instruction), at config.improve.temperature;
  y_i is a sample of the policy, which reads y_(i-1) in config.improve.instruction. Whatever is compared, is compared
  with y_0, but for the copies.

  Metrics, for each judge, temperature T and iteration I, as `improvement/JUDGE/tT/iI/...`:
    win, lose, delta: shares of rows whose y_I scores above or below y_0, and their difference; `win/n`: rows
    delta_low, delta_mid, delta_high: the same of the rows whose drafts are in that third by score. Equal drafts share
      their mean rank, so they are in one third; a third may be empty, and is then left out
    score: mean of y_I
    spoilt: of the drafts that score at least `good`, the share whose y_I scores less; left out where there are none
    elo: Elo points over y_0, of Bradley-Terry's model of all rows' comparisons between iterations (`elo.py`)
    over_baseline: delta less that of the baseline
  Of several iterations `improvement/JUDGE/tT/rises` is the share of them that raise the mean score. Of several
  temperatures `improvement/JUDGE/best_temperature` is that of the largest delta of y_1, the lowest of equals, and
  `.../baseline_hotter` that of the baseline less it.
  `improvement/JUDGE/draft` is the mean score of y_0 and `.../good` the share that scores at least `good`.
  `improvement/text/tT/iI/copied` is the share of rows whose y_I is a copy of y_(I-1), and `.../length` the mean length
  of y_I over that of y_0, in characters. `improvement/trimmed` is the share of prompts that were cut on the left.
  The baseline's are `improvement/baseline/...`, of the same drafts. A row in which a judge abstains is left out of its
  figures.

  Args:
    judges: NAME: 'module:callable', f(completion, example) -> a score or None; or 'likelihood': the mean log-prob of
      the response's tokens, its end included, under the role `base` in the plain view, in nats. None of them should
      have been trained on, and as judges disagree, give at least two.
    iterations: how often a response is improved.
    temperatures: of the improver and of the baseline; the noise is the same for all.
    drafts: 'base', or 'given': the last of the row's given completions, which of a pair is the worse.
    baseline: 'self_refine' (arXiv 2303.17651): the base writes feedback, then the response again, with no training.
      It reads the last draft and feedback only, not the whole history.
    feedback, refine: its instructions, over {prompt}, {text} and {draft}, the second over {feedback}, too. Without
      the first there is no feedback; without the second it is config.improve.instruction.
    seed: of all samples.
    copies: a response is a copy if it has this share of its characters in common, in order, with what it was made of
      (difflib's ratio, white space around it aside); 1: if it is the same.
    good: the score at which a draft counts as good.
    limit: how many rows are improved, the first; 0: all. Without config.eval.sources they are those that are studied.

  Raises:
    UserError: there is no config.improve; a key that makes no sense; a judge that cannot be imported; no rows, or with
      drafts='given' one that has none or whose draft is longer than config.eval.answer_length.
  """
  problems(setting, judges, iterations, temperatures, drafts, baseline, feedback, refine, copies)
  tokenizer, view, improve = setting.tokenizer, setting.view, setting.improve
  examples = setting.examples[: limit or None]
  scorers = {name: scorer(f, f'judges.{name}') for name, f in judges.items() if f != LIKELIHOOD}
  shape = dict(policy=setting.policy, tokenizer=tokenizer, mesh=setting.mesh)
  shape |= dict(length=setting.answer_length, chunk=setting.chunk)
  plain = [prompt_ids(tokenizer, view['instruction'], e, view['chat']) for e in examples]
  given = [said(e.anchors[-1]) for e in examples] if drafts == 'given' else []
  refuse_long([tokenizer.encode(text) for text in given], setting.answer_length, 'answer_length', 'drafts')
  write_draft = writer(prompt_length=view['prompt_length'], **shape)
  write = writer(prompt_length=improve['prompt_length'], **shape)

  @jax.jit
  def likelihoods(params, prompts, ids_Bx1xT, length_Bx1):
    logps = group_logps(setting.policy, params, prompts, ids_Bx1xT, length_Bx1)
    return logps.sum((1, 2)) / token_mask(prompts, length_Bx1, ids_Bx1xT.shape[2]).sum((1, 2))

  def scored(name: str, base, texts: Sequence[str], tick) -> list[float]:
    if name in scorers:
      return [scorers[name](text, example) for text, example in zip(texts, examples, strict=True)]
    said_, out = [[[*tokenizer.encode(text), tokenizer.eos_id]] for text in texts], []
    for part, prompts in prompt_parts(setting._replace(prompt_length=view['prompt_length']), plain):
      ids, length, _ = pack_completions([said_[i] for i in part], setting.answer_length + 1)
      out += host(tick(likelihoods(base, prompts, *put_batch(setting.mesh, (ids, length))))).tolist()
    return out[: len(texts)]

  def run(policy, base, tick=lambda x: x, before=()):
    del before
    key, cut = jax.random.key(seed), []

    def asked(instruction: str, texts: Sequence[str], feedbacks: Sequence[str] = ()) -> list[list[int]]:
      rows = [
        prompt_ids(tokenizer, instruction, e, view['chat'] or bool(e.messages), draft=text, feedback=critique)
        for e, text, critique in zip(examples, texts, feedbacks or [''] * len(texts), strict=True)
      ]
      cut.extend(len(row) > improve['prompt_length'] for row in rows)
      return rows

    def improved(texts, key, temperature):
      return write(policy, key, asked(improve['instruction'], texts), temperature, tick)

    def refined(texts, key, temperature):
      critique = jax.random.fold_in(key, 1)
      said_ = write(base, critique, asked(feedback, texts), temperature, tick) if feedback else ()
      return write(base, key, asked(refine or improve['instruction'], texts, said_), temperature, tick)

    def drafted():
      cut.extend(len(row) > view['prompt_length'] for row in plain)
      return write_draft(base, jax.random.fold_in(key, 0), plain, improve['temperature'], tick)

    first = given or drafted()
    firsts = {name: scored(name, base, first, tick) for name in judges}
    metrics, samples = {}, []
    for prefix, step in {NAME: improved, **({f'{NAME}/{BASELINE}': refined} if baseline else {})}.items():
      for temperature in temperatures:
        chain, scores = [first], {name: [firsts[name]] for name in judges}
        for i in range(1, iterations + 1):
          chain.append(step(chain[-1], jax.random.fold_in(key, i), temperature))
          for name in judges:
            scores[name].append(settled(scored(name, base, chain[-1], tick), chain, scores[name]))
        at, kind = f't{temperature:g}', f'{prefix}/t{temperature:g}'
        metrics |= {f'{prefix}/{TEXT}/{at}/{k}': v for k, v in of_texts(chain, copies).items()}
        for name in judges:
          metrics |= {f'{prefix}/{name}/{at}/{k}': v for k, v in of_scores(np.array(scores[name]), good).items()}
        samples += shown(kind, examples, chain, scores)
    for name in judges:
      metrics |= {f'{NAME}/{name}/{k}': v for k, v in of_drafts(np.array(firsts[name]), good).items()}
    metrics |= best(metrics, judges, temperatures) if len(temperatures) > 1 else {}
    metrics |= over_baseline(metrics) | {f'{NAME}/trimmed': float(np.mean(cut))}
    return metrics, samples

  made = len(temperatures) * iterations
  written = (drafts == 'base') + made + made * bool(baseline) + made * bool(feedback)
  judged = (1 + made + made * bool(baseline)) * (len(judges) - len(scorers))
  return Evaluation(run, (written + judged) * calls(setting, len(examples)), ('policy', 'base'))


def over_baseline(metrics: Mapping[str, float]) -> dict[str, float]:
  """The differences of deltas, where both are there."""
  pairs = {name.replace(f'/{BASELINE}/', '/', 1): name for name in metrics if name.startswith(f'{NAME}/{BASELINE}/')}
  return {
    f'{name.removesuffix("delta")}over_baseline': metrics[name] - metrics[other]
    for name, other in pairs.items()
    if name.endswith('/delta') and name in metrics
  }


def best(metrics: Mapping[str, float], judges, temperatures: Sequence[float]) -> dict[str, float]:
  """The temperatures of the largest deltas, and how much hotter the baseline's is; nothing where no row has a score."""
  out = {}
  for prefix in (NAME, f'{NAME}/{BASELINE}'):
    for name in judges:
      deltas = {t: metrics[key] for t in sorted(temperatures) if (key := f'{prefix}/{name}/t{t:g}/i1/delta') in metrics}
      out |= {f'{prefix}/{name}/best_temperature': float(max(deltas, key=deltas.get))} if deltas else {}
  for name in judges:
    ours, theirs = (f'{prefix}/{name}/best_temperature' for prefix in (NAME, f'{NAME}/{BASELINE}'))
    out |= {f'{NAME}/{name}/baseline_hotter': out[theirs] - out[ours]} if theirs in out else {}
  return out


def problems(setting, judges, iterations, temperatures, drafts, baseline, feedback, refine, copies) -> None:
  """Raises what `improvement` says."""
  if not setting.improve:
    raise UserError(
      "improvement needs the section config.improve, such as {'instruction': '{prompt}\\n{draft}\\n', "
      "'prompt_length': 64, 'temperature': 1.0}: what the improver reads."
    )
  if not setting.examples:
    raise UserError('improvement needs rows that have a prompt.')
  if drafts == 'given' and (lacking := [e.where or e.prompt for e in setting.examples if not e.anchors]):
    raise UserError(f"drafts='given' needs rows with given completions, and {lacking[0]!r} has none.")
  if not judges:
    raise UserError("judges is empty: give NAME: 'module:callable', or NAME: 'likelihood'.")
  if strange := [name for name in judges if '/' in name or name in (BASELINE, TEXT)]:
    raise UserError(f'judges.{strange[0]}: a judge has a name without /, other than {BASELINE} and {TEXT}.')
  if iterations < 1:
    raise UserError(f'iterations={iterations}: at least 1.')
  if not temperatures or len(set(temperatures)) < len(temperatures) or min(temperatures) < 0:
    raise UserError(f'temperatures={tuple(temperatures)}: give at least one, each once, none below 0.')
  if (feedback or refine) and not baseline:
    raise UserError("feedback and refine are the baseline's instructions: set baseline='self_refine'.")
  if not 0 < copies <= 1:
    raise UserError(f'copies={copies}: give a share of characters above 0, up to 1.')
