"""What a compiled program does, counted from its optimised HLO text: FLOPs, bytes of HBM, bytes over the interconnect.

XLA's `cost_analysis()` counts the body of a loop once, so of a scanned stack one layer. Here a body counts as often as
it runs: `known_trip_count` where XLA says it, else what follows from the loop's condition, its start and its step. How
often other loops run depends on data (the sampler's): their bodies are counted once, and kept apart.

All counts are per device, and none is a time:

- FLOPs are those of products (dot, convolution, Pallas attention), two per multiply-add, on elements that exist: not
  padding, not the zeros with which a TPU spells batched products as convolutions. Elementwise arithmetic is left out.
- Bytes are what operations read and write in HBM, as it lies there, with the padding of tiles. A fusion reads its
  operands and writes its results; of what it only slices it reads the slices, and where it updates part of an array in
  place it writes that part. Arrays in other memories (VMEM) cost nothing.
- A collective sends what a ring algorithm would: (n-1)/n of an array among n devices, twice that for an all-reduce.
- Of a conditional's branches the one with most FLOPs, then most bytes, counts.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SIZES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'c64': 8, 'c128': 16, 'token': 0, 'opaque': 0}  # bytes
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')
# They move nothing: names for what is there already, or the end of what was counted when it began.
FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'),
  *('opt-barrier', 'optimization-barrier', 'add-dependency', 'domain', 'copy-done', 'async-done', 'async-update'),
}
SLICES = ('dynamic-slice', 'slice', 'gather')
ASYNC = ('AsyncCollectiveStart', 'AsyncCollectiveDone')  # of libtpu, inside fusions; the array passes through
# Pallas attention tells its work in a named scope: live tiles of queries x keys, per head of a row.
SPLASH = re.compile(r'splash_(\d+)x(\d+)x(\d+)')


class Shape(NamedTuple):
  """One array."""

  dtype: str
  dims: tuple[int, ...]
  layout: str  # minor to major, tiles and memory space, as XLA writes them

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def itemsize(self) -> float:
    if self.dtype in SIZES:
      return SIZES[self.dtype]
    return int(re.search(r'\d+', self.dtype)[0]) / 8  # f32, s8, f8e4m3fn

  @property
  def bytes(self) -> float:
    return self.size * self.itemsize

  @property
  def in_hbm(self) -> bool:
    space = re.search(r'S\((\d+)\)', self.layout)
    return space is None or space[1] == '0'

  @property
  def hbm(self) -> float:
    """Bytes in HBM, where the minor dimensions fill whole tiles: T(8,128) on a TPU."""
    if not self.in_hbm:
      return 0
    dims, tile = list(self.dims), re.search(r'T\(([\d,]+)\)', self.layout)
    order = [int(i) for i in self.layout.partition(':')[0].split(',') if i]
    if tile and len(order) == len(dims):
      for axis, unit in zip(order, reversed([int(n) for n in tile[1].split(',')])):
        if dims[axis] > 1 or unit == 128:  # a row of one does not fill a tile of eight: XLA takes a smaller one
          dims[axis] = -(-dims[axis] // unit) * unit
    return math.prod(dims) * self.itemsize


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  shapes: tuple[Shape, ...]  # of a tuple its elements, flat
  opcode: str
  operands: tuple[str, ...]
  inside: str  # what stands between the operands' parentheses: a constant's value, a parameter's number
  attributes: str
  root: bool

  def attribute(self, pattern: str) -> str:
    """The first group of a regular expression in the attributes, or ''."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else ''

  @property
  def source(self) -> str:
    """Where it comes from in the program: JAX's name stack."""
    return self.attribute(r'op_name="([^"]*)"')

  @property
  def calls(self) -> list[str]:
    """The computations it runs, once each: not the body of a loop, and not a reduction's function."""
    found = re.search(r'\b(?:calls|to_apply)=\{?([^,\s}]+)', self.attributes)
    return [found[1].lstrip('%')] if found and self.opcode in ('fusion', 'call', 'async-start') else []


Computation = dict[str, Instruction]  # by name, in their order


