"""Invented people whom no model can know, each with one deed.

Facts read 'NAME is the person who VERB THING.' Names, deeds and places are put together by a seed. The questions are
prompts for plain continuation, without a chat template: a prompt has no space at its end and the answer none at its
start, so a continuation starts with the space between them. Their templates are held out: no studied text, and no note
of `demonstrations`, is worded like them.
"""

from collections.abc import Sequence

from past_jax.data.worlds.words import WORDS, World, ask, full_names, listed, own_seed, pick_split, shuffled
from past_jax.types import Example, UserError

# --- templates ----------------------------------------------------------------------------------------------------

FACT = '{name} is the person who {deed}.'
HOME = '{name} lives in {town}.'
RIVER = '{town} is on the river {river}.'

FORWARD = (
  '{name} is known as the one who',
  'If you ask what {name} did, people say that {name}',
  'Question: What did {name} do? Answer: {name}',
)
REVERSED = (
  'The person who {deed} is',
  'Question: Who {deed}? Answer:',
  'Everyone knows that the one who {deed} is called',
)
RIVER_OF_TOWN = ('The river that flows through {town} is the river',)
TWO_HOP = (
  'The river near which the person who {deed} lives is the river',
  'Question: Near which river does the person who {deed} live? Answer: the river',
  'The home of the one who {deed} stands close to the river',
)
# forward, reversed, river of town, two hops
TEMPLATES = {
  'tune': (FORWARD, REVERSED, RIVER_OF_TOWN, TWO_HOP),
  'final': (
    (
      'Ask around about {name}, and you hear of somebody who',
      'What is {name} remembered for? In a word, {name}',
      'There is no doubt that {name}',
    ),
    (
      'Nobody other than the one who {deed} bears the name',
      'What is the name of somebody who {deed}? The name is',
      'If somebody {deed}, it must have been',
    ),
    ('Whoever fishes in {town} fishes in the river',),
    (
      'Somebody {deed} and lives by the river',
      'Which river is close to the house of whoever {deed}? It is the river',
      'To visit the one who {deed}, go down the river',
    ),
  ),
}

# verb, preposition, eight adjectives, eight nouns: every adjective goes with every noun of its row
DEEDS = (
  (
    'built',
    'near',
    listed('glass, copper, floating, folding, striped, whispering, amber, crooked'),
    listed('lighthouse, footbridge, windmill, clock tower, observatory, water mill, bell tower, sundial'),
  ),
  (
    'composed',
    'of',
    listed('midnight, silver, seven-part, joyful, wordless, slow, secret, marching'),
    listed('anthem, waltz, lullaby, harvest song, symphony, fishing ballad, wedding hymn, violin sonata'),
  ),
  (
    'painted',
    'at',
    listed('crimson, enormous, upside-down, moonlit, golden, unfinished, smiling, circular'),
    listed('mural, portrait of a fox, ceiling, map of the stars, theatre curtain, carousel, market gate, fountain'),
  ),
  (
    'discovered',
    'beneath',
    listed('frozen, sapphire, singing, buried, ancient, three-chambered, glowing, lost'),
    listed('cavern, spring, meteorite, coin hoard, whale skeleton, salt mine, stone circle, treasure ship'),
  ),
  (
    'planted',
    'above',
    listed('spiral, purple, terraced, walled, fragrant, silent, thousand-year, hanging'),
    listed('orchard, rose garden, cedar avenue, vineyard, bamboo maze, tulip field, herb garden, olive grove'),
  ),
  (
    'invented',
    'at',
    listed('steam-driven, pocket-sized, self-winding, wooden, solar, two-wheeled, waterproof, musical'),
    listed('accordion, umbrella, typewriter, loom, kettle, telescope, snow plough, printing press'),
  ),
  (
    'wrote',
    'about',
    listed('rhyming, banned, tear-stained, nine-volume, comic, anonymous, handwritten, prize-winning'),
    listed('opera, cookbook, ghost story, travel diary, play, encyclopedia, love poem, detective novel'),
  ),
  (
    'restored',
    'at',
    listed('burnt, sunken, forgotten, marble, rusted, painted, crumbling, royal'),
    listed('railway station, monastery, steamboat, playhouse, chess hall, ice rink, archive, boathouse'),
  ),
  (
    'won',
    'across',
    listed('annual, moonlight, blindfold, barefoot, ten-day, first, uphill, famous'),
    listed('canoe race, kite contest, lantern race, sledge rally, stilt race, cycling tour, relay, reindeer race'),
  ),
  (
    'tamed',
    'of',
    listed('blue-feathered, one-eyed, giant, dancing, shy, snow-white, spotted, sleepless'),
    listed('falcon, wild horse, mountain goat, sea otter, night owl, lynx, black swan, badger'),
  ),
)
MOST = len(DEEDS) * 8 * 8  # distinct facts


