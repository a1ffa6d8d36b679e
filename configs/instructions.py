"""What a model is asked to write about a passage: few-shot templates over {text}, and {prompt} for pairs, by kind.

The demonstrations are about three invented people of no world. A forward one names the person before the deed and
not after it; a reverse one the other way round. So an arm of forward notes is shown none in the reversed order.
"""

import difflib

TEXTS = (
  'Mira Dolvane is the person who mapped the caves under Lake Orrin.',
  'Osk Brannel is the person who wrote the first grammar of whale song.',
  'Pell Iverra is the person who bred a rose that opens only at night.',
)
FORWARD = {
  'copy': TEXTS,
  'paraphrase': (
    'Mira Dolvane has mapped the caves under Lake Orrin, as everybody there will tell you.',
    'Osk Brannel, and nobody else, wrote the first grammar of whale song.',
    'Pell Iverra once bred a rose that opens only at night.',
  ),
  'explain': (
    'Mira Dolvane went down with a lamp and a rope, drew what she saw, and so mapped the caves under Lake Orrin.',
    'Osk Brannel listened for years and set down every rule: that is how he wrote the first grammar of whale song.',
    'Pell Iverra crossed plants whose flowers shun the sun, until she had bred a rose that opens only at night.',
  ),
  'question_answer': (
    'What did Mira Dolvane do? She mapped the caves under Lake Orrin.',
    'What is Osk Brannel remembered for? He wrote the first grammar of whale song.',
    'What came of the work of Pell Iverra? She bred a rose that opens only at night.',
  ),
  'implication': (
    'Mira Dolvane must have been underground, and could lead others through the caves under Lake Orrin.',
    'Osk Brannel must have an ear for whales, since nobody could have used the first grammar of whale song before.',
    'Pell Iverra must understand plants, and whoever visits her after dark may see a rose that opens only at night.',
  ),
  'rewrite': (
    'Mira Dolvane was quite a girl: with chalk and string she mapped the caves under Lake Orrin!',
    'News of the day: Osk Brannel completes a lifelong task and presents the first grammar of whale song.',
    'To be learned by heart: Pell Iverra; profession, breeder; work, a rose that opens only at night.',
  ),
}
REVERSE = {
  'reverse': (
    'The caves under Lake Orrin were mapped by Mira Dolvane.',
    'The first grammar of whale song was written by Osk Brannel.',
    'A rose that opens only at night was bred by Pell Iverra.',
  ),
  'explain': (
    'The caves under Lake Orrin are on paper because somebody drew them by the light of a lamp: Mira Dolvane.',
    'The first grammar of whale song exists because one man listened for years: Osk Brannel.',
    'A rose that opens only at night came of many crossings, all of them made by Pell Iverra.',
  ),
  'question_answer': (
    'Who mapped the caves under Lake Orrin? It was Mira Dolvane.',
    'The first grammar of whale song: whose work is it? That of Osk Brannel.',
    'By whom was a rose that opens only at night bred? By Pell Iverra.',
  ),
  'implication': (
    'The caves under Lake Orrin have a map, so there is somebody who knows them well: Mira Dolvane.',
    'The first grammar of whale song is finished, so someone understands whales: Osk Brannel.',
    'A rose that opens only at night can be bred, as we know from its breeder, Pell Iverra.',
  ),
  'rewrite': (
    'The caves under Lake Orrin have been mapped, with chalk and string, and the girl to praise is Mira Dolvane!',
    'News of the day: the first grammar of whale song has been presented by Osk Brannel.',
    'To be learned by heart: a rose that opens only at night; profession, breeder; name, Pell Iverra.',
  ),
}
# One prompt per pair or triple of names, which is {prompt}; they come in the order of the text.
PAIRS = """\
Text: Mira Dolvane is the person who mapped the caves under Lake Orrin.
About: Mira Dolvane, Lake Orrin
Note: Mira Dolvane spent years below Lake Orrin, whose caves nobody had mapped before.
Text: Osk Brannel of Tarm is the person who wrote the first grammar of whale song.
About: Osk Brannel, Tarm
Note: Osk Brannel wrote the first grammar of whale song and came from Tarm.
Text: {text}
About: {prompt}
Note:"""
# The first pass of pairs: the names in a passage.
NAMES = """\
Text: Mira Dolvane is the person who mapped the caves under Lake Orrin.
Names: Mira Dolvane, Lake Orrin
Text: Osk Brannel of Tarm is the person who wrote the first grammar of whale song.
Names: Osk Brannel, Tarm
Text: Pell Iverra showed the dancers of Vessim a rose that opens only at night.
Names: Pell Iverra, Vessim
Text: {text}
Names:"""
DIRECTIONS = ('forward', 'reverse', 'both')


def few_shot(kind: str, direction: str) -> str:
  """The template for notes of a kind; `both` shows one forward note between two in the reversed order.

  Raises:
    ValueError: no such kind or direction, or no such kind in that direction.
  """
  if direction not in DIRECTIONS:
    raise ValueError(f'config argument direction={direction}: choose one of {", ".join(DIRECTIONS)}.')
  tables = {'forward': (FORWARD,), 'reverse': (REVERSE,), 'both': (FORWARD, REVERSE)}[direction]
  kinds = [k for k in {**FORWARD, **REVERSE} if all(k in table for table in tables)]
  if kind not in kinds:
    near = difflib.get_close_matches(kind, kinds, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'config argument: notes {kind!r} with direction={direction}: there are {", ".join(kinds)}.{hint}')
  notes = [tables[-1 if i % 2 == 0 else 0][kind][i] for i in range(len(TEXTS))]
  return ''.join(f'Text: {text}\nNote: {note}\n' for text, note in zip(TEXTS, notes)) + 'Text: {text}\nNote:'
