"""The device mesh and where arrays live on it.

Parameters are placed by rules, (regex on the path, axes per dimension). An array without a rule is an error, and so are
two rules that match it and disagree: their order means nothing. Optimizer moments repeat the paths of the parameters,
so the same rules place them; what else an optimizer keeps is small and replicated: sums over a parameter's dimensions,
constants.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from past_jax.types import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')  # a batch is split over both
OPTIMIZER = 'opt_state/'  # where an optimizer's arrays are in a `TrainState`
Rules = Sequence[tuple[str, tuple]]


def make(shape: Mapping[str, int], devices=None) -> Mesh:
  """A mesh of `shape` = {'data': d, 'fsdp': f, 'tensor': t}; one entry may be -1: all devices that are left."""
  devices = jax.devices() if devices is None else devices
  sizes = [int(shape[axis]) for axis in AXES]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(1, len(devices) // -int(np.prod(sizes)))
  if any(size < 1 for size in sizes):
    raise UserError(f'config.mesh = {dict(shape)}: sizes are positive, and one at most is -1.')
  if (need := int(np.prod(sizes))) > len(devices):
    raise UserError(f'config.mesh = {dict(shape)} needs {need} devices; there are {len(devices)}.')
  if need < len(devices) and jax.process_count() > 1:
    raise UserError(
      f'config.mesh = {dict(shape)} takes {need} of {len(devices)} devices; a run on several hosts takes all of them. '
      'An axis of size -1 takes all that are left.'
    )
  # Auto, said aloud: jax.make_mesh now defaults to Explicit axes, under which linen's Embed raises.
  types = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices[:need])
  except NotImplementedError:  # no axis of the slice has one of these sizes: cut one
    grid = mesh_utils.create_device_mesh(sizes, devices[:need], allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def path_string(path) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def names_of(axes) -> tuple[str, ...]:
  """The mesh axes that one dimension is split over."""
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def ways_of(mesh_shape: Mapping[str, int], axes) -> int:
  return int(np.prod([mesh_shape[axis] for axis in names_of(axes)]))


def spec_of(name: str, shape: Sequence[int], rules: Rules, mesh_shape: Mapping[str, int]) -> tuple:
  """Axes of the dimensions of the array at the path `name`; what only an optimizer has is replicated.

  Raises:
    UserError: no rule matches; several do and disagree; the rule names an axis twice, one that the mesh does not have,
      or axes for more dimensions than there are.
  """
  found = [(pattern, tuple(spec)) for pattern, spec in rules if re.search(pattern, name)]
  what, ours = f'the parameter {name!r} of shape {tuple(shape)}', not name.startswith(OPTIMIZER)
  if not found and ours:
    raise UserError(f'No sharding rule matches {what}.')
  if other := next((rule for rule in found if rule[1] != found[0][1]), None):
    raise UserError(f'The sharding rules {found[0]} and {other} both match {what}, and disagree.')
  if not found or (len(found[0][1]) > len(shape) and not ours):
    return ()
  spec, at = found[0][1], f'The sharding rule {found[0]}, which matches {what},'
  if len(spec) > len(shape):
    raise UserError(f'{at} has axes for {len(spec)} dimensions.')
  names = [axis for axes in spec for axis in names_of(axes)]
  for axis in names:
    if axis not in mesh_shape:
      raise UserError(f'{at} names the axis {axis!r}; the mesh has {", ".join(mesh_shape)}.')
    if names.count(axis) > 1:
      raise UserError(f'{at} names the axis {axis!r} twice: one dimension of an array can be split over it.')
  return spec


def shardings(mesh: Mesh, tree, rules: Rules):
  """`NamedSharding`s for a tree of arrays or shapes. Scalars are replicated.

  Raises:
    UserError: as `spec_of`; or axes do not divide a dimension.
  """

  def place(path, leaf):
    name = path_string(path)
    if leaf.ndim == 0:
      return NamedSharding(mesh, PartitionSpec())
    spec = spec_of(name, leaf.shape, rules, mesh.shape)
    for size, axes in zip(leaf.shape, spec):
      names, ways = names_of(axes), ways_of(mesh.shape, axes)
      if size % ways:
        raise UserError(
          f'{name} has a dimension of {size}, which the mesh axis {"x".join(names)}={ways} does not divide. '
          f'Change config.mesh.{names[0]}.'
        )
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


# Several processes run the same program; a process holds the shards of its own devices. What is placed is the same in
# all of them, and each places its own part of it.


@functools.cache
def _moved(sharding: NamedSharding):
  """From one layout to another on the devices of all processes, which `jax.device_put` does not do."""
  return jax.jit(lambda tree: tree, out_shardings=sharding)


def put(tree, placed):
  """Arrays, or what `park` has made of them, onto a mesh: `placed` is a sharding, or a tree of them."""
  if jax.process_count() == 1:
    return jax.device_put(tree, placed)

  def one(x, sharding):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return _moved(sharding)(x)
    x = x if isinstance(x, Parked) else np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

  if isinstance(placed, NamedSharding):
    return jax.tree.map(lambda x: one(x, placed), tree)
  return jax.tree.map(one, tree, placed)


def put_batch(mesh: Mesh, tree):
  """Host arrays whose leading axis is the batch, onto the mesh."""
  return put(tree, batch_sharding(mesh))


def host(tree):
  """numpy copies of all arrays, whole, in every process: all of them call this at the same places."""
  spread = lambda x: isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
  leaves, structure = jax.tree.flatten(tree)
  if parts := {i: x for i, x in enumerate(leaves) if spread(x)}:
    mesh = next(iter(parts.values())).sharding.mesh
    whole = _moved(replicated(mesh))(parts)
    leaves = [whole[i] if i in whole else x for i, x in enumerate(leaves)]
  return jax.device_get(jax.tree.unflatten(structure, leaves))


class Parked:
  """A copy in host memory of this process's own part of an array; `put` places it where it was."""

  def __init__(self, x: jax.Array):
    self.shape, self.dtype = x.shape, x.dtype
    shards = {str(shard.index): shard for shard in x.addressable_shards}  # of replicas one
    self._parts = {index: np.array(shard.data) for index, shard in shards.items()}

  def __getitem__(self, index) -> np.ndarray:
    return self._parts[str(index)]