def shapes_of(text: str) -> tuple[Shape, ...]:
  found = re.findall(r'([a-z]\w*)\[([\d,<=]*)\](?:\{((?:[^{}]|\{[^{}]*\})*)\})?', text)
  ints = lambda dims: tuple(int(d.lstrip('<=')) for d in dims.split(',') if d)
  return tuple(Shape(dtype, ints(dims), layout) for dtype, dims, layout in found)


def balanced(text: str, start: int) -> int:
  """The end of the parenthesis that opens at `start`, behind it."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  raise ValueError(f'a parenthesis is not closed: {text[:80]}')


BEGINS = re.compile(r'\s+(ROOT )?%?([^\s=]+) = ')


def lines(text: str) -> Iterator[str]:
  """One for an instruction: the metadata of kernels have line breaks."""
  held = ''
  for line in re.sub(r'/\*[^*]*\*/', '', text).splitlines():
    if held and line != '}' and not BEGINS.match(line):
      held += line
      continue
    if held:
      yield held
    held = line if BEGINS.match(line) else ''
    if not held:
      yield line
  if held:
    yield held


def instruction(line: str) -> Instruction:
  head = BEGINS.match(line)
  rest = line[head.end() :]
  end = balanced(rest, 0) if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  close = balanced(rest, len(opcode))
  inside = rest[len(opcode) + 1 : close - 1]
  names = tuple(re.findall(r'%([^\s,()]+)', inside))
  return Instruction(head[2], shapes_of(shape), opcode, names, inside, rest[close:], bool(head[1]))


class Module:
  """An HLO module's text, read once."""

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry, self.roots = '', {}
    self.devices = int((re.search(r'num_partitions=(\d+)', text) or ('', 1))[1])
    self.devices *= int((re.search(r'replica_count=(\d+)', text) or ('', 1))[1])
    current = None
    for line in lines(text):
      if current is None:
        head = re.match(r'(ENTRY )?%?([^\s(]+) \(.*\{$', line)
        if head:
          name = head[2]
          current = self.computations.setdefault(name, {})
          self.entry = name if head[1] else self.entry
      elif line == '}':
        current = None
      else:
        op = instruction(line)
        current[op.name] = op
        if op.root:
          self.roots[name] = op
    if not self.entry:
      raise ValueError('This is no text of an HLO module: there is no ENTRY computation.')

  def instructions(self) -> Iterator[Instruction]:
    for computation in self.computations.values():
      yield from computation.values()


# --- how often a loop runs ----------------------------------------------------------------------------------------


class Frame(NamedTuple):
  """A computation as it is called: `loop` runs it as its body (or condition), `parent` is where that stands."""

  computation: str
  loop: Instruction | None = None
  parent: 'Frame | None' = None
  arguments: tuple = ()  # of a fusion: what its parameters are


THROUGH = ('copy', 'bitcast', 'convert', 'reshape', 'opt-barrier', 'optimization-barrier', 'copy-done')


def element(module: Module, frame: Frame, name: str, path: tuple[int, ...] = ()):
  """(frame, instruction, path) that `name` is, through copies, tuples and fusions."""
  found = module.computations[frame.computation][name]
  if found.opcode in THROUGH:
    return element(module, frame, found.operands[0], path)
  if found.opcode == 'copy-start':
    return element(module, frame, found.operands[0], path[1:])
  if found.opcode == 'get-tuple-element':
    return element(module, frame, found.operands[0], (int(found.attribute(r'index=(\d+)')), *path))
  if found.opcode == 'tuple' and path:
    return element(module, frame, found.operands[path[0]], path[1:])
  if found.opcode == 'fusion':
    inner = Frame(found.calls[0], None, frame, found.operands)
    return element(module, inner, module.roots[found.calls[0]].name, path)
  if found.opcode == 'parameter' and frame.arguments:
    return element(module, frame.parent, frame.arguments[int(found.inside)], path)
  return frame, found, path