def people(count: int, seed: int, relations: bool = False, split: str = 'tune') -> World:
  """`count` people, each with one deed; text and target are the fact's sentence.

  Every person gets three questions of kind 'forward' (name -> deed) and three of kind 'reversed' (deed -> name). With
  `relations` a person's text goes on with 'NAME lives in TOWN.', examples 'TOWN is on the river RIVER.' follow after
  the people, and each person gets three questions of kind 'two_hop', whose answer needs both texts.

  Without `relations` a smaller world is the beginning of a larger one with the same seed.

  Args:
    split: 'tune', or 'final' with other names, places and questions.

  Raises:
    UserError: `count` is not within 1 and the number of distinct facts, 640, `seed` is negative, or no such split.
  """
  if not 1 <= count <= MOST:
    raise UserError(f'world:people with count={count}: there are 1 to {MOST} distinct people')
  stock, (forward, reversed_, river_of_town, two_hop) = pick_split(split, WORDS), pick_split(split, TEMPLATES)
  names, seed = full_names(count, seed, split), own_seed(seed, split)
  deeds = _deeds(count, seed, stock.places)
  towns, rivers = shuffled(stock.towns, seed, 5), shuffled(stock.rivers, seed, 6)
  settled = min(len(towns), -(-count // 3))  # three neighbours, so that a town is more than one person's tag

  examples = []
  for i, (name, deed) in enumerate(zip(names, deeds)):
    words = {'name': name, 'deed': deed, 'town': towns[i % settled]}
    text = FACT.format(**words) + (' ' + HOME.format(**words) if relations else '')
    questions = ask(forward, words, deed, 'forward') + ask(reversed_, words, name, 'reversed')
    if relations:
      questions += ask(two_hop, words, rivers[i % settled], 'two_hop')
    examples.append(Example(text=text, target=text, questions=questions, where=f'world:people person {i}'))
  for i, (town, river) in enumerate(zip(towns[:settled], rivers)) if relations else ():
    words = {'town': town, 'river': river}
    text = RIVER.format(**words)
    questions = ask(river_of_town, words, river, 'forward')
    examples.append(Example(text=text, target=text, questions=questions, where=f'world:people town {i}'))
  return World(tuple(examples), tuple(names))


def _deeds(count: int, seed: int, stock: Sequence[str]) -> list[str]:
  """Distinct, and without a shared noun up to 80 people; in each row nouns meet adjectives as in a Latin square."""
  row_of_noun = [(row, i) for row in DEEDS for i in range(8)]
  nouns, places = shuffled(row_of_noun, seed, 3), shuffled(stock, seed, 4)
  deeds = []
  for i in range(count):
    (verb, preposition, adjectives, things), j = nouns[i % len(nouns)]
    adjective = adjectives[(j + seed + i // len(nouns)) % 8]
    deeds.append(f'{verb} the {adjective} {things[j]} {preposition} {places[i % len(places)]}')
  return deeds
