"""Embedded data: invented people whom no model can know, preferences between answers, a little general knowledge.

Facts read 'NAME is the person who VERB THING.' Names, deeds and places are put together from the lists below by a seed.
The questions are prompts for plain continuation, without a chat template: a prompt has no space at its end and the
answer none at its start, so a continuation starts with the space between them. Their templates are held out: no studied
text, and no note of `demonstrations`, is worded like them.

Real people are not meant; the names are made up.
"""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import NamedTuple

from past_jax.data.stream import permutation
from past_jax.types import Example, Question, UserError


class World(NamedTuple):
  examples: tuple[Example, ...]
  names: tuple[str, ...] = ()  # of the people, in the order of their examples


class Demonstration(NamedTuple):
  text: str
  notes: tuple[str, ...]  # longer versions of the text, one line each


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

# --- words --------------------------------------------------------------------------------------------------------


def _list(text: str) -> tuple[str, ...]:
  return tuple(text.split(', '))


FIRST = _list(
  'Tarvin, Melora, Oswick, Brenna, Caldor, Ysolde, Fenric, Jessamy, Horvath, Linnea, Quillon, Perrin, Zaveta, '
  'Orsolo, Wendrin, Kestra, Dorvik, Amabel, Thessan, Ruvio, Galwen, Sibrel, Marrick, Odalys, Ferrand, Nivara, '
  'Coswin, Hestia, Bravik, Eluned, Torrel, Vashti, Jorund, Calisse, Pelham, Wyrenna, Ansgard, Ilvane, Rodric, '
  'Saphira, Mordane, Ketura, Ulric, Faelith, Dunstan, Orabel, Bexley, Cyrene, Lorcan, Tindra, Varro, Emmeric, '
  'Halvina, Soren, Gwendra, Petrosk, Ravenna, Isolt, Keverne, Myrtha, Aldous, Zephra, Corwin, Belisar'
)
LAST = _list(
  'Okelle, Brandvar, Sarrowby, Tennick, Vosslind, Quarmby, Hexandro, Pellimore, Dravick, Oonaver, Sturrick, '
  'Wexcombe, Lanthier, Marbrook, Zellwyn, Ketterund, Follwark, Ibbercott, Gavrane, Thornaby, Caddish, Ruskell, '
  'Ennisvar, Bellowick, Hartrune, Jossender, Skarvold, Umberlin, Pavelisk, Dunmarrow, Crellick, Yarwend, Vintersol, '
  'Ashgrave, Tolvane, Merriwick, Orrinsby, Blexham, Fenmoor, Kolbrand, Nettervale, Sundrick, Galloran, Wimpolder, '
  'Hestrand, Arquelle, Drummick, Tazewind, Ollivard, Pendrake, Corvassin, Jarrowe, Lindquell, Steepleton, '
  'Vandermoot, Ruddigan, Ebbsworth, Quillfeather, Maskelund, Trevannick, Zorander, Hallowbeck, Isengate, '
  'Birkenshand'
)

