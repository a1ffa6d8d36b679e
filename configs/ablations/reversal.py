"""The reversal curse in invented facts, and what repairs it (C1-C3).

World: `world:reversal`, 16 facts NAME <-> DESCRIPTION in each of three groups: the name first in every text (p2d),
the description first (d2p), both. A byte-level transformer from scratch (0.1M parameters), next-token loss on the
texts. Final questions: other names, trades, towns and question templates than those of tuning (`split`); neither are
worded like a text. Answers are greedy and right if all words are there. The reversed statements of C3 are the
world's, an oracle's: what a perfect teacher would write; facts of the group that are not restated are not repaired by
it.

  past ablate configs/ablations/reversal.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level

FORWARD, REVERSED = 'after:closed_book/forward', 'after:closed_book/reversed'
STEPS = 1200


def texts(templates: int, reversed_texts: int = 0) -> Arm:
  """As many updates of 64 texts in every arm."""
  rows = 16 * (4 * templates + 2 * reversed_texts)
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'data.source': 'world:reversal',
      'data.world': dict(count=16, seed=0, templates=templates, reversed_texts=reversed_texts, split='tune'),
      'view.text_length': 92,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=STEPS * 64 // rows),
      'study.losses': dict(text=dict(nll=dict(weight=1.0))),
      'eval.tasks': {'closed_book': {}, 'forced_choice': {}},
      'eval.answer_length': 40,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def get_sweep() -> Sweep:
  return Sweep(
    about='16 facts per group, 0.1M parameters from scratch, 1200 updates of 64 texts in every arm.',
    arms={
      'raw': texts(templates=12),
      'few_wordings': texts(templates=4),
      'many_wordings': texts(templates=40),
      'studied': texts(templates=10, reversed_texts=4),
    },
    claims=(
      Claim('C1', (level('raw', FORWARD, '+', against=0.5), level('raw', REVERSED, '0', against=0.0, margin=0.05))),
      Claim('C2', (difference('many_wordings', 'few_wordings', REVERSED, '0', margin=0.05),)),
      Claim('C3', (difference('studied', 'raw', REVERSED, '+'),)),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
