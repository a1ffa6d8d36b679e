"""Sharpening by self-rewards (E1-E5, E9; arXiv 2412.01951): best-of-N, imitation of it, other rewards, where it hurts.

World: `world:arithmetic`, sums such as '(3+5)*2='. Bases (0.1M parameters, bytes, from scratch) have read 32 texts of
each of 256 sums. `base` has read hasty guesses, nearly all wrong and scattered, in 55 of 100 texts, and in 45 the first
step and the right answer, in one of six wordings: so the right answer is likely, and each of its spellings a little
likelier than each guess. Half of the sums are sharpened on and then asked: greedily, or 16 samples each at temperature
1. No right answer is ever shown or rewarded: the reward is the frozen base's log-prob, unless an arm says so. Final
sums are others than those of tuning. `unseen` and `unseen_greedy` ask the other half.

Accuracy is set against greedy decoding of the base, as published. E9 has two more bases: `weak`, to which most sums
were told wrongly, always by the same mistakes, and `wordy`, half of whose texts have the step and the right answer, and
half a short answer, mostly the same wrong one.

Controls: imitation and pairs by a judge that throws dice (shuffled pairs). Arms that no claim reads: labelled pairs,
regression and XPO.

  past ablate configs/ablations/sharpening.py --workdir=runs/ablate
"""

import math

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level, trend

RIGHT, BEST, LIKELIER = 'after:accuracy/arithmetic', 'mean:coverage/best_right', 'mean:coverage/right_likelier'
STUDIED, UNSEEN = 128, 128
WORLD = dict(count=STUDIED + UNSEEN, seed=0, copies=1, split='tune')
HASTY = dict(noise=0.9, workings=0.45, spread=6)
WEAK = dict(noise=0.8)
WORDY = dict(noise=0.9, workings=0.5)
NS = (2, 10, 25, 50)
SAME = 'asked on the sums that were sharpened on, without their answers; unseen ones: arms of that name'


def base(**world) -> Arm:
  """1536 updates of 64 texts."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'data.source': 'world:arithmetic',
      'data.world': WORLD | world | dict(copies=32),
      'view.text_length': 40 if 'workings' in world else 16,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=12),
      'study.losses': dict(text=dict(nll=dict(weight=1.0))),
      'eval.questions': 64,
      'eval.answer_length': 32,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def sharpen(
  args: str = '', start: str = 'base', world=HASTY, unseen: bool = False, greedy: bool = False, **keys
) -> Arm:
  """An arm of configs/sharpen.py on 128 sums, 8 epochs; `keys`: of the stage, with __ for the dots."""
  keys = {'sample_prompts': 32, 'curriculum__prompts': STUDIED, 'curriculum__epochs': 8, 'generator__length': 32} | keys
  decoding = dict(samples=1, temperature=0.0) if greedy else dict(samples=16, temperature=1.0)
  return Arm(
    f'configs/sharpen.py:size=tiny{args}',
    {
      'data.world': WORLD | world,
      'data.limit': STUDIED,
      'eval.sources': {'arithmetic': 'world:arithmetic'},
      'eval.skip': STUDIED * unseen,
      'eval.limit': STUDIED,
      'eval.tasks': {'accuracy': dict(rule='last_number', **decoding)},
      'eval.questions': 0,
      'eval.answer_length': 32,
      'eval.chunk': 32,
      'eval.heldout': '',
      **{f'sharpen.{key.replace("__", ".")}': value for key, value in keys.items()},
    },
    start=start,
  )


def best_of(n: int, **keys) -> Arm:
  """The base as it is: the step's length is 0."""
  return sharpen(f',arm=bon,N={n}', **keys)


def greedy(start: str, world, **keys) -> Arm:
  return best_of(1, start=start, world=world, greedy=True, curriculum__temperature=0.0, **keys)


def get_sweep() -> Sweep:
  dice = {'judge': {'name': 'random'}}
  weak, wordy = dict(start='weak_base', world=WEAK), dict(start='wordy_base', world=WORDY)
  return Sweep(
    about='128 sums, bases of 0.1M parameters pretrained on texts about them and 128 more, N=16 if not said.',
    prepare={'base': base(**HASTY), 'weak_base': base(**WEAK), 'wordy_base': base(**WORDY)},
    arms={
      'greedy': greedy('base', HASTY),
      'best_of_16': best_of(16),
      'best_of_64': best_of(64),
      'imitation': sharpen(),
      **{f'imitation_of_{n}': sharpen(f',N={n}') for n in NS},
      'normalised': sharpen(',reward=length_normalised'),
      'majority': sharpen(',reward=majority'),
      'unseen': sharpen(unseen=True),
      'unseen_greedy': greedy('base', HASTY, unseen=True),
      'weak': sharpen(**weak),
      'weak_greedy': greedy(**weak),
      'wordy': sharpen(**wordy),
      'wordy_greedy': greedy(**wordy),
      'wordy_normalised': sharpen(',reward=length_normalised', **wordy),
      'regression': sharpen(',arm=regression,N=16'),
      'pairs': sharpen(',arm=dpo,N=16'),
      'xpo': sharpen(',arm=xpo', rounds=8, buffer__size=8 * STUDIED, curriculum__epochs=1),
      'dice_imitation': sharpen(**dice),
      'dice_pairs': sharpen(',arm=dpo,N=16', **dice),
    },
    claims=(
      Claim(
        'E1',
        (level('best_of_16', LIKELIER, '+', against=0.6),),
        note='area under the ROC curve, by sum, of a base that was taught so; the claim needs 0.5',
      ),
      Claim(
        'E2',
        (difference('best_of_16', 'greedy', BEST, '+'), difference('best_of_64', 'best_of_16', BEST, '0', margin=0.05)),
      ),
      Claim(
        'E3',
        (difference('imitation', 'greedy', RIGHT, '+'), difference('imitation', 'dice_imitation', RIGHT, '+')),
        note=SAME,
      ),
      Claim(
        'E4',
        (trend({f'imitation_of_{n}': math.log(n) for n in NS}, RIGHT, '+'),),
        note=f'over log N, N of 2 to 50; {SAME}',
      ),
      Claim(
        'E5',
        (difference('normalised', 'imitation', RIGHT, '+'), difference('majority', 'imitation', RIGHT, '+')),
        note=SAME,
      ),
      Claim(
        'E9',
        (difference('weak', 'weak_greedy', RIGHT, '-'), difference('wordy', 'wordy_greedy', RIGHT, '-')),
        note=SAME,
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
    first=100,
  )