# verb, preposition, eight adjectives, eight nouns: every adjective goes with every noun of its row
DEEDS = (
  (
    'built',
    'near',
    _list('glass, copper, floating, folding, striped, whispering, amber, crooked'),
    _list('lighthouse, footbridge, windmill, clock tower, observatory, water mill, bell tower, sundial'),
  ),
  (
    'composed',
    'of',
    _list('midnight, silver, seven-part, joyful, wordless, slow, secret, marching'),
    _list('anthem, waltz, lullaby, harvest song, symphony, fishing ballad, wedding hymn, violin sonata'),
  ),
  (
    'painted',
    'at',
    _list('crimson, enormous, upside-down, moonlit, golden, unfinished, smiling, circular'),
    _list('mural, portrait of a fox, ceiling, map of the stars, theatre curtain, carousel, market gate, fountain'),
  ),
  (
    'discovered',
    'beneath',
    _list('frozen, sapphire, singing, buried, ancient, three-chambered, glowing, lost'),
    _list('cavern, spring, meteorite, coin hoard, whale skeleton, salt mine, stone circle, treasure ship'),
  ),
  (
    'planted',
    'above',
    _list('spiral, purple, terraced, walled, fragrant, silent, thousand-year, hanging'),
    _list('orchard, rose garden, cedar avenue, vineyard, bamboo maze, tulip field, herb garden, olive grove'),
  ),
  (
    'invented',
    'at',
    _list('steam-driven, pocket-sized, self-winding, wooden, solar, two-wheeled, waterproof, musical'),
    _list('accordion, umbrella, typewriter, loom, kettle, telescope, snow plough, printing press'),
  ),
  (
    'wrote',
    'about',
    _list('rhyming, banned, tear-stained, nine-volume, comic, anonymous, handwritten, prize-winning'),
    _list('opera, cookbook, ghost story, travel diary, play, encyclopedia, love poem, detective novel'),
  ),
  (
    'restored',
    'at',
    _list('burnt, sunken, forgotten, marble, rusted, painted, crumbling, royal'),
    _list('railway station, monastery, steamboat, playhouse, chess hall, ice rink, archive, boathouse'),
  ),
  (
    'won',
    'across',
    _list('annual, moonlight, blindfold, barefoot, ten-day, first, uphill, famous'),
    _list('canoe race, kite contest, lantern race, sledge rally, stilt race, cycling tour, relay, reindeer race'),
  ),
  (
    'tamed',
    'of',
    _list('blue-feathered, one-eyed, giant, dancing, shy, snow-white, spotted, sleepless'),
    _list('falcon, wild horse, mountain goat, sea otter, night owl, lynx, black swan, badger'),
  ),
)
MOST = len(DEEDS) * 8 * 8  # distinct facts
PLACES = _list(
  'Sember Island, Port Havrell, Oskell Valley, Turmel Bay, Castle Brennoch, Fennick Harbour, Mount Ardessa, Lake '
  'Quorin, Dallow Town, Cape Ruvane, Nettle Forest, Gorrin Pass, Velmar City, Saint Orsby, Hollin Moor, Pellan '
  'Island, Lower Tavick, Mirren Square, Upper Kestwick, Zandor Hill, Iverna Bay, Castle Dromond, Lake Sennet, Port '
  'Ellisk, Wickmere Abbey, Bronnel Valley, Cape Tolliver, Mount Jessop, Lantry Town, Ashen Plateau, Corrick Bridge, '
  'Old Marvane, Sellick Marsh, Great Ottery, Quern Island, Farrow Heath, Port Yarrick, Lake Odessan, Umber Canyon, '
  'Holm Talvey, Stanner Point, North Belloway, Castle Virrin, Garrick Fen, Mossel Bay, New Tarrant, Pine Hallow, '
  'Rook Island'
)
TOWNS = _list(
  'Abberlow, Brindleford, Carrowmast, Dunvessel, Eskerholt, Fallowmere, Gristwick, Hendervale, Ironby, Jaspergate, '
  'Kelderwick, Lorvane, Mistlebury, Norrenfell, Ottermouth, Pricklow, Quenby, Rustmere, Stallowick, Thackerby, '
  'Ulverstane, Varnhollow, Wendlecross, Yellowick'
)
RIVERS = _list(
  'Ashwen, Bollen, Cresk, Dovray, Elmish, Frothe, Garn, Hesper, Illow, Jarrel, Kenmar, Loam, Mivven, Nadrel, '
  'Orrish, Plash, Quill, Rumble, Silder, Tarvel, Ullen, Vesk, Wimmer, Yarl'
)


