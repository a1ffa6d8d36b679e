"""Learning to improve (D1-D5; arXiv 2310.00898), where quality is known exactly to us and to no model.

World: `world:edits`, keys such as 'badc>' and responses of eight letters; quality is the share of letters that a hidden
rule of key and place likes, less faults of form. Of 3072 keys there is a pair, its label drawn by Bradley and Terry,
the preferred of quality 0.48 and the other of 0.25; 256 other keys are asked. Models have 0.1M parameters and read
bytes. `policy` imitates the preferred and is reinforced by a Bradley-Terry reward: its responses, better than those
of the data, are the drafts. Every arm learns from the pairs to imitate, and a judge to tell, and is reinforced by that
judge for 120 rounds of 64 keys, 8 responses each. Delta is the share of drafts that one improvement makes better, less
the share that it makes worse, by quality itself; final runs have another rule, other letters and other keys.

The paper asks GPT-4 and people; D2's baseline, Self-Refine, asks a model to refine. One of this size follows no
request: its refined response is another sample of its own. Second judge: the mean log-prob under the policy that wrote
the drafts, which nobody was trained on either.

Controls: a judge that throws dice, and imitation alone. Arms that no claim reads: other rewards.

  past ablate configs/ablations/pit.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level

AT = 'after:improvement/quality'
DELTA = f'{AT}/t1/i1/delta'
MARK = 'past_jax.data.worlds.edits:quality'
EVALUATION = dict(
  judges=dict(quality=MARK, likelihood='likelihood'),
  iterations=5,
  temperatures=(0.2, 0.4, 0.6, 0.8, 1.0),
  baseline='self_refine',
  refine='{prompt}',
)
ROUNDS = 60  # of each of two stages


def improver(args: str = '', **keys) -> Arm:
  """An arm of configs/pit.py; `keys`: of its stages, with __ for the dots."""
  named = {key.replace('__', '.'): value for key, value in keys.items()}
  return Arm(f'configs/pit.py:size=tiny{args}', {'eval.tasks.improvement': EVALUATION} | named, start='policy')


def get_sweep() -> Sweep:
  dice = dict(name='random')
  return Sweep(
    about='Improvers of 0.1M parameters on responses of eight letters of hidden quality; 120 rounds of reinforcement.',
    prepare={'policy': Arm('configs/pit.py:size=tiny,arm=policy')},
    arms={
      'both': improver(),
      'easy': improver(',depth=1', easy__rounds=2 * ROUNDS),
      'hard': improver(',easy=false', hard__rounds=2 * ROUNDS),
      'one_term': improver(',gap=one'),
      'difference': improver(',gap=difference'),
      'dice': improver(easy__judge=dice, hard__judge=dice),
      'imitation': improver(',depth=0'),
    },
    claims=(
      Claim('D1', (level('both', DELTA, '+', against=0.0), difference('both', 'dice', DELTA, '+'))),
      Claim('D2', (level('both', f'{AT}/t1/i1/over_baseline', '+', against=0.0),)),
      Claim('D3', (difference('both', 'easy', DELTA, '+'), difference('both', 'hard', DELTA, '+'))),
      Claim(
        'D4',
        (
          level('both', f'{AT}/best_temperature', '0', against=0.5, margin=0.15),
          level('both', f'{AT}/baseline_hotter', '+', against=0.0),
        ),
        note='of 0.2, 0.4, 0.6, 0.8 and 1.0 for improver and baseline',
      ),
      Claim(
        'D5',
        (
          level('both', f'{AT}/t1/rises', '-', against=1.0),
          level('both', tuple(f'{AT}/t1/i{i}/over_baseline' for i in range(1, 6)), '+', against=0.0),
        ),
        note='share of five iterations that raise the mean quality; delta over the baseline, mean of the five',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
