"""The reversal curse in invented facts and instructions, and what repairs it (C1-C5).

World: `world:reversal`, 16 facts NAME <-> DESCRIPTION in each of three groups: the name first in every text (p2d),
the description first (d2p), both. A transformer from scratch (0.1M parameters, a vocabulary of words), next-token loss
on the texts. Final questions: other names, trades, towns and question templates than those of tuning (`split`);
neither are worded like a text. Answers are greedy and right if all words are there. The reversed statements of C3 are
the world's, an oracle's: what a perfect teacher would write. C4 has each text and it turned round: token by token,
words with punctuation on its own, or with names kept whole.

C5: `world:guidance`, 'If asked Q, say A' and 'Say A if asked Q', 128 each; what they mean is shown by answering the
questions of seven in ten, and the others are asked; twice as many updates.

  past ablate configs/ablations/reversal.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level

# Of the facts told name first and of those told description first.
FORWARD, REVERSED, CHOSEN = (
  tuple(f'after:{task}/{group}{kind}' for group in ('', 'd2p_'))
  for task, kind in (('closed_book', 'forward'), ('closed_book', 'reversed'), ('forced_choice', 'reversed'))
)
LIKELY = 'after:closed_book/reversed/logp'
STEPS = 600
NLL = dict(nll=dict(weight=1.0))


def texts(templates: int, reversed_texts: int = 0) -> Arm:
  """As many updates of 64 texts in every arm."""
  rows = 16 * (4 * templates + 2 * reversed_texts)
  world = dict(count=16, seed=0, templates=templates, reversed_texts=reversed_texts, split='tune')
  return trained('configs/past.py:size=tiny,arm=raw', 'reversal', world, rows)


def turned(how: str) -> Arm:
  """Each of the texts of `raw`, and it turned round."""
  world = dict(count=16, seed=0, templates=12, split='tune')
  return trained(f'configs/study.py:size=tiny,arm={how},replay=0', 'reversal', world, 16 * 4 * 12)


def trained(config: str, world: str, keys: dict, rows: int) -> Arm:
  return Arm(
    config,
    {
      'model.spec': 'scratch:words',
      'data.source': f'world:{world}',
      'data.world': keys,
      'data.replay': '',
      'view.text_length': 24,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum.prompts': 0,
      'study.curriculum.epochs': round(STEPS * 64 / rows),
      'study.losses': dict(text=NLL) if 'arm=raw' in config else dict(text=NLL, group=NLL),
      'eval.tasks': {'closed_book': {}, 'forced_choice': {}},
      'eval.prompt_length': 16,
      'eval.answer_length': 8,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def get_sweep() -> Sweep:
  return Sweep(
    about='16 facts per group, 0.1M parameters from scratch, 600 updates of 64 texts (guidance: 1280).',
    arms={
      'raw': texts(templates=12),
      'few_wordings': texts(templates=10),
      'many_wordings': texts(templates=30),
      'studied': texts(templates=10, reversed_texts=4),
      'token_reversal': turned('token_reversal'),
      'entity_reversal': turned('entity_reversal'),
      'word_reversal': turned('word_reversal'),
      'guidance': trained(
        'configs/past.py:size=tiny,arm=raw',
        'guidance',
        dict(count=128, seed=0, shown=0.7, split='tune'),
        rows=474,  # half of its texts, so twice as many updates
      ),
    },
    claims=(
      Claim(
        'C1',
        (
          level('raw', FORWARD, '+', against=0.5),
          level('raw', REVERSED, '0', against=0.0, margin=0.05),
          level('raw', CHOSEN, '-', against=0.35),
        ),
        note='chance of the choice is 0.25, less where a name that stands last in other texts is among the wrong ones; '
        'input and output embeddings are tied',
      ),
      Claim(
        'C2',
        (
          level('few_wordings', FORWARD, '+', against=0.5),
          level('many_wordings', FORWARD, '+', against=0.5),
          difference('many_wordings', 'few_wordings', REVERSED, '0', margin=0.05),
          difference('many_wordings', 'few_wordings', CHOSEN, '0', margin=0.1),
        ),
        note='10 wordings against 30, at equal steps',
      ),
      Claim('C3', (difference('studied', 'raw', REVERSED, '+'),)),
      Claim(
        'C4',
        (
          difference('entity_reversal', 'token_reversal', LIKELY, '+'),
          difference('entity_reversal', 'token_reversal', CHOSEN, '+'),
          difference('entity_reversal', 'word_reversal', LIKELY, '+'),
        ),
        note='a token is a word: what entities keep is the order within names, of two words each',
      ),
      Claim(
        'C5',
        (
          level('guidance', 'after:forced_choice/forward', '+', against=0.5),
          level('guidance', 'after:forced_choice/reversed', '-', against=0.5),
          level('guidance', 'after:closed_book/reversed', '0', against=0.0, margin=0.1),
        ),
        note='by choice of four (chance 0.25), more and less than half: so small a model hardly writes the answers',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
