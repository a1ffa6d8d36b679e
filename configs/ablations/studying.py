"""What studied data are worth: rewordings, more notes, a smaller student (C6-C8).

C6, C8: `world:biographies`, 64 people of four attributes each, told once in fixed order and words (`raw`), or five
times in other words and orders (`studied`, an oracle's); questions about half of them are answered in the texts, and
those about the others are asked, in the words of the split. From scratch (0.1M parameters, a vocabulary of words), as
many updates in every arm; C8's larger student has 0.5M parameters.

C7: `world:reversal`, 16 facts in one text each, name first; a base pretrained to take notes (`world:notes`),
writes them, frozen, half of them in the other order. Texts and notes are as many updates in every arm; what differs is
how many different notes there are. That raw text hurts a base, the other half of the claim, cannot be seen here: the
base knows nothing of invented people.

  past ablate configs/ablations/studying.py --workdir=runs/ablate
"""

import math

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, trend

ATTRIBUTES = ('town', 'field', 'trade', 'pet')
ANSWERS = tuple(f'after:closed_book/{what}' for what in ATTRIBUTES)
BOTH = ('after:closed_book/forward', 'after:closed_book/reversed')
NLL = dict(nll=dict(weight=1.0))
COMMON = {
  'data.replay': '',
  'eval.tasks': {'closed_book': {}, 'forced_choice': {}},
  'eval.prompt_length': 16,
  'eval.answer_length': 8,
  'eval.chunk': 64,
  'eval.heldout': '',
}
PEOPLE, STEPS = 64, 1680
PASSES, NOTES = 256, 4


def lives(rewordings: int, permute: bool, spec: str = 'scratch:words', longer: float = 1.0) -> Arm:
  rows = PEOPLE * rewordings + PEOPLE // 2 * len(ATTRIBUTES)
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    COMMON
    | {
      'model.spec': spec,
      'data.source': 'world:biographies',
      'data.world': dict(count=PEOPLE, seed=0, rewordings=rewordings, permute=permute, asked=0.5, split='tune'),
      'view.text_length': 32,
      'study.rounds': 1,
      'study.batch': 32,
      'study.sample_prompts': 32,
      'study.buckets': (0.5, 1.0),
      'study.curriculum': dict(name='constant', prompts=0, epochs=round(longer * STEPS * 32 / rows)),
      'study.losses': dict(text=NLL),
    },
  )


def base() -> Arm:
  """2500 updates of 64 documents."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'model.spec': 'scratch:words',
      'data.source': 'world:notes',
      'data.world': dict(count=32_000, seed=0, kinds=('paraphrase', 'reversed'), split='tune'),
      'view.text_length': 44,
      'optimizer.lr': 6e-3,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=5),
      'study.losses': dict(text=NLL),
      'eval.questions': 64,
      'eval.prompt_length': 28,
      'eval.answer_length': 20,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def notes(rounds: int) -> Arm:
  """`rounds` times 4 notes of each text, from the frozen base; 0: the texts alone."""
  return Arm(
    f'configs/study.py:size=tiny,arm={"paraphrase" if rounds else "raw"},notes={NOTES},replay=0',
    COMMON
    | {
      'data.source': 'world:reversal',
      'data.world': dict(count=16, seed=0, templates=1, groups=('p2d',), split='tune'),
      'view.prompt_length': 28,
      'view.text_length': 20,
      'optimizer.lr': 1e-3,
      'study.rounds': rounds or 1,
      'study.batch': 16,
      'study.sample_prompts': 16,
      'study.generator.length': 20,
      'study.curriculum': dict(
        name='constant', temperature=1.0, prompts=16, epochs=PASSES // (rounds or 1), anchor_source='none'
      ),
    },
    start='writer',
  )


def get_sweep() -> Sweep:
  counts = (1, 4, 16, 64)
  return Sweep(
    about='64 lives, 1680 updates of 32 texts from scratch; 16 facts, 256 updates of all texts with 4 notes each.',
    prepare={'writer': base()},
    arms={
      'raw': lives(1, permute=False),
      'raw_longer': lives(1, permute=False, longer=1.5),
      'reworded': lives(5, permute=False),
      'permuted': lives(1, permute=True),
      'studied': lives(5, permute=True),
      'large_raw': lives(1, permute=False, spec='scratch:words-small'),
      'no_notes': notes(0),
      **{f'notes_{NOTES * n}': notes(n) for n in counts},
    },
    claims=(
      Claim(
        'C6',
        (
          difference('studied', 'raw', ANSWERS, '+'),
          difference('studied', 'raw_longer', ANSWERS, '+', budget='tokens'),
        ),
        note='as many steps, and as many tokens; the questions are a smaller share of the studied texts',
      ),
      Claim(
        'C7',
        (
          trend({f'notes_{NOTES * n}': math.log2(n) for n in counts}, BOTH, '+'),
          difference('notes_256', 'no_notes', BOTH, '+'),
        ),
        note='over log2 of the number of different notes, at equal steps; that raw text can hurt is not tested',
      ),
      Claim(
        'C8',
        (
          difference('studied', 'large_raw', ANSWERS, '+', against=-0.02),
          difference('large_raw', 'raw', ANSWERS, '+'),
        ),
        note='0.1M parameters against 0.5M; the second says whether size helps at all',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
