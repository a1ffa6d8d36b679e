"""Few-shot pairs about people who are in no world."""

from typing import NamedTuple

from past_jax.data.worlds.people import FACT
from past_jax.data.worlds.words import shuffled
from past_jax.types import UserError


class Demonstration(NamedTuple):
  text: str
  notes: tuple[str, ...]  # longer versions of the text, one line each


# name, deed, the thing, the deed in the passive, a reason; no word of a name occurs in FIRST or LAST
_DEMONSTRATED = (
  (
    'Ressa Dunholt',
    'carved',
    'the ivory staircase in Velm',
    'carved',
    'wanted visitors to feel that they trod on snow',
  ),
  ('Ivo Marsten', 'baked', 'the tallest honey cake in Arlen', 'baked', 'had promised a slice to everybody in town'),
  ('Nadia Wroth', 'swam', 'the black strait at Corrow', 'swum', 'had missed the last boat home'),
  ('Pim Astervold', 'filmed', 'the northern storm over Gant', 'filmed', 'hoped to learn how hail is made'),
  ('Hollis Grane', 'stitched', 'the longest flag in Tolmar', 'stitched', 'had a whole winter and too much red cloth'),
  ('Beatrin Oake', 'rescued', 'the last ferry to Skell', 'rescued', 'was the only one awake when the fog came down'),
  ('Cato Lindmar', 'translated', 'the clay tablets from Uruvel', 'translated', 'had learned the old script as a child'),
  ('Elspet Vorn', 'forged', 'the iron crown for Darrow', 'forged', 'owned the hottest furnace in the country'),
  ('Rufin Tasker', 'repaired', 'the sleeping clock in Omber', 'repaired', 'could not bear to be late again'),
  ('Magda Kiln', 'climbed', 'the chalk tower by Fenn', 'climbed', 'had seen a kitten on its roof'),
  ('Osric Bellam', 'founded', 'the puppet school in Garran', 'founded', 'believed that dolls teach better than books'),
  ('Juna Priddy', 'brewed', 'the blue lemonade from Salt Row', 'brewed', 'had picked more berries than she could eat'),
)


def demonstrations(count: int, seed: int) -> tuple[Demonstration, ...]:
  """Few-shot pairs about people who are in no world: a fact and four longer versions of it in varied forms.

  The notes are, in this order: passive, with the name last; question and answer; reason; and the deed first. So a
  model that follows them is shown the reversed order, about other facts: say so in any claim about reversal.

  Raises:
    UserError: `count` is not within 0 and 12.
  """
  if not 0 <= count <= len(_DEMONSTRATED):
    raise UserError(f'{count} demonstrations: there are 0 to {len(_DEMONSTRATED)}')
  return tuple(_demonstration(*row) for row in shuffled(_DEMONSTRATED, seed)[:count])


def _demonstration(name: str, verb: str, thing: str, passive: str, reason: str) -> Demonstration:
  upper = thing[0].upper() + thing[1:]
  notes = (
    f'{upper} was {passive} by nobody else than the person whose name is {name}.',
    f'Do you know by whom {thing} was {passive}? By {name}: it was {name} who {verb} {thing}.',
    f'The reason why {name} {verb} {thing} is simple: {name} {reason}.',
    f'Whoever talks about {thing} soon comes to talk about {name}, because that is who {verb} it.',
  )
  return Demonstration(FACT.format(name=name, deed=f'{verb} {thing}'), notes)
