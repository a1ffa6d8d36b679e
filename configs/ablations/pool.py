"""Whose completions are chosen while a model learns from a pool of given answers and its own (B5; arXiv 2601.21343).

World: `world:preferences`, instructions that four imperfect responders answer; the pool is one of their answers that is
not the best, and four samples of the policy. The judge marks answers by rule, as well as a strong model would; of
equals what is given is chosen, so a sample has to be better. NLL of the chosen and DPO against a random one of the
rest, instructions in view.
`continual` begins at a base (0.1M parameters, bytes) that has read what any of the responders answer, `scratch` at
nothing. Instructions are not asked but used, so there are no final questions: final runs have other letters and seeds.

Control: a judge that throws dice, under which the samples are chosen as often as they are many.
The first final runs (seeds 0-4) let samples win ties, most of the rise from scratch (LOG.md): there are new seeds now.

  past ablate configs/ablations/pool.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, level

WORLD = dict(count=1024, seed=0, flips=1.0, split='tune')  # pairs turned round, of which the first is given
SHARE = 'rise:study/chosen_from_policy'
MARKS = 'past_jax.data.worlds.instructions:marks'


def base() -> Arm:
  """2048 updates of 64 documents."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'data.source': 'world:instructions',
      'data.world': WORLD | {'count': 1 << 14, 'flips': 0.0},
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


def pool(start: str, lr: float, **keys) -> Arm:
  """16 rounds of 128 instructions, 2 epochs of 16; `keys`: of the stage."""
  preference = dict(weight=0.1, beta=0.1, label_smoothing=0.0)
  stage = dict(
    rounds=16,
    batch=16,
    sample_prompts=64,
    judge=dict(name='text', rule='function', pattern='', function=MARKS),
    curriculum=dict(name='constant', temperature=1.0, prompts=128, epochs=2, anchor_source='given'),
    losses=dict(group=dict(nll=dict(weight=1.0), dpo=preference)),
  )
  return Arm(
    'configs/past.py:size=tiny',
    {
      'data.source': 'world:preferences',
      'data.world': WORLD,
      'data.text': '',
      'data.prompt': 'prompt',
      'data.chosen': 'chosen',
      'data.rejected': 'rejected',
      'data.replay': '',
      'view.instruction': '{prompt}',
      'view.train_view': 'same',
      'view.prompt_length': 40,
      'view.text_length': 24,
      'view.anchors': 1,
      'optimizer.lr': lr,
      'study.generator.length': 24,
      'study.generator.anchors': True,
      'eval.tasks': {'accuracy': {'function': MARKS}},
      'eval.questions': 128,
      'eval.answer_length': 24,
      'eval.chunk': 64,
      'eval.heldout': '',
      **{f'study.{key}': value for key, value in (stage | keys).items()},
    },
    start=start,
  )


def get_sweep() -> Sweep:
  return Sweep(
    about='16 rounds of 128 instructions with one given answer and four samples each, 0.1M parameters.',
    prepare={'base': base()},
    arms={
      'continual': pool('base', lr=1e-3),
      'scratch': pool('', lr=3e-3),
      'dice': pool('base', lr=1e-3, judge=dict(name='random')),
    },
    claims=(
      Claim(
        'B5',
        (level('continual', SHARE, '+', against=0.0), level('scratch', SHARE, '+', against=0.0)),
        note='share of samples among the chosen, last eighth of the run less its first update',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
    first=100,
  )