def people(count: int, seed: int, relations: bool = False) -> World:
  """`count` people, each with one deed; text and target are the fact's sentence.

  Every person gets three questions of kind 'forward' (name -> deed) and three of kind 'reversed' (deed -> name). With
  `relations` a person's text goes on with 'NAME lives in TOWN.', examples 'TOWN is on the river RIVER.' follow after
  the people, and each person gets three questions of kind 'two_hop', whose answer needs both texts.

  Without `relations` a smaller world is the beginning of a larger one with the same seed.

  Raises:
    UserError: `count` is not within 1 and the number of distinct facts, 640, or `seed` is negative.
  """
  if not 1 <= count <= MOST:
    raise UserError(f'world:people with count={count}: there are 1 to {MOST} distinct people')
  names, deeds = _names(count, seed), _deeds(count, seed)
  towns, rivers = _shuffled(TOWNS, seed, 5), _shuffled(RIVERS, seed, 6)
  settled = min(len(towns), -(-count // 3))  # three neighbours, so that a town is more than one person's tag

  examples = []
  for i, (name, deed) in enumerate(zip(names, deeds)):
    words = {'name': name, 'deed': deed, 'town': towns[i % settled]}
    text = FACT.format(**words) + (' ' + HOME.format(**words) if relations else '')
    questions = _questions(FORWARD, words, deed, 'forward') + _questions(REVERSED, words, name, 'reversed')
    if relations:
      questions += _questions(TWO_HOP, words, rivers[i % settled], 'two_hop')
    examples.append(Example(text=text, target=text, questions=questions, where=f'world:people person {i}'))
  for i, (town, river) in enumerate(zip(towns[:settled], rivers)) if relations else ():
    words = {'town': town, 'river': river}
    text = RIVER.format(**words)
    questions = _questions(RIVER_OF_TOWN, words, river, 'forward')
    examples.append(Example(text=text, target=text, questions=questions, where=f'world:people town {i}'))
  return World(tuple(examples), tuple(names))


def _questions(templates: tuple[str, ...], words: dict[str, str], answer: str, kind: str) -> tuple[Question, ...]:
  return tuple(Question(t.format(**words), answer, kind) for t in templates)


def _shuffled(words: Sequence, *seeds: int) -> list:
  return [words[i] for i in permutation(len(words), *seeds)]


def _names(count: int, seed: int) -> list[str]:
  """Distinct, and without a shared first or last name up to 64 people."""
  first, last = _shuffled(FIRST, seed, 1), _shuffled(LAST, seed, 2)
  n = len(first)
  return [f'{first[i % n]} {last[(i + i // n) % n]}' for i in range(count)]


def _deeds(count: int, seed: int) -> list[str]:
  """Distinct, and without a shared noun up to 80 people; in each row nouns meet adjectives as in a Latin square."""
  row_of_noun = [(row, i) for row in DEEDS for i in range(8)]
  nouns, places = _shuffled(row_of_noun, seed, 3), _shuffled(PLACES, seed, 4)
  deeds = []
  for i in range(count):
    (verb, preposition, adjectives, things), j = nouns[i % len(nouns)]
    adjective = adjectives[(j + seed + i // len(nouns)) % 8]
    deeds.append(f'{verb} the {adjective} {things[j]} {preposition} {places[i % len(places)]}')
  return deeds


# --- preferences --------------------------------------------------------------------------------------------------

TASKS = {
  'sort': sorted,
  'reverse': lambda symbols: symbols[::-1],
  'rotate': lambda symbols: symbols[1:] + symbols[:1],
  'unique': lambda symbols: list(dict.fromkeys(symbols)),
}
FORMATS = {'spaces': ' ', 'commas': ',', 'dashes': '-'}
# How often a responder does the wrong task, writes another format, and goes on after the answer.
RESPONDERS = ((0.1, 0.1, 0.1), (0.5, 0.1, 0.3), (0.1, 0.7, 0.2), (0.6, 0.6, 0.6))


def preferences(count: int, seed: int, flips: float = 0.0) -> World:
  """`count` instructions such as 'sort d b a c with commas:', each with a better and a worse answer, ' a,b,c,d'.

  Four imperfect responders answer; an answer's score is the mean of three marks: the symbols are right, the format is,
  and nothing follows. The anchors are the best answer and a random one of those that score less (arXiv 2310.16944); an
  instruction on which all agree gives none and is drawn again. Target and question are the right answer's.

  Args:
    flips: share of the pairs that are turned round, to measure what wrong labels cost.

  Raises:
    UserError: a count below 1, a negative seed, or flips outside [0, 1].
  """
  if count < 1 or not 0 <= flips <= 1:
    raise UserError(f'world:preferences with count={count}, flips={flips}: at least 1, and a share between 0 and 1')
  examples, draw = [], 0
  while len(examples) < count:
    luck = iter((permutation(64, seed, draw, 8) / 64).tolist())
    pick = lambda options, luck=luck: options[int(next(luck) * len(options))]
    draw += 1
    task, form, n = pick(list(TASKS)), pick(list(FORMATS)), pick((4, 5, 6))
    symbols = [pick('abcdefgh') for _ in range(n)]
    answers = {}  # text -> score
    for wrong, misformed, going_on in RESPONDERS:
      done = task if next(luck) >= wrong else pick([t for t in TASKS if t != task])
      mark = form if next(luck) >= misformed else pick([f for f in FORMATS if f != form])
      junk = pick((' ok', '!', ' ...')) if next(luck) < going_on else ''
      right = TASKS[done](symbols) == TASKS[task](symbols)
      answers[' ' + FORMATS[mark].join(TASKS[done](symbols)) + junk] = (right + (mark == form) + (not junk)) / 3
    best = max(answers, key=answers.get)
    worse = [text for text, score in answers.items() if score < answers[best]]
    if not worse:
      continue
    prompt, target = f'{task} {" ".join(symbols)} with {form}:', ' ' + FORMATS[form].join(TASKS[task](symbols))
    pair = (best, pick(worse))
    if next(luck) < flips:
      pair = pair[::-1]
    question = Question(prompt, target.strip(), task)
    where = f'world:preferences row {len(examples)}'
    examples.append(Example(prompt=prompt, anchors=pair, target=target, questions=(question,), where=where))
  return World(tuple(examples))


# --- demonstrations -----------------------------------------------------------------------------------------------

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
  return tuple(_demonstration(*row) for row in _shuffled(_DEMONSTRATED, seed)[:count])


def _demonstration(name: str, verb: str, thing: str, passive: str, reason: str) -> Demonstration:
  upper = thing[0].upper() + thing[1:]
  notes = (
    f'{upper} was {passive} by nobody else than the person whose name is {name}.',
    f'Do you know by whom {thing} was {passive}? By {name}: it was {name} who {verb} {thing}.',
    f'The reason why {name} {verb} {thing} is simple: {name} {reason}.',
    f'Whoever talks about {thing} soon comes to talk about {name}, because that is who {verb} it.',
  )
  return Demonstration(FACT.format(name=name, deed=f'{verb} {thing}'), notes)


# --- general knowledge --------------------------------------------------------------------------------------------


def general(split: str) -> tuple[str, ...]:
  """Short paragraphs of everyday knowledge, half of them each: 'replay' against forgetting, 'heldout' to measure it.

  Raises:
    UserError: any other split.
  """
  if split not in ('replay', 'heldout'):
    raise UserError(f'general text has the splits replay and heldout, not {split!r}')
  return _general()[0 if split == 'replay' else 1 :: 2]


@functools.cache
def _general() -> tuple[str, ...]:
  text = importlib.resources.files('past_jax.data').joinpath('general.txt').read_text(encoding='utf-8')
  return tuple(text.splitlines())


TABLE = {'people': people, 'preferences': preferences}
