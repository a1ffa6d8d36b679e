"""Studying by preferences over one's own notes (B1-B4, B6, B7): raw text, unjudged notes, best of K, DPO, both.

World: `world:reversal`, 16 facts 'NAME is DESCRIPTION' in four wordings, always the name first; the model is asked
for both, in wordings of its own. The base (0.1M parameters, a vocabulary of words) has been pretrained on
'Text: ... Note: ...' about other people (`world:notes`): half of the notes are in the other order, a quarter are
paraphrases and a quarter wrong, so that there is something to judge; B7 also has a base that has never read a note in
the other order. In a round it takes K notes of each text; the judge is the gain in the text's likelihood from reading
the note, by the frozen base, and copies abstain; notes are learnt without the text in view. Final questions, names,
trades and towns are others than those of tuning.

Controls: a judge that throws dice, with and without DPO (shuffled pairs).

  past ablate configs/ablations/past.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, trend

REVERSED = ('after:closed_book/reversed', 'after:forced_choice/reversed')  # greedy answers, and the choice of four
WORLD = dict(count=16, seed=0, templates=4, reversed_texts=0, groups=('p2d',), split='tune')
LIKELIHOOD, PREFERENCE = dict(weight=1.0), dict(weight=0.1, beta=0.1, label_smoothing=0.0)
TEXT, REPLAY = dict(nll=LIKELIHOOD), dict(nll=dict(weight=0.5))
MIXED = ('reversed', 'reversed', 'paraphrase', 'wrong')  # the notes that the base has read
STRAIGHT = ('paraphrase', 'paraphrase', 'paraphrase', 'wrong')
ROUNDS, EPOCHS = 4, 24


def base(kinds: tuple[str, ...]) -> Arm:
  """2500 updates of 64 documents."""
  return Arm(
    'configs/past.py:size=tiny,arm=raw',
    {
      'model.spec': 'scratch:words',
      'data.source': 'world:notes',
      'data.world': dict(count=32_000, seed=0, kinds=kinds, split='tune'),
      'view.text_length': 44,
      'optimizer.lr': 6e-3,
      'study.rounds': 1,
      'study.batch': 64,
      'study.sample_prompts': 64,
      'study.curriculum': dict(name='constant', prompts=0, epochs=5),
      'study.losses': dict(text=TEXT),
      'eval.questions': 64,
      'eval.prompt_length': 28,
      'eval.answer_length': 20,
      'eval.chunk': 64,
      'eval.heldout': '',
    },
  )


def study(args: str = '', start: str = 'base', epochs: int = EPOCHS, **keys) -> Arm:
  """An arm of configs/past.py on the facts; `keys`: of the stage, with __ for the dots."""
  if 'judge=random' not in args:  # only copies share all their n-grams with the text
    keys['judge'] = dict(name='likelihood_gain', target='text', role='base', max_overlap=0.9, target_length=20)
  return Arm(
    f'configs/past.py:size=tiny{args}',
    {
      'data.source': 'world:reversal',
      'data.world': WORLD,
      'view.prompt_length': 28,
      'view.text_length': 20,
      'optimizer.lr': 1e-3,
      'study.rounds': ROUNDS,
      'study.batch': 16,
      'study.sample_prompts': 64,
      'study.generator.length': 20,
      'study.curriculum': dict(name='constant', temperature=1.0, prompts=64, epochs=epochs),
      'study.replay_batch': 2,
      'eval.tasks': {'closed_book': {}, 'forced_choice': {}},
      'eval.prompt_length': 16,
      'eval.answer_length': 8,
      'eval.chunk': 64,
      'eval.heldout': '',
      **{f'study.{key.replace("__", ".")}': value for key, value in keys.items()},
    },
    start=start,
  )


def terms(**group) -> dict:
  return dict(text=TEXT, group=group, replay=REPLAY)


def get_sweep() -> Sweep:
  candidates = {f'k{k}': k for k in (2, 4, 8, 16)}
  return Sweep(
    about='16 facts in 4 wordings, 4 rounds of notes, 0.1M parameters pretrained for 2500 updates to take notes.',
    prepare={'base': base(MIXED), 'straight_base': base(STRAIGHT)},
    arms={
      'raw': study(losses=dict(text=TEXT, replay=REPLAY)),
      'straight_raw': study(start='straight_base', losses=dict(text=TEXT, replay=REPLAY)),
      'raw_longer': study(losses=dict(text=TEXT, replay=REPLAY), epochs=round(2.35 * EPOCHS)),
      'unjudged': study(',judge=random,select=top_k', losses=terms(nll=LIKELIHOOD)),
      'best_of': study(',select=top_k', losses=terms(nll=LIKELIHOOD)),
      'dpo': study(losses=terms(dpo=PREFERENCE)),
      'past': study(losses=terms(nll=LIKELIHOOD, dpo=PREFERENCE)),
      'past_straight': study(start='straight_base', losses=terms(nll=LIKELIHOOD, dpo=PREFERENCE)),
      'past_random_judge': study(',judge=random', losses=terms(nll=LIKELIHOOD, dpo=PREFERENCE)),
      **{
        arm: study(',select=top_k', losses=terms(nll=LIKELIHOOD), generator__group=k)
        for arm, k in candidates.items()
        if k != 4
      },
    },
    claims=(
      Claim(
        'B1',
        (
          difference('past', 'raw', REVERSED, '+'),
          difference('past', 'raw_longer', REVERSED, '+', budget='tokens'),
          difference('past', 'past_random_judge', REVERSED, '+'),
        ),
        note='as many steps, and as many tokens',
      ),
      Claim('B2', (difference('best_of', 'unjudged', REVERSED, '+'),)),
      Claim(
        'B3',
        (trend({'k2': 1.0, 'best_of': 2.0, 'k8': 3.0, 'k16': 4.0}, REVERSED, '+'),),
        note='K of 2, 4, 8, 16 over log2 K',
      ),
      Claim('B4', (difference('past', 'best_of', REVERSED, '+'),)),
      Claim('B6', (difference('past', 'dpo', REVERSED, '+'),)),
      Claim(
        'B7',
        (difference('past', 'raw', REVERSED, '+'), difference('past_straight', 'straight_raw', REVERSED, '+')),
        note='the first base has seen notes in the other order, about other people; the second none',
      ),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
    tolerance=0.15,
  )
