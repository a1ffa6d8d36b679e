"""One loop, many methods (G1): what is the same by its formula comes out the same, whichever config it is written in.

World: `world:arithmetic`, 64 sums, a base of 0.1M parameters. Three pairs of arms have to agree:
imitation of the best of four by log-prob as configs/sharpen.py and as configs/past.py has it; GRPO on groups of two
without its division by the standard deviation and RLOO at half its weight, one update per round (A is (r1 - r2) / 2 and
r1 - r2); `robust` without label smoothing and `dpo`. A fourth must not agree: `dpo` and `hinge`. Plain gradient
descent, which, unlike Adam, is not blind to the scale of a loss.

  past ablate configs/ablations/pipeline.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference

LOGP = 'after:closed_book/arithmetic/logp'
WORLD = dict(count=64, seed=0, noise=0.45, copies=1, split='tune')
COMMON = {
  'data.source': 'world:arithmetic',
  'data.replay': '',
  'eval.tasks': {'closed_book': {}},
  'eval.questions': 64,
  'eval.prompt_length': 64,
  'eval.answer_length': 16,
  'eval.chunk': 64,
  'eval.heldout': '',
}


def base() -> Arm:
  """400 updates of 64 texts."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    COMMON
    | {
      'data.world': WORLD | {'copies': 8},
      'view.text_length': 24,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=50),
      'study.losses': dict(text=dict(nll=dict(weight=1.0))),
    },
  )


def method(losses: dict, config: str = 'sharpen', stage: str = 'sharpen', args: str = ',arm=sft', **keys) -> Arm:
  """4 rounds of 64 sums, one update each; `keys`: of the stage, with __ for the dots."""
  keys = {
    'rounds': 4,
    'batch': 64,
    'sample_prompts': 64,
    'buckets': (1.0,),
    'generator__role': 'policy',
    'generator__length': 16,
    'generator__top_p': 1.0,
    'generator__stop': ('\n',),
    'curriculum': dict(name='constant', temperature=1.0, prompts=64, epochs=1),
    'losses': dict(group=losses),
  } | keys
  view = dict(instruction='{prompt}', train_view='same', train_instruction='', prompt_length=32, text_length=32)
  optimizer = dict(name='sgd', lr=0.02, schedule='constant', warmup=0.0, end=0.0, momentum=0.0, clip=0.0)
  return Arm(
    f'configs/{config}.py:size=tiny{args}',
    COMMON
    | {
      'data.world': WORLD,
      'data.text': '',
      'data.prompt': 'prompt',
      'data.target': 'target',
      **{f'view.{key}': value for key, value in view.items()},
      'optimizer': optimizer,
      **{f'{stage}.{key.replace("__", ".")}': value for key, value in keys.items()},
    },
    start='base',
  )


def get_sweep() -> Sweep:
  imitation = dict(nll=dict(weight=1.0, per='token'))
  likelihood = dict(name='likelihood', role='base')
  two, pairs = {'generator__group': 2, 'select': dict(name='everything')}, dict(args=',arm=dpo', generator__group=4)
  preference = lambda name, **keys: {name: dict(weight=1.0, beta=0.5, **keys)}
  return Sweep(
    about='64 sums, 4 rounds of one update, a base of 0.1M parameters; log-prob of the right answer in nats.',
    prepare={'base': base()},
    arms={
      'sharpening': method(imitation, generator__group=4),
      'past_best_of': method(
        imitation, 'past', 'study', ',arm=best_of', generator__group=4, judge=likelihood, reference__role='base'
      ),
      'grpo': method(dict(grpo=dict(weight=1.0, scale='none', per='constant', length=1)), **two),
      'rloo': method(dict(rloo=dict(weight=0.5)), **two),
      'dpo': method(preference('dpo', label_smoothing=0.0), **pairs),
      'robust': method(preference('robust', label_smoothing=0.0), **pairs),
      'hinge': method(preference('hinge'), **pairs),
    },
    claims=(
      Claim(
        'G1',
        (
          difference('sharpening', 'past_best_of', LOGP, '0', margin=1e-3),
          difference('grpo', 'rloo', LOGP, '0', margin=1e-3),
          difference('dpo', 'robust', LOGP, '0', margin=1e-3),
          difference('dpo', 'hinge', LOGP, '+', against=1e-3),
        ),
        note='three identities and a difference; that each method runs by configuration is what the other rows show',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
