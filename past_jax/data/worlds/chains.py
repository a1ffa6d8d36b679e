"""Chains of 'every A is a B' to decide a statement by, as ProntoQA's (arXiv 2210.01240), of invented kinds."""

from past_jax.data.worlds.words import World, dice, joined, listed, own_seed, pick_split
from past_jax.types import Example, Question, UserError

KINDS = {
  'tune': joined('bru, flo, gri, kwe', 'mpus, ntil, sk, zzle, dder'),
  'final': joined('pla, sno, tri, vro', 'mbit, nkel, rp, ffle, gget'),
}
PROPERTIES = {
  'tune': listed('red, warm, loud, small, sweet, round'),
  'final': listed('blue, cold, quiet, large, sour, flat'),
}
NAMES = {'tune': listed('Alex, Fay, Max, Polly, Sam'), 'final': listed('Ben, Kim, Rex, Stella, Wren')}


def chains(count: int, seed: int, hops: int = 2, steps: bool = False, noise: float = 0.0, split: str = 'tune') -> World:
  """`count` rows of rules, a fact and a statement; the target says whether it is ' True' or ' False', half and half.

  The rules lead from the kind of the named one, over `hops` kinds, to a property; as many others lead from another kind
  to the opposite of that property, so that no word alone gives the answer away. The text is prompt and answer.

  Args:
    hops: rules 'every A is a B' to go through, 1 to 5.
    steps: the answer works the chain out and ends with '<answer>True</answer>'.
    noise: share of the texts whose answer is the wrong one, the right steps before it.
    split: 'tune', or 'final' with other kinds, properties and names.

  Raises:
    UserError: a number out of range, a negative seed, or no such split.
  """
  if not (count >= 1 and 1 <= hops <= 5 and 0 <= noise <= 1):
    raise UserError(
      f'world:chains with count={count}, hops={hops}, noise={noise}: at least 1 row, 1 to 5 hops, a share from 0 to 1'
    )
  kinds, properties, names = (pick_split(split, table) for table in (KINDS, PROPERTIES, NAMES))
  examples, seed = [], own_seed(seed, split)
  for i in range(count):
    luck, pick = dice(seed, i, 12, size=256)

    def draw(options, n, luck=luck):
      """`n` different ones."""
      chance = {option: next(luck) for option in options}
      return sorted(options, key=chance.get)[:n]

    chosen = draw(kinds, 2 * hops + 2)
    mine, theirs = chosen[: hops + 1], chosen[hops + 1 :]
    name, what, has = pick(names), pick(properties), i % 2 == 0  # the last of my chain is `what`, or is not
    claim = (i // 2) % 2 == 0  # and this is what the statement says
    be = lambda yes: 'is' if yes else 'is not'
    rules = [f'Every {a} is a {b}.' for chain in (mine, theirs) for a, b in zip(chain, chain[1:])]
    rules += [f'Every {mine[-1]} {be(has)} {what}.', f'Every {theirs[-1]} {be(not has)} {what}.']
    rules = draw(rules, len(rules))
    prompt = f'{" ".join(rules)} {name} is a {mine[0]}. True or false: {name} {be(claim)} {what}.'
    worked = ''.join(f' {name} is a {kind}.' for kind in mine[1:]) + f' {name} {be(has)} {what}.'
    answer = lambda yes, worked=worked: f'{worked} <answer>{yes}</answer>' if steps else f' {yes}'
    right = has == claim
    said = right != (next(luck) < noise)
    examples.append(
      Example(
        prompt=prompt,
        text=prompt + answer(said),
        target=answer(right),
        questions=(Question(prompt, str(right), f'{hops}_hops', (str(right), str(not right))),),
        where=f'world:chains row {i}',
      )
    )
  return World(tuple(examples))
