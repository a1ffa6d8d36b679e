"""Self-edits judged by training on them (F1-F10; arXiv 2506.10943), where all that is told and asked is invented.

World: `world:passages`, three sentences about three people, and six questions, from the name to the thing and back, in
words of no passage. The model, 0.1M parameters that read words, is taught by `world:writers` to take notes in five
forms, some of them wrong, and to answer in context and by heart, about other people. It writes five notes on each of 50
passages a round, for two rounds; inner runs fit adapters to a note's lines and the passage for ten epochs; the best of
five is imitated. 50 other passages are asked, with three inner runs per arm; final runs have other words, other people
and other questions. F4: the teacher's notes are faithful, of the four good forms. F7: `world:puzzles`, where an edit
chooses augmentations, learning rate and epochs, of which a few teach the rule; the oracle is one choice for all, found
on other puzzles. F9: the proxy is a rule that knows what is true, the share of the facts that a note tells by the share
of its lines that is true.

Controls: a judge that throws dice; one inner run per note, or nine; scores by log-prob.

  past ablate configs/ablations/seal.py --workdir=runs/ablate
"""

from past_jax.ablate.sweep import Arm, Claim, Sweep, difference, level

OWN = 'self_edits/own/accuracy'
SINGLE = dict(arms=('base', 'passage', 'own', 'given'), seeds=3, length=48)
ALL = dict(arms=('base', 'passage', 'own'), edits=5, documents='lines', lr=1e-3, epochs=10, batch=16, rank=0, length=48)
CHAIN = dict(arms=('plain', 'replay', 'kl'), passages=8, sequences=6, length=48)
FORMATS = ('paraphrase', 'reversed', 'questions')
ORACLE = 'basic=1 size=0 chain=0 repeat=0 loss=all lr=0.001 epochs=8'


def notes(args: str = '', tasks=None, **keys) -> Arm:
  named = {key.replace('__', '.'): value for key, value in keys.items()}
  tasks = {'self_edits': SINGLE} if tasks is None else tasks
  world = {'data.world': dict(count=150, seed=0, noted=True, split='tune')}
  return Arm(f'configs/seal.py:size=tiny{args}', {'eval.tasks': tasks} | world | named, start='writer')


def get_sweep() -> Sweep:
  return Sweep(
    about='Writers of notes of 0.1M parameters on 100 passages of three sentences, asked on 50 others; puzzles of 3x3.',
    prepare={
      'writer': Arm('configs/seal.py:size=tiny,arm=base'),
      'chooser': Arm('configs/seal.py:size=tiny,arm=base,task=arc'),
    },
    arms={
      'trained': notes(tasks={'self_edits': SINGLE, 'continued': ALL, 'sequential': CHAIN}),
      'dice': notes(',judge=random'),
      'rule': notes(',judge=rule'),
      'grpo': notes(',rl=grpo'),
      **{name: notes(f',format={name}') for name in FORMATS},
      'one_run': notes(',seeds=1'),
      'nine_runs': notes(',seeds=9'),
      'by_logp': notes(',reward=logp'),
      'choices': Arm(
        'configs/seal.py:size=tiny,task=arc,keep=improving,seeds=1',
        {
          'data.world': dict(count=150, seed=0, choice=ORACLE, split='tune'),
          'study.curriculum.epochs': 8,
          'eval.tasks': {'self_edits': dict(arms=('base', 'own', 'given'), seeds=1, length=80)},
        },
        start='chooser',
      ),
      'in_context': Arm(
        'configs/seal.py:size=tiny,task=arc,seeds=1',
        {
          'data.world': dict(count=150, seed=0, shown=True, split='tune'),
          'inner.prompt_length': 112,
          'inner.length': 200,
          'study.rounds': 1,
          'study.curriculum.prompts': 10,
          'study.sample_prompts': 10,
          'eval.tasks': {'self_edits': dict(arms=('base',), seeds=1, length=80)},
        },
        start='chooser',
      ),
    },
    claims=(
      Claim('F1', (level('trained', 'before:self_edits/passage/over_base', '0', against=0.0, margin=0.03),)),
      Claim('F2', (level('trained', 'before:self_edits/own/over_passage', '+', against=0.0),)),
      Claim(
        'F3', (level('trained', f'change:{OWN}', '+', against=0.0), difference('trained', 'dice', f'after:{OWN}', '+'))
      ),
      Claim(
        'F4',
        (level('trained', 'after:self_edits/given/over_own', '0', against=0.0, margin=0.03),),
        note='the teacher writes down all facts truly, in one of four forms',
      ),
      Claim(
        'F5', (level('trained', 'change:continued/own/accuracy', '+', against=0.0),), note='50 passages in one run'
      ),
      Claim('F6', tuple(level(name, f'change:{OWN}', '+', against=0.0) for name in FORMATS)),
      Claim(
        'F7',
        (
          level('in_context', 'before:self_edits/base/accuracy', '0', against=0.0, margin=0.05),
          level('choices', 'before:self_edits/own/over_base', '+', against=0.0),
          level('choices', f'change:{OWN}', '+', against=0.0),
          level('choices', 'after:self_edits/given/over_own', '+', against=0.0),
        ),
        note='demonstrations in view; untrained choices over no training; trained ones over them; the best over those',
      ),
      Claim(
        'F8',
        (
          level('trained', 'before:sequential/plain/retained', '-', against=0.0),
          level('trained', 'before:sequential/plain/first', '-', against=0.0),
        ),
        note='backward transfer over eight edits, of all and of the first passage; before any edit 0 is known of them',
      ),
      Claim(
        'F9',
        (difference('trained', 'rule', f'after:{OWN}', '0', margin=0.03),),
        note='a rule that knows what is true; cost in configs/ablations/notes.md',
      ),
      Claim('F10', (difference('trained', 'grpo', f'after:{OWN}', '+'),), note='at as many updates'),
    ),
    seeded=('seed', 'data.world.seed'),
    final={'data.world.split': 'final'},
    budget='steps',
  )
