"""The words that worlds are put together from, and how a seed picks among them.

There are two sets, `tune` and `final`, that share no name, place, town or river: what is tried out on the one is
reported of the other. Real people are not meant; the names are made up.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from past_jax.data.stream import permutation
from past_jax.types import Example, Question, UserError

SPLITS = {'tune': 0, 'final': 1}


class World(NamedTuple):
  examples: tuple[Example, ...]
  names: tuple[str, ...] = ()  # of the people, in the order of their examples


class Words(NamedTuple):
  first: tuple[str, ...]
  last: tuple[str, ...]
  places: tuple[str, ...]
  towns: tuple[str, ...]
  rivers: tuple[str, ...]


def listed(text: str) -> tuple[str, ...]:
  return tuple(text.split(', '))


def joined(starts: str, ends: str, between: str = '') -> tuple[str, ...]:
  """Every start with every end."""
  return tuple(a + between + b for a in listed(starts) for b in listed(ends))


def pick_split(split: str, table: dict):
  """table['tune'] or table['final'].

  Raises:
    UserError: any other split.
  """
  if split not in table:
    raise UserError(f'config.data.world.split={split!r}: choose one of {", ".join(table)}')
  return table[split]


def own_seed(seed: int, split: str) -> int:
  """The same seed draws another world in the other split."""
  return seed + 1_000_000 * (split == 'final' and seed >= 0)


def shuffled(words: Sequence, *seeds: int) -> list:
  return [words[i] for i in permutation(len(words), *seeds)]


def dice(*seeds: int, size: int = 64) -> tuple[Iterator[float], Callable]:
  """(numbers from 0 up to 1, pick(options)), both from one row of `size` distinct numbers."""
  luck = iter((permutation(size, *seeds) / size).tolist())
  return luck, lambda options: options[int(next(luck) * len(options))]


def ask(templates: Sequence[str], words: dict[str, str], answer: str, kind: str, wrong: Sequence[str] = ()):
  """One question for each template; its choices, if there are `wrong` ones, are the answer and these."""
  choices = (answer, *wrong) if wrong else ()
  return tuple(Question(capital(t.format(**words)), answer, kind, choices) for t in templates)


def others(answer: str, *pools: Sequence[str], seed: int, count: int = 3) -> tuple[str, ...]:
  """`count` wrong answers, from the pools in turn as far as they reach."""
  turns = [[word for word in shuffled(pool, seed, 20 + i) if word != answer] for i, pool in enumerate(pools)]
  mixed = [word for i in range(count) for pool in turns for word in pool[i : i + 1]]
  return tuple(dict.fromkeys(mixed))[:count]


def full_names(count: int, seed: int, split: str) -> list[str]:
  """Distinct, and without a shared first or last name up to 64 people."""
  words, seed = pick_split(split, WORDS), own_seed(seed, split)
  first, last = shuffled(words.first, seed, 1), shuffled(words.last, seed, 2)
  n = len(first)
  return [f'{first[i % n]} {last[(i + i // n) % n]}' for i in range(count)]


def capital(text: str) -> str:
  return text[:1].upper() + text[1:]


FIRST = listed(
  'Tarvin, Melora, Oswick, Brenna, Caldor, Ysolde, Fenric, Jessamy, Horvath, Linnea, Quillon, Perrin, Zaveta, '
  'Orsolo, Wendrin, Kestra, Dorvik, Amabel, Thessan, Ruvio, Galwen, Sibrel, Marrick, Odalys, Ferrand, Nivara, '
  'Coswin, Hestia, Bravik, Eluned, Torrel, Vashti, Jorund, Calisse, Pelham, Wyrenna, Ansgard, Ilvane, Rodric, '
  'Saphira, Mordane, Ketura, Ulric, Faelith, Dunstan, Orabel, Bexley, Cyrene, Lorcan, Tindra, Varro, Emmeric, '
  'Halvina, Soren, Gwendra, Petrosk, Ravenna, Isolt, Keverne, Myrtha, Aldous, Zephra, Corwin, Belisar'
)
LAST = listed(
  'Okelle, Brandvar, Sarrowby, Tennick, Vosslind, Quarmby, Hexandro, Pellimore, Dravick, Oonaver, Sturrick, '
  'Wexcombe, Lanthier, Marbrook, Zellwyn, Ketterund, Follwark, Ibbercott, Gavrane, Thornaby, Caddish, Ruskell, '
  'Ennisvar, Bellowick, Hartrune, Jossender, Skarvold, Umberlin, Pavelisk, Dunmarrow, Crellick, Yarwend, Vintersol, '
  'Ashgrave, Tolvane, Merriwick, Orrinsby, Blexham, Fenmoor, Kolbrand, Nettervale, Sundrick, Galloran, Wimpolder, '
  'Hestrand, Arquelle, Drummick, Tazewind, Ollivard, Pendrake, Corvassin, Jarrowe, Lindquell, Steepleton, '
  'Vandermoot, Ruddigan, Ebbsworth, Quillfeather, Maskelund, Trevannick, Zorander, Hallowbeck, Isengate, '
  'Birkenshand'
)
PLACES = listed(
  'Sember Island, Port Havrell, Oskell Valley, Turmel Bay, Castle Brennoch, Fennick Harbour, Mount Ardessa, Lake '
  'Quorin, Dallow Town, Cape Ruvane, Nettle Forest, Gorrin Pass, Velmar City, Saint Orsby, Hollin Moor, Pellan '
  'Island, Lower Tavick, Mirren Square, Upper Kestwick, Zandor Hill, Iverna Bay, Castle Dromond, Lake Sennet, Port '
  'Ellisk, Wickmere Abbey, Bronnel Valley, Cape Tolliver, Mount Jessop, Lantry Town, Ashen Plateau, Corrick Bridge, '
  'Old Marvane, Sellick Marsh, Great Ottery, Quern Island, Farrow Heath, Port Yarrick, Lake Odessan, Umber Canyon, '
  'Holm Talvey, Stanner Point, North Belloway, Castle Virrin, Garrick Fen, Mossel Bay, New Tarrant, Pine Hallow, '
  'Rook Island'
)
TOWNS = listed(
  'Abberlow, Brindleford, Carrowmast, Dunvessel, Eskerholt, Fallowmere, Gristwick, Hendervale, Ironby, Jaspergate, '
  'Kelderwick, Lorvane, Mistlebury, Norrenfell, Ottermouth, Pricklow, Quenby, Rustmere, Stallowick, Thackerby, '
  'Ulverstane, Varnhollow, Wendlecross, Yellowick'
)
RIVERS = listed(
  'Ashwen, Bollen, Cresk, Dovray, Elmish, Frothe, Garn, Hesper, Illow, Jarrel, Kenmar, Loam, Mivven, Nadrel, '
  'Orrish, Plash, Quill, Rumble, Silder, Tarvel, Ullen, Vesk, Wimmer, Yarl'
)

WORDS = {
  'tune': Words(FIRST, LAST, PLACES, TOWNS, RIVERS),
  'final': Words(
    first=joined('Dra, Kel, Mir, Osh, Pra, Sul, Tam, Vey', 'dane, goth, lissa, mond, nell, ricka, sobel, wen'),
    last=joined('Ack, Bram, Cold, Elf, Gard, Holt, Nord, Wyn', 'berry, combe, dowell, fast, holm, mantle, stride, wen'),
    places=joined('Arden, Belmor, Cathow, Dunsel, Ember, Flint', 'Cove, Ridge, Wood, Gate, Field, Mere, Fold', ' '),
    towns=joined('Amber, Cragg, Edden, Marsh, Swan, Thorn', 'court, ley, stead, worth'),
    rivers=joined('Ban, Del, Mor, Sev, Tev, Wen', 'dle, lin, nock, ra'),
  ),
}
