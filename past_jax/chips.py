"""TPU generations, as JAX sees them: what a device can do, and how slices are called.

Figures are per chip from https://docs.cloud.google.com/tpu/docs/ (v2, v3, v4, v5e, v5p, v6e, tpu7x), those of a device
are its share: v4 and v5p chips are one JAX device (megacore), v2, v3 and tpu7x chips are two. Links of the interconnect
are half the bidirectional bandwidth that these pages give a chip, by its ports; for v4 arXiv 2304.01433 (table 4), for
v2 and v3 "A Domain-Specific Supercomputer for Training Deep Neural Networks" (CACM 63-7). `hbm` is what libtpu lets the
programs of a device have, by its own error message: less than what is sold.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from past_jax.types import UserError

GIB = 1 << 30


def amount(n: float) -> str:
  """Bytes, for people: 9.20 GiB, 310 MiB."""
  unit, name = (GIB, 'GiB') if n >= GIB / 10 else (1 << 20, 'MiB')
  return f'{n / unit:.{2 if unit == GIB else 0}f} {name}'


@dataclasses.dataclass(frozen=True)
class Chip:
  name: str  # as libtpu calls it
  flops: float  # bfloat16 products per second, 2 per multiply-add
  hbm: float  # bytes that programs of one device can have
  hbm_rate: float  # bytes per second
  link_rate: float  # bytes per second, one link in one direction
  dims: int  # of the torus: a chip has two links for each
  most: int  # chips of a slice
  devices: int = 1  # JAX devices
  counts: int = 1  # what marketing names count per chip: cores, or chips
  aliases: tuple[str, ...] = ()  # other first halves of names
  config: str = ''  # libtpu's name for a way to run the chip

  @property
  def device_flops(self) -> float:
    return self.flops / self.devices

  @property
  def device_hbm_rate(self) -> float:
    return self.hbm_rate / self.devices


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v2', 46e12, 7.48 * GIB, 700e9, 62e9, 2, 256, devices=2, counts=2),
    Chip('v3', 123e12, 15.48 * GIB, 900e9, 82e9, 2, 1024, devices=2, counts=2),
    Chip('v4', 275e12, 30.75 * GIB, 1200e9, 50e9, 3, 4096, counts=2, config='megacore'),
    Chip('v5e', 197e12, 15.75 * GIB, 819e9, 50e9, 2, 256, aliases=('v5litepod', 'v5lite')),
    Chip('v5p', 459e12, 95.74 * GIB, 2765e9, 100e9, 3, 8960, counts=2),
    Chip('v6e', 918e12, 31.25 * GIB, 1638e9, 100e9, 2, 256, aliases=('trillium',)),
    Chip('tpu7x', 2307e12, 94.75 * GIB, 7380e9, 100e9, 3, 9216, devices=2, counts=2, aliases=('v7x', 'ironwood')),
  )
}
# A description needs no TPU: libtpu must not ask the machine for one, or for its neighbours.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  chip: Chip
  shape: tuple[int, ...]  # chips along each dimension

  def __str__(self) -> str:
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  @property
  def size(self) -> int:
    """JAX devices."""
    return self.chips * self.chip.devices

  @property
  def device_link_rate(self) -> float:
    """Bytes per second that a device sends over all its links at most; inf: nothing leaves the chip."""
    links = sum(min(2, n - 1) for n in self.shape)  # two neighbours are one link apart
    return links * self.chip.link_rate / self.chip.devices or math.inf

  def devices(self) -> list:
    """The slice's devices, to compile for. Nothing can be run on them.

    Raises:
      UserError: libtpu is not installed, or does not know this shape.
    """
    if importlib.util.find_spec('libtpu') is None and 'TPU_LIBRARY_PATH' not in os.environ:
      raise UserError(f"--topology={self} needs libtpu, which compiles without a TPU: pip install 'past-jax[tpu]'.")
    for name, value in ENVIRONMENT.items():
      os.environ.setdefault(name, value)
    from jax.experimental import topologies

    shape = (*self.shape, 1, 1)[:3]
    host = tuple(2 - n % 2 for n in shape[:2])  # 2x2 chips; less where a slice is part of a host
    options = {'chips_per_host_bounds': (*host, 1)} | (
      {'chip_config_name': self.chip.config} if self.chip.config else {}
    )
    try:
      found = topologies.get_topology_desc(str(self), platform='tpu', **options).devices
    except Exception as error:  # libtpu's own, of several classes
      raise UserError(f'--topology={self}: libtpu says: {str(error).strip().splitlines()[0]}') from error
    if len(found) != self.size:
      raise UserError(f'--topology={self}: libtpu makes {len(found)} devices of it, {self.size} were expected.')
    return list(found)


def sold(chip: Chip) -> list[tuple[int, ...]]:
  """Shapes of the slices that have marketing names: powers of two, as cubic as can be."""
  out = [(1,) * chip.dims] if chip.dims == 2 and chip.devices == 1 else []
  for power in range(2, 14):
    if 2**power > chip.most:
      break
    low, more = divmod(power, chip.dims)
    shape = tuple(2**low if i < chip.dims - more else 2 ** (low + 1) for i in range(chip.dims))
    out.append((2, 2, 1) if shape == (1, 2, 2) else shape)
  return out


def names(chip: Chip) -> list[str]:
  return [f'{chip.name}:{"x".join(map(str, shape))}' for shape in sold(chip)]


def topology(name: str) -> Topology:
  """Of libtpu's own form, `v5p:4x4x4`, or of a marketing name: `v5litepod-16`, `v4-32` (32 cores: 16 chips).

  Raises:
    UserError: no such generation or shape; it lists those that there are.
  """
  found = re.fullmatch(r'([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)*))', name.strip().lower())
  known = {alias: chip for chip in CHIPS.values() for alias in (chip.name, *chip.aliases)}
  generation = found[1] if found else re.split(r'[-:]', name.lower())[0]
  if generation not in known:
    near = difflib.get_close_matches(generation, known, 1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise UserError(f'--topology={name}: the generations are {", ".join(CHIPS)}, as in v5e:4x4 or v5litepod-16.{hint}')
  chip = known[generation]
  there_are = f'There are {", ".join(names(chip))}'
  what = 'cores' if chip.counts > 1 else 'chips'
  there_are += f', or {chip.aliases[0] if chip.name == "v5e" else chip.name}-N with N {what}.'
  if not found:
    raise UserError(f'--topology={name} has no shape. {there_are}')
  if found[2]:
    by_chips = {math.prod(shape): shape for shape in sold(chip)}
    chips, rest = divmod(int(found[2]), chip.counts)
    if rest or chips not in by_chips:
      raise UserError(f'--topology={name}: no slice of {chip.name} has {found[2]} {what}. {there_are}')
    return Topology(chip, by_chips[chips])
  shape = tuple(int(n) for n in found[3].split('x'))
  if len(shape) == 3 > chip.dims and shape[2] == 1:
    shape = shape[:2]
  if len(shape) != chip.dims or not 1 <= math.prod(shape) <= chip.most:
    sides = 'AxB' if chip.dims == 2 else 'AxBxC'
    raise UserError(f'--topology={name}: {chip.name} slices are {sides}, of at most {chip.most} chips. {there_are}')
  return Topology(chip, shape)
