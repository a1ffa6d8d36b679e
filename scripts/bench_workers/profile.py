"""Where a compiled program spends its time: jax.profiler's trace, summed by kind of operation.

The trace names the instruction of each event; the program's own text says what that instruction computes.
"""

import collections
import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax

# Kinds, told from what an instruction or the computation it calls consists of; the first that fits.
MOVES = {
  *('bitcast', 'broadcast', 'concatenate', 'constant', 'convert', 'copy', 'dynamic-slice', 'dynamic-update-slice'),
  *('get-tuple-element', 'gather', 'iota', 'pad', 'parameter', 'reshape', 'reverse', 'slice', 'transpose', 'tuple'),
  # the arithmetic of indices and bounds, which comes with slices
  *('select', 'compare', 'add', 'clamp', 'and'),
}
INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)')
COMPUTATION = re.compile(r'(?:ENTRY )?%?([\w.-]+) \(.*\{$')
CALLED = re.compile(r'(?:calls|to_apply)=%?([\w.-]+)')


@dataclasses.dataclass
class Op:
  """An instruction of a compiled program."""

  kind: str
  flops: int  # of its matrix products, for one execution
  source: str  # where the program's source put it


def shape(text: str) -> list[int]:
  found = re.match(r'\w+\[([\d,]*)\]', text)
  return [int(n) for n in found[1].split(',') if n] if found else []


def operations(text: str) -> dict[str, Op]:
  """Name -> Op for the instructions of a program's `as_text()`."""
  shapes, bodies, body = {}, collections.defaultdict(list), []
  for line in text.splitlines():
    if found := COMPUTATION.match(line):
      body = bodies[found[1]]
    elif found := INSTRUCTION.match(line):
      name, type_, opcode, rest = found.groups()
      shapes[name] = shape(type_)
      body.append((name, opcode, rest))

  def products(name, opcode, rest):
    """(has batch dimensions, FLOPs) of every matrix product that an instruction stands for."""
    if called := CALLED.search(rest):
      return [p for inner in bodies[called[1]] for p in products(*inner)]
    if opcode != 'dot':
      return []
    left = shapes[re.match(r'(?:\w+\[\S+ )?%?([\w.-]+)', rest)[1]]
    summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', rest)[1]
    flops = 2 * math.prod(shapes[name]) * math.prod(left[int(i)] for i in summed.split(',') if i)
    return [('lhs_batch_dims' in rest, flops)]

  def opcodes(opcode, rest):
    called = CALLED.search(rest)
    return {o for _, inner, r in bodies[called[1]] for o in opcodes(inner, r)} if called else {opcode}

  def op(name, opcode, rest):
    found, inside = products(name, opcode, rest), opcodes(opcode, rest)
    if found:
      kind = 'dot, batched (attention)' if any(batched for batched, _ in found) else 'dot'
    elif opcode == 'custom-call' and re.search('gemm|matmul', rest):
      kind = 'dot'
    elif inside & {'sort', 'scatter', 'topk'} or 'TopK' in rest:
      kind = 'sort, scatter'
    elif opcode in ('while', 'conditional', 'call'):
      kind = 'control'
    elif inside <= MOVES:
      kind = 'copy, slice, fill'
    elif inside & {'reduce', 'reduce-window'}:
      kind = 'reduce'
    else:
      kind = 'elementwise'
    source = re.search(r'op_name="([^"]*)"', rest)
    return Op(kind, sum(flops for _, flops in found), source[1] if source else '')

  return {item[0]: op(*item) for body in bodies.values() for item in body}


def events(folder: Path):
  """(instruction, its own nanoseconds) of a trace: what ran inside it on the same thread is not counted twice."""
  for file in folder.rglob('*.xplane.pb'):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for line in plane.lines:
        found = [(e.start_ns, -e.duration_ns, dict(e.stats).get('hlo_op')) for e in line.events]
        open_ = []  # [instruction, end, own time] of the events around the current one
        for start, duration, name in sorted((f for f in found if f[2]), key=lambda f: f[:2]):
          while open_ and open_[-1][1] <= start:
            yield open_[-1][0], open_[-1][2]
            open_.pop()
          if open_:
            open_[-1][2] += duration  # which is negative
          open_.append([name, start - duration, -duration])
        yield from ((name, own) for name, _, own in open_)


def profile(program, run) -> tuple[float, dict[str, tuple[int, float]], dict[str, Op]]:
  """(seconds, instruction -> (executions, seconds), name -> Op) of one `run` of the compiled program, warmed up."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds = time.perf_counter() - start
    ops, spent = operations(program.as_text()), collections.defaultdict(lambda: (0, 0.0))
    for name, own in events(Path(folder)):
      if name in ops:
        count, total = spent[name]
        spent[name] = count + 1, total + own / 1e9
  return seconds, dict(spent), ops


class Row(NamedTuple):
  name: str
  runs: int
  seconds: float
  share: float
  rate: float  # GFLOP/s


def table(spent: dict[str, tuple[int, float]], ops: dict[str, Op], most: int) -> tuple[list[Row], list[Row]]:
  """Rows by kind, and rows of the `most` costly instructions; the costliest first."""
  whole = sum(seconds for _, seconds in spent.values())

  def rows(groups: dict[str, list[str]]):
    out = []
    for group, names in groups.items():
      runs, seconds = (sum(spent[name][i] for name in names) for i in (0, 1))
      flops = sum(spent[name][0] * ops[name].flops for name in names)
      out.append(Row(group, runs, seconds, seconds / whole, flops / seconds / 1e9 if seconds else 0.0))
    return sorted(out, key=lambda row: -row.seconds)

  kinds = collections.defaultdict(list)
  for name in spent:
    kinds[ops[name].kind].append(name)
  return rows(kinds), rows({name: [name] for name in spent})[:most]
