"""Sampling groups: every prompt is prefilled once, and one loop on the device decodes all completions.

Temperature, filters, stop ids, limits and keys are traced: changing them compiles nothing. The noise of a token depends
on (prompt's key, member, position) alone, never on batch mates, devices, or the slot that it is decoded in.
"""

import jax
import jax.numpy as jnp

from past_jax.mesh import BATCH, batch_ways, constrain, per_shard
from past_jax.types import Group, Policy, Prompts, UserError

BLOCK = 256  # tokens of a block of the vocabulary: a draw looks at all blocks, then into one


def least_kept(logits, mass, target):
  """The largest float32 such that the `mass` of logits of at least it reaches `target`: [..., V] twice, [...] -> [...].

  Exact, without a sort: a bisection over the floats themselves, which are ordered as their bits are. -inf where even
  all of the mass falls short, the largest logit where the target is 0.
  """
  swap = lambda bits: jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # order of floats <-> order of integers
  as_bits = lambda x: swap(jax.lax.bitcast_convert_type(x, jnp.int32))
  as_float = lambda bits: jax.lax.bitcast_convert_type(swap(bits), jnp.float32)

  def halve(bounds):
    low, high = bounds  # low is reached, high is not
    middle = (low & high) + ((low ^ high) >> 1)  # (low + high) // 2 without overflow
    reached = jnp.where(logits >= as_float(middle)[..., None], mass, 0.0).sum(axis=-1)
    low, high = jnp.where(reached >= target, middle, low), jnp.where(reached >= target, high, middle)
    return low, jnp.where(reached == target, low + 1, high)  # raising it would lose some mass

  top = logits.max(axis=-1)
  bounds = as_bits(jnp.full_like(top, -jnp.inf)), as_bits(top) + 1
  return as_float(jax.lax.while_loop(lambda b: (b[0] + 1 < b[1]).any(), halve, bounds)[0])


def filtered(logits, top_k, top_p, min_p):
  """Logits with everything outside top-k (0: off), then top-p (1: off), and min-p (0: off) at -inf. Ties stay."""
  top = logits.max(axis=-1)
  off = lambda: jnp.full_like(top, -jnp.inf)
  keep = lambda floor: jnp.where(logits >= floor[..., None], logits, -jnp.inf)
  count = lambda: least_kept(logits, jnp.ones_like(logits), jnp.broadcast_to(top_k.astype(jnp.float32), top.shape))
  floor = jax.lax.cond(top_k > 0, count, off)

  def nucleus():
    mass = jnp.exp(keep(floor) - top[..., None])
    return least_kept(logits, mass, top_p * mass.sum(axis=-1))

  return keep(jnp.maximum(floor, jnp.maximum(jax.lax.cond(top_p < 1, nucleus, off), top + jnp.log(min_p))))


