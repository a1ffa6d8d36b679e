"""Offline preferences after imitation (A1-A7): dSFT, dDPO, their order, epochs, beta, the rejected, wrong labels.

World: `world:preferences`, instructions such as 'sort d b a c with commas:', four imperfect responders; the mean of
three marks (right symbols, right format, nothing behind) is the teacher's score. The base (0.1M parameters, bytes) has
been pretrained on what any of the responders answer, mixed formats and junk included; `imitator` is it after one epoch
on answers to other instructions, half of them the better and half the worse one; preferences are the best answer
against a random one of those that score less. Final instructions are held out and of other letters than those of
tuning; the score is that of samples at temperature 0.7, as MT-Bench has it: greedy decoding finds what most responders
say, which is right as it is.

Controls that no claim reads: labels by the toss of a coin.

  past ablate configs/ablations/dpo.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Contrast, Sweep, difference, level

KINDS = ('sort', 'reverse', 'rotate', 'unique')
SCORE = tuple(f'after:accuracy/heldout/{kind}' for kind in KINDS)
GAIN = tuple(f'change:accuracy/heldout/{kind}' for kind in KINDS)
ROWS, HELDOUT = 1024, 128
WORLD = dict(count=ROWS + HELDOUT, seed=0, flips=0.0, split='tune')
COMMON = {
  'eval.sources': {'heldout': 'world:preferences'},
  'eval.skip': ROWS,
  'eval.tasks': {
    'accuracy': {'function': 'past_jax.data.worlds.instructions:marks', 'samples': 4, 'temperature': 0.7},
    'pair_accuracy': {},
  },
  'eval.questions': 0,
  'eval.chunk': 64,
  'eval.heldout': '',
}


def base() -> Arm:
  """2048 updates of 64 documents."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'data.source': 'world:instructions',
      'data.world': WORLD | {'count': 1 << 14},
      'view.text_length': 52,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=8),
      'study.losses': dict(text=dict(nll=dict(weight=1.0))),
      'eval.questions': 64,
      'eval.answer_length': 24,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
    shift={'data.world.seed': 10_000},
  )


def pairs(
  args: str = '', start: str = 'imitator', epochs: int = 1, lr: float = 1e-4, world=None, asked=None, **keys
) -> Arm:
  """An arm of configs/dpo.py: `epochs` over 1024 pairs, 16 an update; `keys`: of the stage."""
  stage = 'sft' if 'arm=sft' in args else 'dpo'
  return Arm(
    f'configs/dpo.py:size=tiny{args}',
    {
      **COMMON,
      'data.world': WORLD | (world or {}),
      'data.limit': ROWS,
      'optimizer.lr': lr,
      f'{stage}.batch': 16,
      f'{stage}.sample_prompts': 16,
      f'{stage}.curriculum.epochs': epochs,
      **{f'{stage}.{key}': value for key, value in keys.items()},
      **(asked or {}),
    },
    start=start,
  )


def get_sweep() -> Sweep:
  imitator = pairs(',arm=sft', start='base', lr=1e-3, world={'flips': 0.5})  # any answer, not the better one
  flipped = {'flips': 0.3}
  smoothed = lambda loss: {'losses': {'group': {loss: dict(weight=1.0, beta=0.1, label_smoothing=0.3)}}}
  return Sweep(
    about='1024 pairs, 128 held-out instructions, 0.1M parameters; score: mean of three marks, from 0 to 1.',
    prepare={
      'base': base(),
      'imitator': Arm(imitator.config, imitator.set, 'base', shift={'data.world.seed': 20_000}),
    },
    arms={
      'dpo': pairs(),
      'dpo_3_epochs': pairs(epochs=3),
      'dpo_without_sft': pairs(start='base', epochs=2),
      'more_sft': pairs(',arm=sft', lr=1e-3),
      'dpo_asked_its_pairs': pairs(asked={'eval.skip': 0, 'eval.limit': 256}),
      'dpo_worst': pairs(world={'rejected': 'worst'}),
      'small_beta': pairs(',beta=0.01'),
      'flipped': pairs(world=flipped),
      'flipped_smoothed': pairs(world=flipped, **smoothed('dpo')),
      'flipped_robust': pairs(world=flipped, **smoothed('robust')),
      'coin': pairs(world={'flips': 0.5}),
    },
    claims=(
      Claim('A1', (level('dpo', GAIN, '+', against=0.0), difference('dpo', 'coin', SCORE, '+'))),
      Claim(
        'A2',
        (
          difference('dpo_without_sft', 'dpo', SCORE, '-'),
          level('dpo_without_sft', GAIN, '0', against=0.0, margin=0.03),
        ),
        budget='none',
        note='two epochs instead of one of imitation and one of preferences',
      ),
      Claim('A3', (difference('dpo', 'more_sft', SCORE, '+'),)),
      Claim(
        'A4',
        (
          level('dpo_asked_its_pairs', 'after:pairs/accuracy', '+', against=0.9),
          Contrast('dpo_3_epochs minus dpo', {'dpo_3_epochs': 1, 'dpo': -1}, SCORE, '+', against=-0.02),
        ),
        budget='none',
        note='one epoch against three; that more than one epoch of imitation hurts is not tested',
      ),
      Claim('A5', (Contrast('dpo minus dpo_worst', {'dpo': 1, 'dpo_worst': -1}, SCORE, '+', against=-0.02),)),
      Claim(
        'A6',
        (
          difference('small_beta', 'dpo_3_epochs', SCORE, '0', margin=0.02),
          level('small_beta', GAIN, '+', against=0.02),
        ),
        budget='none',
        note='one epoch against three',
      ),
      Claim(
        'A7',
        (
          difference('flipped_smoothed', 'flipped', SCORE, '+'),
          difference('flipped_robust', 'flipped', SCORE, '+'),
        ),
        note='30 % of the labels are wrong',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
