"""Sharpening by self-rewards (E1-E5, E9; arXiv 2412.01951): best-of-N, imitation of it, other rewards, where it hurts.

World: `world:arithmetic`, sums such as '(3+5)*2=' in texts that are wrong as often as `noise` says. Bases (0.1M
parameters, bytes, from scratch) read 8 texts of each of 256 sums. Half of these are sharpened on and then asked, 16
samples each at temperature 1. No right answer is ever shown or rewarded: the reward is the frozen base's log-prob,
unless an arm says so. Final sums are others than those of tuning. `imitation_unseen` asks the other half, which was not
sharpened on: a model of this size does not carry over to it (tuning: 0.57 -> 0.53), so no claim reads it.

E9 sharpens two more bases: `weak`, which has read the texts 16 times and not 50, and `wordy`, half of whose texts
have a right answer with a step before it, in one of six wordings, and half a short one that is mostly wrong.

Arms that no claim reads: regression, labelled pairs and XPO; and two controls, imitation and pairs by a judge that
throws dice (shuffled pairs).

  past ablate configs/ablations/sharpening.py --workdir=runs/ablate
"""

import math

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level, trend

RIGHT, LIFT = 'after:accuracy/arithmetic', 'change:accuracy/arithmetic'
BEST, LIKELIER = 'mean:coverage/best_right', 'mean:coverage/right_likelier'
STUDIED, UNSEEN = 128, 128
WORLD = dict(count=STUDIED + UNSEEN, seed=0, noise=0.45, copies=1, split='tune')
WORDY = dict(noise=0.9, workings=0.5)
NS = (2, 10, 25, 50)
WEAK = 16  # epochs


def base(epochs: int = 50, **world) -> Arm:
  """1600 updates of 64 texts, if it has all epochs."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'data.source': 'world:arithmetic',
      'data.world': WORLD | dict(copies=8) | world,
      'view.text_length': 40 if 'workings' in world else 16,
      'study.buckets': (0.5, 1.0),
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=epochs),
      'study.losses': dict(text=dict(nll=dict(weight=1.0))),
      'eval.questions': 64,
      'eval.answer_length': 32,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def sharpen(args: str = '', start: str = 'base', world=None, unseen: bool = False, **keys) -> Arm:
  """An arm of configs/sharpen.py on 128 sums, 8 epochs; `keys`: of the stage, with __ for the dots."""
  keys = {'sample_prompts': 32, 'curriculum__prompts': STUDIED, 'curriculum__epochs': 8, 'generator__length': 32} | keys
  return Arm(
    f'configs/sharpen.py:size=tiny{args}',
    {
      'data.world': WORLD | (world or {}),
      'data.limit': STUDIED,
      'eval.questions': 0,
      'eval.answer_length': 32,
      'eval.chunk': 32,
      'eval.heldout': '',
      **({'eval.sources': {'unseen': 'world:arithmetic'}, 'eval.skip': STUDIED} if unseen else {}),
      **{f'sharpen.{key.replace("__", ".")}': value for key, value in keys.items()},
    },
    start=start,
  )


def best_of(n: int, **keys) -> Arm:
  return sharpen(f',arm=bon,N={n}', curriculum__epochs=1, **keys)


def get_sweep() -> Sweep:
  dice = {'judge': {'name': 'random'}}
  return Sweep(
    about='128 sums, bases of 0.1M parameters pretrained on noisy texts of them and 128 more, N=16 if not said.',
    prepare={'base': base(), 'weak_base': base(epochs=WEAK), 'wordy_base': base(**WORDY)},
    arms={
      'greedy': best_of(1, curriculum__temperature=0.0),
      'best_of_16': best_of(16),
      'best_of_64': best_of(64),
      'imitation': sharpen(),
      'imitation_unseen': sharpen(unseen=True),
      **{f'imitation_of_{n}': sharpen(f',N={n}') for n in NS},
      'normalised': sharpen(',reward=length_normalised'),
      'majority': sharpen(',reward=majority'),
      'weak': sharpen(start='weak_base'),
      'wordy': sharpen(start='wordy_base', world=WORDY),
      'wordy_normalised': sharpen(',reward=length_normalised', start='wordy_base', world=WORDY),
      'regression': sharpen(',arm=regression,N=16'),
      'pairs': sharpen(',arm=dpo,N=16'),
      'xpo': sharpen(',arm=xpo', rounds=8, buffer__size=8 * STUDIED, curriculum__epochs=1),
      'dice_imitation': sharpen(**dice),
      'dice_pairs': sharpen(',arm=dpo,N=16', **dice),
    },
    claims=(
      Claim('E1', (level('best_of_16', LIKELIER, '+', against=0.5),), note='area under the ROC curve, by sum'),
      Claim(
        'E2',
        (difference('best_of_16', 'greedy', BEST, '+'), difference('best_of_64', 'best_of_16', BEST, '0', margin=0.05)),
      ),
      Claim('E3', (level('imitation', LIFT, '+', against=0.0),)),
      Claim(
        'E4', (trend({f'imitation_of_{n}': math.log(n) for n in NS}, RIGHT, '+'),), note='over log N, N of 2 to 50'
      ),
      Claim('E5', (difference('normalised', 'imitation', RIGHT, '+'), difference('majority', 'imitation', RIGHT, '+'))),
      Claim('E9', (level('weak', LIFT, '-', against=0.0), level('wordy', LIFT, '-', against=0.0))),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