def park(tree):
  """A copy in host memory: numpy arrays, or `Parked` where other processes hold parts, too."""
  return jax.tree.map(lambda x: np.array(x) if x.is_fully_addressable else Parked(x), tree)


def batch_ways(mesh: Mesh) -> int:
  return mesh.shape['data'] * mesh.shape['fsdp']


def platform() -> str:
  """'tpu', 'gpu' or 'cpu': of the devices of the mesh under `jax.set_mesh(mesh)`, be they here or a mere topology.

  Without a mesh, of the devices that are here; 'none' in what is `stacked`.
  """
  described = jax.sharding.get_abstract_mesh().abstract_device
  return described.platform if described else jax.default_backend()


def devices() -> int:
  """Of the mesh under `jax.set_mesh(mesh)`; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size


def split_over(*axes: str) -> bool:
  """Whether any of the axes has more than one device, under `jax.set_mesh(mesh)`."""
  shape = jax.sharding.get_abstract_mesh().shape
  return any(shape[axis] > 1 for axis in axes if axis in shape)


def constrain(x, *axes):
  """Hint inside jit, under `jax.set_mesh(mesh)`; without a mesh it does nothing."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def move(x, *layouts: Sequence):
  """`constrain`s x to one layout after the other, but a dimension that its axes do not divide stays whole."""
  shape = jax.sharding.get_abstract_mesh().shape
  for layout in layouts if shape else ():
    x = constrain(x, *(axes if size % ways_of(shape, axes) == 0 else None for size, axes in zip(x.shape, layout)))
  return x


def lay_out(tree, rules: Rules):
  """`move`s every array of a tree to the layout of its rule, inside jit.

  Raises:
    UserError: as `spec_of`.
  """
  shape = jax.sharding.get_abstract_mesh().shape
  if not shape:
    return tree
  place = lambda path, x: move(x, spec_of(path_string(path), x.shape, rules, shape))
  return jax.tree_util.tree_map_with_path(place, tree)


def per_shard(function):
  """`function` on each batch shard's own part of the arguments, under `jax.set_mesh(mesh)`: nothing is communicated.

  All arguments and results lead with an axis that is split over data and fsdp. Without a mesh there is one shard.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function
  spec = PartitionSpec(BATCH)
  return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=set(BATCH))


# Of no axes, and of no platform that has kernels of its own.
NOWHERE = AbstractMesh((), (), abstract_device=AbstractDevice(device_kind='', num_cores=None, platform='none'))


def stacked(function, in_axes):
  """`jax.vmap` of a function that says where its arrays lie: in the stack, which is itself split over devices.

  Inside, there is no mesh: every hint is about a batch, and here it is the stack's axis that is one.
  """

  def one(*args):
    with use_abstract_mesh(NOWHERE):
      return function(*args)

  return jax.vmap(one, in_axes)
