"""Tasks of lm-evaluation-harness, run in this process on the model as it is."""

import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from past_jax.evals.setting import Evaluation, Setting, prompt_parts, refuse_long
from past_jax.logps import group_outputs
from past_jax.mesh import host, put_batch
from past_jax.sampler import sample
from past_jax.text import completion_text, pack_completions
from past_jax.types import UserError


def lm_eval(setting: Setting, *, tasks: tuple = (), limit: int = 0, shots: int = 0, folder: str = '') -> Evaluation:
  """Metrics `lm_eval/TASK/METRIC` as the harness computes them, and `.../n`, the number of documents.

  Contexts longer than `prompt_length` are cut on the left, as its own models do; answers have up to `answer_length`
  tokens. Device calls are not known beforehand: none is announced.

  Args:
    tasks: names of the harness's tasks or groups.
    limit: documents per task; 0: all.
    shots: examples before each question.
    folder: where more tasks are described, as YAML files.

  Raises:
    UserError: the harness is not installed, no task or an unknown one is named.
  """
  try:
    import lm_eval as harness
    from lm_eval.tasks import TaskManager
  except ImportError as error:
    raise UserError(f'it needs lm-eval ({error}); run: pip install "past-jax[tasks]"') from error
  manager = TaskManager(include_path=folder or None)
  if unknown := set(tasks) - set(manager.all_tasks):
    raise UserError(f'the harness has no task {", ".join(map(repr, sorted(unknown)))}.')
  if not tasks:
    raise UserError("name at least one task, as in {'tasks': ('arc_easy',)}.")
  programs = model_programs(setting)

  def run(params, tick=lambda x: x, before=()):
    del before
    logging.getLogger('lm_eval').setLevel(logging.WARNING)
    model = _model_class()(setting, *(lambda *args, f=f: tick(f(params, *args)) for f in programs))
    found = harness.simple_evaluate(
      model,
      tasks=list(tasks),
      limit=limit or None,
      num_fewshot=shots,
      task_manager=manager,
      log_samples=False,
      bootstrap_iters=0,
    )
    metrics = {}
    for task, values in found['results'].items():
      for name, value in values.items():
        metric, _, filtered = name.partition(',')
        if filtered and not metric.endswith('_stderr') and isinstance(value, int | float):
          name = f'lm_eval/{task}/{metric}' + (f'/{filtered}' if filtered != 'none' else '')
          metrics[name] = float(value)
          if task in found['n-samples']:
            metrics[f'{name}/n'] = found['n-samples'][task]['effective']
    return metrics, []

  return Evaluation(run, 0)


def model_programs(setting: Setting) -> tuple[Callable, Callable]:
  """(score, write): (params, prompts, ids_BxT, length_B) -> (logps_B, greedy_B); (params, prompts, ...) -> Group."""

  @jax.jit
  def score(params, prompts, ids_BxT, length_B):
    out = group_outputs(setting.policy, params, prompts, ids_BxT[:, None], length_B[:, None], statistics=('top',))
    logps, top = out['logps_BxGxT'][:, 0], out['top_BxGxT'][:, 0]
    return logps.sum(-1), (logps >= top).all(-1)

  @jax.jit
  def write(params, prompts, keys, temperature, stop):
    shape = dict(group=1, length=setting.answer_length)
    return sample(setting.policy, params, keys, prompts, temperature, stop, **shape)

  return score, write


def _model_class():
  """The harness's LM, made when it is there to be inherited from."""
  from lm_eval.api.model import LM

  class Model(LM):
    def __init__(self, setting: Setting, score: Callable, write: Callable):
      super().__init__()
      self.setting, self.score, self.write = setting, score, write
      self.vocabulary = setting.tokenizer

    def context(self, text: str) -> list[int]:
      """Never empty: something must predict the first token."""
      return self.vocabulary.plain(text) or [self.vocabulary.eos_id]

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
      refuse_long([said for _, said in pairs], self.setting.answer_length, 'answer_length', "harness's continuations")
      out = []
      for part, prompts in prompt_parts(self.setting, [context for context, _ in pairs]):
        ids, length, _ = pack_completions([[pairs[i][1]] for i in part], self.setting.answer_length)
        sums, greedy = host(self.score(prompts, *put_batch(self.setting.mesh, (ids[:, 0], length[:, 0]))))
        out += list(zip(sums.tolist(), greedy.tolist()))
      return out[: len(pairs)]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
      pairs = []
      for context, said in (request.args for request in requests):
        words = context.rstrip(' ')  # a space at the end belongs to the word after it
        pairs.append((self.context(words), self.vocabulary.encode(context[len(words) :] + said)))
      return self.scores(pairs)

    def loglikelihood_rolling(self, requests) -> list[float]:
      """Every token once, `answer_length` at a time, after as many as fit `prompt_length`."""
      T, totals = self.setting.answer_length, []
      for (text,) in (request.args for request in requests):
        start = [self.vocabulary.bos_id if self.vocabulary.adds_bos else self.vocabulary.eos_id]
        ids = self.vocabulary.encode(text, start=True)
        pairs = [((start + ids[:i])[-self.setting.prompt_length :], ids[i : i + T]) for i in range(0, len(ids), T)]
        totals.append(sum(logp for logp, _ in self.scores(pairs)))
      return totals

    def generate_until(self, requests) -> list[str]:
      rows = [self.context(request.args[0]) for request in requests]
      wishes = [request.args[1] for request in requests]
      newline, texts = self.vocabulary.encode('\n'), []
      for part, prompts in prompt_parts(self.setting, rows):
        keys = put_batch(self.setting.mesh, jax.random.split(jax.random.key(len(texts)), len(part)))
        wish = wishes[part[0]]  # the harness asks task by task: the same of all
        until = [wish['until']] if isinstance(wish.get('until'), str) else wish.get('until') or []
        temperature = float(wish.get('temperature') or 0.0) if wish.get('do_sample') else 0.0
        ends = newline[0] if len(newline) == 1 and '\n' in until else -1
        stop = jnp.array([*self.vocabulary.stop_ids, ends])
        group = host(self.write(prompts, keys, temperature, stop))
        for b in range(len(part)):
          text = completion_text(self.vocabulary, group.ids_BxGxT[b, 0], int(group.length_BxG[b, 0]))
          texts.append(text[: min((at for end in until if (at := text.find(end)) >= 0), default=len(text))])
      return texts[: len(rows)]

  return Model