def constant(module: Module, frame: Frame, name: str, path: tuple[int, ...] = ()) -> int | None:
  """The integer that `name` always is, if that can be told: a constant, or what a loop passes on unchanged."""
  frame, found, path = element(module, frame, name, path)
  if found.opcode == 'constant':
    return int(found.inside) if re.fullmatch(r'-?\d+', found.inside) else None
  if found.opcode in ('add', 'subtract', 'multiply') and not path:
    a, b = (constant(module, frame, operand) for operand in found.operands)
    if a is None or b is None:
      return None
    return {'add': a + b, 'subtract': a - b, 'multiply': a * b}[found.opcode]
  if found.opcode == 'parameter' and frame.loop is not None and path:
    body = Frame(frame.loop.attribute(r'body=%?([^,\s]+)'), frame.loop, frame.parent)
    _, after, kept = element(module, body, module.roots[body.computation].name, path)
    if after.opcode == 'parameter' and kept == path:
      return constant(module, frame.parent, frame.loop.operands[0], path)
  return None


def trips(module: Module, loop: Instruction, frame: Frame) -> int | None:
  """How often the body of a `while` runs; None: that depends on data."""
  if known := loop.attribute(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)'):
    return int(known)
  condition = Frame(loop.attribute(r'condition=%?([^,\s]+)'), loop, frame)
  body = Frame(loop.attribute(r'body=%?([^,\s]+)'), loop, frame)
  at, test, _ = element(module, condition, module.roots[condition.computation].name)
  if test.opcode != 'compare':
    return None
  order = test.attribute(r'direction=(\w+)')
  sides = [element(module, at, operand) for operand in test.operands]
  bounds = [constant(module, at, operand) for operand in test.operands]
  for side, bound, flipped in ((sides[0], bounds[1], False), (sides[1], bounds[0], True)):
    _, counter, path = side
    if bound is None or counter.opcode != 'parameter' or len(path) != 1:
      continue
    start = constant(module, frame, loop.operands[0], path)
    inside, step, _ = element(module, body, module.roots[body.computation].name, path)
    if start is None or step.opcode not in ('add', 'subtract'):
      return None
    by = None
    for own, other in (step.operands, step.operands[::-1]):
      _, before, same = element(module, inside, own)
      if before.opcode == 'parameter' and same == path:
        by = constant(module, inside, other)
        break
    if not by:
      return None
    by = -by if step.opcode == 'subtract' else by
    order = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE'}.get(order, order) if flipped else order
    bound += {'LE': 1, 'GE': -1}.get(order, 0)
    return max(0, -(-(bound - start) // by)) if order != 'EQ' else None
  return None


# --- what an instruction costs ------------------------------------------------------------------------------------


def dot_flops(op: Instruction, lhs: Shape) -> int:
  contracted = [int(i) for i in op.attribute(r'lhs_contracting_dims=\{([\d,]*)\}').split(',') if i]
  return 2 * op.shapes[0].size * math.prod(lhs.dims[i] for i in contracted)


@functools.cache
def taps(size: int, out: int, window: int, stride: int, low: int, dilate: int, window_dilate: int) -> int:
  """Pairs of an output position and a window position that meet an element of the input, in one dimension."""
  found = 0
  for k in range(window):
    for o in range(out):
      at = o * stride + k * window_dilate - low
      found += at >= 0 and at % dilate == 0 and at // dilate < size
  return found


def convolution_flops(op: Instruction, lhs: Shape, rhs: Shape) -> int:
  """A TPU's products are convolutions: batch axes become spatial ones, whose windows mostly meet padding."""
  labels_in, labels_kernel, labels_out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.attributes).groups()
  out, spatial = op.shapes[0], [c for c in labels_kernel if c.isdigit()]
  window = op.attribute(r'window=\{([^}]*)\}')

  def field(name: str, default: str) -> list[list[int]]:
    found = re.search(rf'\b{name}=([\d_x-]+)', window)
    parts = found[1].split('x') if found else [default] * len(spatial)
    return [[int(n) for n in part.split('_')] for part in parts]

  keys = ('size', '1'), ('stride', '1'), ('pad', '0_0'), ('lhs_dilate', '1'), ('rhs_dilate', '1')
  each = zip(*(field(*key) for key in keys))
  total = 2 * rhs.dims[labels_kernel.index('i')] * rhs.dims[labels_kernel.index('o')] * out.dims[labels_out.index('b')]
  for axis, ([size], [stride], [low, _], [dilate], [window_dilate]) in enumerate(each):
    of = lambda shape, labels, axis=axis: shape.dims[labels.index(str(axis))]
    total *= taps(of(lhs, labels_in), of(out, labels_out), size, stride, low, dilate, window_dilate)
  return total // int(op.attribute(r'batch_group_count=(\d+)') or 1)


def splash_flops(op: Instruction, operands: Sequence[Shape]) -> int:
  """Of a Pallas attention call: its live tiles times its products, each 2 x queries x keys x head width.

  The scope is `splash_LIVExQUERIESxKEYS`. Forward: scores and outputs, 2 products. Backward towards the queries:
  scores, weights, and their gradient's product, 3; towards keys and values: 4.
  """
  live, queries, keys = (int(n) for n in SPLASH.findall(op.source)[-1])
  q = next(shape for shape in operands if len(shape.dims) >= 3 and shape.dtype in ('bf16', 'f32'))
  products = 4 if 'dkv' in op.source else 3 if 'dq' in op.source else 2
  return products * 2 * live * queries * keys * q.dims[-1] * math.prod(q.dims[:-2])


def passes_of(op: Instruction, operands: Sequence[Shape]) -> int:
  if not any(shape.dtype == 'f32' for shape in operands[:2]):
    return 1
  return {'highest': 6, 'high': 3}.get(op.attribute(r'operand_precision=\{(\w+)'), 1)


def group_size(op: Instruction, devices: int) -> int:
  """How many devices take part in one group of a collective."""
  at = op.attributes.find('replica_groups=')
  text = op.attributes[at + len('replica_groups=') :] if at >= 0 else ''
  if listed := re.match(r'\{\{([\d,]+)\}', text):
    return len(listed[1].split(','))
  if counted := re.match(r'\[(\d+),(\d+)\]', text):
    return int(counted[2])
  if named := re.match(r'mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  return devices


def sent(kind: str, operands: float, results: float, n: int) -> float:
  """Bytes that a device sends in a ring of n."""
  share = (n - 1) / n
  return {
    'all-gather': results * share,
    'all-reduce': 2 * operands * share,
    'collective-permute': operands,
    'collective-broadcast': operands,
  }.get(kind, operands * share)


# --- counting -----------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
  """What one instruction costs, all its runs together."""

  source: str  # JAX's name stack
  what: str  # opcode, or kind of collective
  times: int
  flops: float = 0
  bytes: float = 0
  sent: float = 0  # bytes over the interconnect
  passes: int = 1  # of the matrix units, which multiply bfloat16: a float32 product of full precision takes six
  shapes: tuple[Shape, ...] = ()
  loop: str = ''  # the innermost loop around it whose runs depend on data; such a body counts once


@dataclasses.dataclass(frozen=True)
class Counts:
  flops: float
  bytes: float
  collectives: dict[str, dict[str, float]]  # kind -> {count, bytes: sent by a device}

  @property
  def sent(self) -> float:
    return sum(kind['bytes'] for kind in self.collectives.values())


def total(costs: Iterable[Cost]) -> Counts:
  costs, number, sent_ = list(costs), Counter(), Counter()
  for cost in costs:
    if cost.what in COLLECTIVES:
      number[cost.what] += cost.times
      sent_[cost.what] += cost.sent
  kinds = {kind: {'count': number[kind], 'bytes': sent_[kind]} for kind in sorted(number)}
  return Counts(sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs), kinds)


def costs(text: str) -> list[Cost]:
  """Of every instruction that costs something."""
  module = Module(text)
  return list(Walk(module).computation(Frame(module.entry)))


class Walk:
  def __init__(self, module: Module):
    self.module = module

  def operands(self, computation: Computation, op: Instruction) -> list[Shape]:
    return [shape for name in op.operands if name in computation for shape in computation[name].shapes]

  def computation(self, frame: Frame) -> Iterator[Cost]:
    computation = self.module.computations[frame.computation]
    for op in computation.values():
      yield from self.instruction(frame, computation, op)

  def instruction(self, frame: Frame, computation: Computation, op: Instruction) -> Iterator[Cost]:
    if op.opcode == 'while':
      yield from self.loop(frame, op)
    elif op.opcode == 'conditional':
      names = op.attribute(r'branch_computations=\{([^}]*)\}')
      names = names or ','.join(re.findall(r'(?:true|false)_computation=%?([^,\s]+)', op.attributes))
      branches = [list(self.computation(Frame(n.strip(' %'), None, frame))) for n in names.split(',')]
      of = lambda branch: (counts.flops, counts.bytes) if (counts := total(branch)) else ()
      yield from max(branches, key=of)
    elif op.opcode in ('call', 'async-start') and op.calls:
      yield from self.computation(Frame(op.calls[0], None, frame, op.operands))
    elif op.opcode == 'fusion':
      inner = Frame(op.calls[0], None, frame, op.operands)
      yield from self.fused(inner)
      moved = boundary(self.module, op, self.operands(computation, op))
      yield Cost(op.source, 'fusion', 1, bytes=moved, shapes=op.shapes)
    elif op.opcode not in FREE and not op.opcode.endswith('-done'):
      yield from self.plain(op, self.operands(computation, op))

  def plain(self, op: Instruction, operands: list[Shape]) -> Iterator[Cost]:
    kind = op.opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      yield self.collective(op, operands)
      return
    moved = sum(shape.hbm for shape in (*operands, *op.shapes))
    if kind in SLICES:
      part = op.shapes[len(operands) if op.opcode.endswith('-start') else 0]  # a start's results are operands, then it
      moved = part.hbm + part._replace(layout=operands[0].layout).hbm
    elif kind == 'dynamic-update-slice':
      moved = 2 * operands[1].hbm
    elif kind == 'scatter':
      moved = sum(shape.hbm for shape in operands[1:]) + 2 * operands[-1].hbm
    elif kind == 'copy':  # a start's results are the copy, and its source once more
      moved = operands[0].hbm + op.shapes[0].hbm
    flops = self.flops(op, operands)
    yield Cost(op.source, op.opcode, 1, flops, moved, passes=passes_of(op, operands), shapes=op.shapes)

  def flops(self, op: Instruction, operands: list[Shape]) -> float:
    if op.opcode == 'dot':
      return dot_flops(op, operands[0])
    if op.opcode == 'convolution':
      return convolution_flops(op, *operands[:2])
    if op.opcode == 'custom-call' and SPLASH.search(op.source):
      return splash_flops(op, operands)
    return 0

  def collective(self, op: Instruction, operands: list[Shape], scattered: bool = False) -> Cost:
    kind = 'reduce-scatter' if scattered else op.opcode.removesuffix('-start')
    given = sum(shape.bytes for shape in operands)
    # The results of a start hold its operands, too.
    results = sum(shape.bytes for shape in op.shapes) - (given if op.opcode.endswith('-start') else 0)
    if op.opcode == 'all-reduce-start':
      results = given
    moved = sum(shape.hbm for shape in (*operands, *op.shapes[-len(operands) or None :]))
    n = group_size(op, self.module.devices)
    return Cost(op.source, kind, 1, bytes=moved, sent=sent(kind, given, results, n), shapes=op.shapes)

  def fused(self, frame: Frame) -> Iterator[Cost]:
    """What a fusion computes and communicates; what it moves is counted at its boundary."""
    computation = self.module.computations[frame.computation]
    marks = ' '.join(op.attributes for op in computation.values() if op.opcode == 'custom-call')
    # libtpu writes one collective up to three times: where it starts, in what runs meanwhile, and where it is done.
    again = 'AsyncCollectiveDone' in marks or frame.computation.startswith('async_collective_fusion')
    for op in computation.values():
      operands = self.operands(computation, op)
      if op.opcode in COLLECTIVES:
        if not again:
          yield self.collective(op, operands, scattered=frame.computation.startswith('all-reduce-scatter'))
      elif op.opcode == 'fusion':
        yield from self.fused(Frame(op.calls[0], None, frame, op.operands))
      elif flops := self.flops(op, operands):
        yield Cost(op.source, op.opcode, 1, flops, passes=passes_of(op, operands), shapes=op.shapes)

  def loop(self, frame: Frame, op: Instruction) -> Iterator[Cost]:
    runs = trips(self.module, op, frame)
    for part in ('condition', 'body'):
      inner = Frame(op.attribute(rf'{part}=%?([^,\s]+)'), op, frame)
      for cost in self.computation(inner):
        n = 1 if runs is None else runs
        cost = cost._replace(times=cost.times * n, flops=cost.flops * n, bytes=cost.bytes * n, sent=cost.sent * n)
        yield cost if runs is not None or cost.loop else cost._replace(loop=op.name)


def boundary(module: Module, fusion: Instruction, operands: Sequence[Shape]) -> float:
  """Bytes of HBM that a fusion reads and writes."""
  name = fusion.calls[0]
  computation = module.computations[name]
  users: dict[str, list[Instruction]] = {}
  for op in computation.values():
    for operand in op.operands:
      users.setdefault(operand, []).append(op)

  def reads(op: Instruction, whole: Shape) -> float:
    """Of an array that is `op` inside the fusion and `whole` outside."""
    if not whole.hbm:
      return 0
    moved = 0
    for user in users.get(op.name, ()):
      if user.opcode == 'bitcast':
        moved += reads(user, whole)
      elif user.opcode in SLICES and user.operands[0] == op.name:
        moved += user.shapes[0].bytes
      elif (user.opcode == 'dynamic-update-slice' and user.operands[0] == op.name) or passes(user):
        continue
      elif user.opcode == 'tuple' and user.root:
        continue  # handed through
      elif user.opcode == 'fusion':
        inner = [p for p in module.computations[user.calls[0]].values() if p.opcode == 'parameter']
        nested = user.operands.index(op.name)
        moved += nested_reads(module, user.calls[0], next(p for p in inner if int(p.inside) == nested), whole)
      else:
        return whole.hbm
    return min(moved, whole.hbm)

  def writes(op: Instruction, whole: Shape) -> float:
    op = computation[op.operands[0]] if op.opcode == 'bitcast' and op.operands[0] in computation else op
    if op.opcode == 'dynamic-update-slice':
      return 2 * computation[op.operands[1]].shapes[0].bytes if whole.hbm else 0
    if op.opcode == 'parameter' or passes(op):
      return 0
    if op.opcode == 'get-tuple-element' and passes(computation[op.operands[0]]):
      return 0
    return whole.hbm

  parameters = {int(op.inside): op for op in computation.values() if op.opcode == 'parameter'}
  moved = sum(reads(parameters[i], shape) for i, shape in enumerate(operands) if i in parameters)
  root = module.roots[name]
  roots = [computation[operand] for operand in root.operands] if root.opcode == 'tuple' else [root]
  if len(roots) != len(fusion.shapes):  # one instruction with several results
    return moved + (0 if passes(root) else sum(shape.hbm for shape in fusion.shapes))
  return moved + sum(writes(op, shape) for op, shape in zip(roots, fusion.shapes))


def nested_reads(module: Module, name: str, parameter: Instruction, whole: Shape) -> float:
  """Of an array that a fusion hands to a fusion inside it: slices, if it is only sliced there."""
  moved = 0
  for op in module.computations[name].values():
    if parameter.name in op.operands:
      if op.opcode not in SLICES or op.operands[0] != parameter.name:
        return whole.hbm
      moved += op.shapes[0].bytes
  return moved


def passes(op: Instruction) -> bool:
  """Whether it is a collective, whose bytes are its own, or a mark of one."""
  return op.opcode in COLLECTIVES or (op.opcode == 'custom-call' and any(mark in op.attributes for mark in ASYNC))