def draw(logits, keys, temperature, top_k, top_p, min_p):
  """M tokens for each row: logits_...xV, keys_...xM -> {ids, logps, behaviour}, each [..., M].

  Gumbel-max in two levels, a block of the vocabulary and a token of the block: V / BLOCK + BLOCK noises per token and
  not V. What is drawn changes with a rounding of the logits only if the two best of a level are within that rounding,
  whereas the inverse of a CDF has V boundaries. At temperature 1 without filters both log-probs come from one exp.
  """
  V = logits.shape[-1]
  split = lambda x: x.reshape(*x.shape[:-1], -1, BLOCK)
  pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -V % BLOCK)], constant_values=-jnp.inf)
  at = lambda x, index: jnp.take_along_axis(x, index, axis=-1)
  greedy = temperature == 0
  noises = jax.vmap(lambda key: jax.random.gumbel(key, (-(-V // BLOCK) + BLOCK,)))(keys.reshape(-1))
  noise = jnp.where(greedy, 0.0, noises.reshape(*keys.shape, -1))

  def choose(x, mass):
    """Of the softmax of x, whose blocks have the log-masses `mass`."""
    first = jnp.where(greedy, split(pad(x)).max(axis=-1), mass)
    block = jnp.argmax(first[..., None, :] + noise[..., :-BLOCK], axis=-1)
    inside = jnp.take_along_axis(split(pad(x)), block[..., None], axis=-2) + noise[..., -BLOCK:]
    token = (block * BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)
    return token, at(x, token) - jax.nn.logsumexp(mass, axis=-1, keepdims=True)

  def processed():
    x = filtered(logits / temperature, top_k, top_p, min_p)
    return choose(x, jax.nn.logsumexp(split(pad(x)), axis=-1))

  mass = jax.nn.logsumexp(split(pad(logits)), axis=-1)
  plain = greedy | ((temperature == 1) & (top_k <= 0) & (top_p >= 1) & (min_p <= 0))
  token, behaviour = jax.lax.cond(plain, lambda: choose(logits, mass), processed)
  logp = at(logits, token) - jax.nn.logsumexp(mass, axis=-1, keepdims=True)
  return {'ids': token, 'logps': logp, 'behaviour': jnp.where(greedy, 0.0, behaviour)}


def layout(slots: int, prompts: int, group: int, ways: int = 1) -> tuple[int, int]:
  """(R, C): `slots` completions at a time as R rows of C slots, as many rows as can be. 0: all completions.

  A row reads one prompt's cache for its C slots; rows are shared out over `ways` devices.

  Raises:
    UserError: there are no such R and C.
  """
  if slots == 0 or slots >= prompts * group:
    return prompts, group
  fits = lambda n: [R for R in range(ways, prompts + 1, ways) if n % R == 0 and n // R <= group]
  if not fits(slots):
    near = min((n for n in range(1, prompts * group + 1) if fits(n)), key=lambda n: abs(n - slots))
    raise UserError(
      f'slots={slots} must be R x C, R rows (at most the {prompts} prompts of a call, a multiple of the {ways} devices '
      f'of the mesh axes data x fsdp) of C slots (at most the group of {group}), or 0, all at once; {near} is near.'
    )
  R = max(fits(slots))
  return R, slots // R


def assign(row_R, live_RxC, left_BxG):
  """row_R: the prompt that each row serves. An idle row goes to the prompt with most completions not yet begun."""
  C = live_RxC.shape[1]

  def one(r, carry):
    row_R, left_B = carry
    prompt = jnp.argmax(left_B)
    moves = ~live_RxC[r].any() & (left_B[prompt] > 0)
    return row_R.at[r].set(jnp.where(moves, prompt, row_R[r])), left_B.at[prompt].add(jnp.where(moves, -C, 0))

  return jax.lax.fori_loop(0, len(row_R), one, (row_R, left_BxG.sum(axis=1)))[0]


def refill(row_R, slots, left_BxG, table):
  """Every free slot takes the next completion of its row's prompt, if one is left: (slots, left_BxG).

  Args:
    slots: {member, age, live} and a copy of each entry of `table` for the slot's completion, [R, C].
    table: what a slot needs to know of a completion, [B, G].
  """
  R, C = slots['live'].shape
  row_S, free_S = jnp.repeat(row_R, C), ~slots['live'].reshape(-1)
  earlier_SxS = jnp.tril(row_S[:, None] == row_S[None], -1) & free_S[None]
  nth_S = earlier_SxS.sum(axis=1)  # of the free slots of the prompt
  left_SxG = left_BxG[row_S]
  hit_SxG = left_SxG & (jnp.cumsum(left_SxG, axis=1) - 1 == nth_S[:, None]) & free_S[:, None]
  takes = hit_SxG.any(axis=1).reshape(R, C)
  member = jnp.where(takes, jnp.argmax(hit_SxG, axis=1).reshape(R, C), slots['member'])
  new = {'member': member, 'age': jnp.zeros_like(member), 'live': takes}
  new |= {name: x[row_R[:, None], member] for name, x in table.items()}
  begun = jnp.zeros_like(left_BxG, jnp.int32).at[row_S].max(hit_SxG.astype(jnp.int32))
  return {name: jnp.where(takes, new[name], old) for name, old in slots.items()}, left_BxG & (begun == 0)


def record(out, row_R, slots, values):
  """Writes the `values` [R, C] of token number `age` of every live slot into `out` [B, G, T], name by name."""
  row_RxC = jnp.where(slots['live'], row_R[:, None], out['ids'].shape[0])  # out of bounds: dropped
  write = lambda x, new: x.at[row_RxC, slots['member'], slots['age']].set(new, mode='drop')
  return {name: write(x, values[name]) for name, x in out.items()}


def sample(
  policy: Policy,
  params,
  keys_B,
  prompts: Prompts,
  temperature,
  stop_ids,
  *,
  group: int,
  length: int,
  top_k=0,
  top_p=1.0,
  min_p=0.0,
  slots: int = 0,
  limit_BxG=None,
  first=0,
) -> Group:
  """`group` completions of up to `length` tokens for every prompt.

  With fewer `slots` than completions, a slot whose completion has ended takes the prompt's next one, and a row of slots
  whose prompt has none left goes to another prompt of its device: skewed lengths do not wait for the longest. Neither
  tokens nor their order depend on it.

  Args:
    keys_B: one PRNG key per prompt.
    temperature: scalar; 0 is greedy decoding.
    stop_ids: int array; a completion ends with the first of them, which belongs to it. -1 entries match nothing.
    slots: completions decoded at a time, see `layout`; 0: all.
    limit_BxG: tokens at which a completion ends unfinished, where that is less than `length`; traced.
    first: the number of the first completion, so that a group can be drawn in parts; traced.

  Raises:
    UserError: `slots` do not fit.
  """
  B, G, T = prompts.ids_BxP.shape[0], group, length
  mesh = jax.sharding.get_abstract_mesh()
  ways = 1 if mesh.empty else batch_ways(mesh)
  R, C = layout(slots, B, G, ways)
  filters = jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p)
  stop_ids = jnp.asarray(stop_ids, jnp.int32)
  stops = lambda ids: (ids[..., None] == stop_ids.reshape((1,) * ids.ndim + (-1,))).any(axis=-1)
  limit_BxG = jnp.full((B, G), T) if limit_BxG is None else jnp.clip(limit_BxG, 0, T)
  fold = jax.vmap(jax.vmap(jax.random.fold_in))
  member_BxG = jnp.broadcast_to(jnp.arange(G)[None], (B, G))
  keys_BxG = fold(jnp.broadcast_to(keys_B[:, None], (B, G)), member_BxG + first)

  # The first tokens of a prompt's completions come from one row of logits; a slot begins with feeding one.
  hidden_BxD, prompt_cache = policy.prefill(params, prompts)
  logits = lambda params, hidden: constrain(policy.head(params, hidden), BATCH)  # all of the vocabulary, to draw from
  drawn = draw(logits(params, hidden_BxD), fold(keys_BxG, jnp.zeros_like(member_BxG)), *filters)
  params = policy.unstack(params)
  begin = lambda x: jnp.pad(jnp.where(limit_BxG > 0, x, 0)[..., None], ((0, 0), (0, 0), (0, T - 1)))
  out = jax.tree.map(begin, drawn)
  left_BxG = (limit_BxG > 1) & ~stops(drawn['ids'])
  table = {'token': drawn['ids'], 'limit': limit_BxG, 'key': keys_BxG}

  def step(prompt_cache, state):
    """The next token of every slot."""
    slots = state['slots']
    hidden, cache = policy.decode(params, prompt_cache, state['cache'], slots['token'], slots['age'])
    slots = slots | {'age': slots['age'] + slots['live']}  # of ended ones no further: positions end with T
    keys = fold(slots['key'], slots['age'])
    drawn = jax.tree.map(lambda x: x[..., 0], draw(logits(params, hidden), keys[..., None], *filters))
    out = per_shard(record)(state['out'], state['row'], slots, drawn)
    live = slots['live'] & ~stops(drawn['ids']) & (slots['age'] + 1 < slots['limit'])
    return state | {'slots': slots | {'token': drawn['ids'], 'live': live}, 'cache': cache, 'out': out}

  if (R, C) == (B, G):
    slots = table | {'member': member_BxG, 'age': jnp.zeros_like(member_BxG), 'live': left_BxG}
    row = jnp.arange(B) % (B // ways)  # rows count within their shard
    state = {'slots': slots, 'row': row, 'cache': policy.start(prompt_cache, G, T), 'out': out}
    state = jax.lax.while_loop(lambda s: s['slots']['live'].any(), lambda s: step(prompt_cache, s), state)
  else:
    gather = lambda row: per_shard(lambda cache, row: jax.tree.map(lambda x: x[row], cache))(prompt_cache, row)
    idle = lambda live_RxC, left_BxG: (~live_RxC.any(axis=1)).any(keepdims=True) & left_BxG.any()
    stuck = lambda s: per_shard(idle)(s['slots']['live'], s['left']).any()

    def fill(state):
      slots, left = per_shard(refill)(state['row'], state['slots'], state['left'], table)
      return state | {'slots': slots, 'left': left}

    def reassign(state):
      """Until all is done, or some row is idle that has work to do."""
      state = fill(state | {'row': per_shard(assign)(state['row'], state['slots']['live'], state['left'])})
      rows_cache = gather(state['row'])
      on = lambda s: s['slots']['live'].any() & ~stuck(s)
      return jax.lax.while_loop(on, lambda s: fill(step(rows_cache, s)), state)

    zeros = jnp.zeros((R, C), jnp.int32)
    slots = {name: x[:R, :C] for name, x in table.items()} | {'member': zeros, 'age': zeros, 'live': zeros > 0}
    state = {'slots': slots, 'row': zeros[:, 0], 'left': left_BxG, 'out': out}
    state |= {'cache': policy.start(gather(state['row']), C, T)}
    state = jax.lax.while_loop(lambda s: s['slots']['live'].any() | s['left'].any(), reassign, state)

  ids = state['out']['ids']
  ends_BxGxT = stops(ids) & (jnp.arange(T)[None, None] < limit_BxG[..., None])
  finished_BxG = ends_BxGxT.any(axis=-1)
  return Group(
    prompts,
    ids,
    jnp.where(finished_BxG, jnp.argmax(ends_BxGxT, axis=-1) + 1, limit_BxG),
    finished_BxG,
    state['out']['logps'],
    state['out']['behaviour'],
    jnp.zeros((B, G), jnp.int32),
  )
