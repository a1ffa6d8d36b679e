"""The same claims with a real model, SmolLM2-135M-Instruct: C1 and C3 on the reversal-curse files, B1, E1-E3.

C1, C3: the first ten people of github.com/lukasberglund/reversal_curse (june_version_7921032488; expected in
data/reversal), 30 texts each, the name first; five of them are asked about, in the ten wordings of the test files.
`studied` adds a note to each text, by the model itself before it has learnt anything, shown three notes in the other
order about other people. Whoever only knows the ten names is right in one of ten.
B1: `world:people`, 12 facts, as configs/past.py has it, against the texts alone for as many tokens.
E1-E3: sums and differences of two numbers of one digit or of two (`chain_sum` of reasoning-gym: past-jax[tasks]) behind
four solved ones, of which greedy decoding has about half right; half of 128 are sharpened on, adapters of rank 16.

Three seeds, which change the order of the texts and all samples, and in B1 and E1-E3 the world; the ten people are the
same. Two to three hours on two cores.

  past ablate configs/ablations/smol.py --workdir=runs/ablate --seeds=3
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level

FORWARD, REVERSED = 'after:closed_book/forward', 'after:closed_book/reversed'
CURSE = 'data/reversal/p2d_{}.jsonl'
PEOPLE, ASKED = 10, 5
ASK = 'State the final answer to the following arithmetic problem: '
SUMS = ''.join(f'{ASK}{sum}\n' for sum in ('5 + 8 = 13', '23 - 6 = 17', '41 + 46 = 87', '9 - 3 = 6')) + '{prompt}'
SUM = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2)


def curse(arm: str) -> Arm:
  """60 updates of 10 texts."""
  return Arm(
    f'configs/study.py:arm={arm},notes=1,replay=0',
    {
      'data.source': CURSE.format('prompts_train'),
      'data.text': '{prompt}{completion}',
      'data.prompt': 'prompt',
      'data.target': 'completion',
      'data.replay': '',
      'data.limit': 30 * PEOPLE,
      'view.prompt_length': 240,
      'view.text_length': 44,
      'optimizer.lr': 2e-4,
      'study.rounds': 1,
      'study.batch': 10,
      'study.sample_prompts': 10,
      'study.generator.length': 40,
      'study.curriculum.prompts': 30 * PEOPLE,
      'study.curriculum.epochs': 2,
      'eval.sources': {
        'forward': CURSE.format('prompts_test'),
        'reversed': CURSE.format('reverse_prompts_test'),
      },
      'eval.limit': 10 * ASKED,
      'eval.heldout': '',
      'eval.prompt_length': 40,
      'eval.answer_length': 32,
    },
  )


def facts(arm: str, epochs: int) -> Arm:
  return Arm(f'configs/past.py:arm={arm}', {'study.curriculum.epochs': epochs, 'eval.heldout': ''})


def sharpen(args: str, samples: int = 16, temperature: float = 1.0, **keys) -> Arm:
  keys = {'batch': 8, 'sample_prompts': 8, 'generator__length': 8, 'generator__stop': ('\n',)} | keys
  return Arm(
    f'configs/sharpen.py:{args}',
    {
      'data.source': 'world:reasoning',
      'data.world': dict(task='chain_sum', count=128, seed=0, options=SUM, split='tune'),
      'data.limit': 64,
      'view.instruction': SUMS,
      'view.prompt_length': 104,
      'eval.sources': {'heldout': 'world:reasoning'},
      'eval.skip': 64,
      'eval.template': SUMS.replace('{prompt}', '{question}'),
      'eval.prompt_length': 104,
      'eval.answer_length': 8,
      'eval.tasks': {'accuracy': dict(rule='line', samples=samples, temperature=temperature)},
      'eval.heldout': '',
      'sharpen.answers': 'line',
      'sharpen.curriculum.prompts': 64,
      **{f'sharpen.{key.replace("__", ".")}': value for key, value in keys.items()},
    },
  )


def get_sweep() -> Sweep:
  best = 'mean:coverage/best_right'
  return Sweep(
    about='SmolLM2-135M-Instruct, float32: 300 texts about 10 people; 12 facts; 64 sums studied and 64 asked.',
    arms={
      'curse_raw': curse('raw'),
      'curse_studied': curse('reverse'),
      'curse_paraphrased': curse('paraphrase'),
      'facts_raw': facts('raw', epochs=9),  # as many tokens as notes and texts
      'facts_random_judge': facts('past,judge=random', epochs=4),
      'facts_past': facts('past', epochs=4),
      'greedy': sharpen('arm=bon,N=1', samples=1, temperature=0.0, curriculum__temperature=0.0),
      'best_of_16': sharpen('arm=bon,N=16'),
      'best_of_64': sharpen('arm=bon,N=64'),
      'imitation': sharpen('arm=sft,N=16'),
      'dice_imitation': sharpen('arm=sft,N=16', judge={'name': 'random'}),
    },
    claims=(
      Claim(
        'C1-135M',
        (level('curse_raw', FORWARD, '+', against=0.25), level('curse_raw', REVERSED, '-', against=0.25)),
      ),
      Claim(
        'C3-135M',
        (
          difference('curse_studied', 'curse_raw', REVERSED, '+'),
          difference('curse_studied', 'curse_paraphrased', REVERSED, '+'),
        ),
      ),
      Claim(
        'B1-135M',
        (
          difference('facts_past', 'facts_raw', REVERSED, '+', budget='tokens'),
          difference('facts_past', 'facts_random_judge', REVERSED, '+'),
        ),
      ),
      Claim('E1-135M', (level('best_of_16', 'mean:coverage/right_likelier', '+', against=0.5),)),
      Claim(
        'E2-135M',
        (difference('best_of_16', 'greedy', best, '+'), difference('best_of_64', 'best_of_16', best, '0', margin=0.05)),
      ),
      Claim(
        'E3-135M',
        (
          difference('imitation', 'greedy', 'after:accuracy/heldout', '+', budget='none'),
          difference('imitation', 'dice_imitation', 'after:accuracy/heldout', '+'),
        ),
        note='against greedy decoding, as published, which learns nothing; on sums that were not sharpened on',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
    tolerance=0.15,
    minutes=60.0,
    fewest=3,
  )
