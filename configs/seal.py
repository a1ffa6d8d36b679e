"""SEAL: a model writes what it is to be trained on, and is judged by what it then knows (arXiv 2506.10943).

  for each round, on other passages:
    sample 5 self-edits of each passage             view: an instruction + the passage
    judge each by inner runs: a copy of the model, or adapters, fit its lines and the passage, then the passage's
      questions are asked, nothing in view
    keep the best of each passage
    epochs x minibatches of NLL(edit)               view: the instruction + the passage (ReST-EM)

  past study --config=configs/seal.py --workdir=runs/seal      train.jsonl, validation.jsonl: title, context, questions
  past study --config=configs/seal.py:size=tiny,arm=base --workdir=runs/writer         a model that takes notes, then
  past export --workdir=runs/writer --out=runs/writer/model
  past study --config=configs/seal.py:size=tiny --workdir=runs/seal --config.model.spec=runs/writer/model

Arguments

  task=knowledge | arc     passages and questions | tasks on grids, where an edit chooses augmentations, learning rate
                    and epochs of test-time training (docs/tasks.md); :arm=base,task=arc makes a tiny base for it
  format=implications | long | very_long | rewrite | self_qa     what the instruction asks for
                    (tiny: any | copy | paraphrase | reversed | questions)
  keep=best | improving    the best edit of a passage | all after which it is answered better than before
  rl=rest_em | grpo | rloo | dpo     NLL of what is kept | policy gradients of the scores, with beta | DPO of the best
                    against the worst
  judge=inner_update | rubric | likelihood_gain | random     trains | a model's marks, without training | how much
                    likelier the answers are with the edit in view | control (tiny, also rule: knows what is true)
  reward=accuracy | gain | logp     of inner_update: see past_jax/judges/inner_update.py
  seeds=3           inner runs per edit: judge/noise in metrics.jsonl is the share of chance in differences of scores

Inner runs have a section of their own, config.inner: `rank` (0: a copy of all parameters), `lr`, `epochs`, and how an
edit becomes rows (`documents`). They begin at the policy as it is, its adapters merged; nothing of them is kept. The
evaluation has the arms base, passage alone and own edits, on passages of --config.eval.sources. More of them
(docs/tasks.md): `given` edits, recorded ones for example; `continued`, all passages in one run; `sequential`, one edit
after another, each merged.

SmolLM2-135M on SQuAD, whole notes (--config.inner.documents=blocks), without rounds: 0.04 right untrained, 0.26 from
the passage, 0.16 with notes of its own, 0.23 with GPT-4.1's; configs/ablations/notes.md has the command.

size=tiny: the base takes about four minutes on two CPU cores, the run one to two. Five seeds (RESULTS.md, F1-F10; each
has a base, words and people of its own): 0 right without training, 0.12 from the passage, 0.18 with notes of its own,
0.21 after two rounds [0.13, 0.30], 0.29 with the teacher's; of puzzles 0, 0.04 with untrained choices, 0.51 with
keep=improving and eight epochs, 0.84 with the best.
"""

from configs import common

PROMPTS = {  # "Let's read the following passage and ...", as published, appendix B
  'implications': 'produce a list of implications derived directly or indirectly from the content.',
  'long': 'produce a long list of implications derived directly or indirectly from the content.',
  'very_long': 'produce a very long list of implications derived directly or indirectly from the content.',
  'rewrite': 'rewrite it in a few different ways, each one separated by a newline.',
  'self_qa': 'rewrite it in a question-answer format.',
}
HEADS = {'rewrite': 'Rewritten passages:', 'self_qa': 'Questions and answers:'}  # others: Implications:
NOTES = {'any': '', 'copy': ' said', 'paraphrase': ' new', 'reversed': ' turned', 'questions': ' asked'}


def get_config(arg=''):
  a = common.parse_arg(
    arg,
    size='smol',
    task='knowledge',
    arm='seal',
    format='',
    keep='best',
    rl='rest_em',
    judge='inner_update',
    reward='accuracy',
    seeds=3,
    beta=0.1,
  )
  c = common.base(a.size)
  tiny, arc = a.size == 'tiny', common.choose({'knowledge': False, 'arc': True}, 'task', a.task)
  c.view.update(train_view='same', train_instruction='')
  if tiny:
    c.model.spec = 'scratch:tiny' if arc else 'scratch:words'
  if common.choose({'seal': False, 'base': True}, 'arm', a.arm):
    return base(c, tiny, arc)
  (edits_of_tasks if arc else edits_of_passages)(c, tiny, a.format)
  if not tiny:
    c.model.lora.update(rank=32, alpha=64.0)
  c.optimizer.update(lr=1e-3 if tiny else 3e-4, schedule='linear', warmup=0.05, end=0.0)

  group = 5
  inner = dict(name='inner_update', role='policy', seeds=a.seeds, reward='gain' if a.keep == 'improving' else a.reward)
  if a.keep == 'improving' and (a.rl != 'rest_em' or a.judge != 'inner_update' or a.reward == 'logp'):
    raise ValueError('config argument keep=improving is about rl=rest_em and the accuracy of judge=inner_update.')
  gain = dict(name='likelihood_gain', target='answers', role='base', max_overlap=1.0, target_length=48 if tiny else 96)
  rule = dict(name='text', rule='function', pattern='', function='past_jax.data.worlds.writers:faithful')
  rubric = dict(name='rubric', role='base', prompt_length=96 if tiny else 640)
  judges = {'inner_update': inner, 'rubric': rubric, 'likelihood_gain': gain, 'random': dict(name='random')}
  judges |= {'rule': rule} if tiny and not arc else {}
  keep = {'best': dict(name='top_k', k=1), 'improving': dict(name='top_k', k=group, above=0.0)}
  keep = common.choose(keep, 'keep', a.keep)
  all_, pairs = dict(name='everything'), dict(name='best_vs', other='worst', nll='none')
  updates = {
    'rest_em': (keep, dict(nll=dict(weight=1.0))),
    'grpo': (all_, dict(grpo=dict(weight=1.0, beta=a.beta))),
    'rloo': (all_, dict(rloo=dict(weight=1.0, beta=a.beta))),
    'dpo': (pairs, dict(dpo=dict(weight=1.0, beta=a.beta))),
  }
  select, losses = common.choose(updates, 'rl', a.rl)
  sampler = dict(name='sampler', role='policy', group=group, top_k=0, top_p=1.0 if tiny else 0.95, min_p=0.0, stop=())
  c.study = dict(
    trains='policy',
    rounds=2,
    batch=10 if tiny else 5,  # prompts per update
    micro=0 if tiny else 1,
    sample_prompts=50 if tiny else 5,
    answers='',
    buckets=(1.0,),
    generator=sampler | dict(length=c.view.text_length),
    judge=common.choose(judges, 'judge', a.judge),
    select=select,
    buffer=dict(name='fresh'),
    curriculum=dict(name='constant', temperature=1.0, prompts=50, epochs=2, anchor_source='none'),
    reference=dict(role='policy', max_gap=0.01, rate=1.0),
    losses=dict(group=losses),
    replay_batch=8,  # unused without a term `replay`
    replay_length=64,
  )
  c.stages = ('study',)
  arms = ('base', 'own') if arc else ('base', 'passage', 'own')
  c.eval.tasks = dict(self_edits=dict(arms=arms, seeds=1, length=c.view.text_length, top_p=sampler['top_p']))
  c.eval.update(prompt_length=64, answer_length=16, chunk=50 if tiny else 5)
  c.eval.heldout = '' if tiny else 'general'
  return c


def edits_of_passages(c, tiny: bool, format_: str):
  """Notes: every line is a row to train on, and so is the passage."""
  if tiny:
    c.data.source, c.data.world = 'world:passages', dict(count=150, seed=0, split='tune')
    c.eval.update(sources=dict(passages='world:passages'), skip=100, limit=50)
    c.data.limit = 100
    c.view.instruction = 'Text: {text}\nNote' + common.choose(NOTES, 'format', format_ or 'any') + ':'
    c.view.update(prompt_length=40, text_length=48)
  else:
    name = format_ or 'implications'
    task, head = common.choose(PROMPTS, 'format', name), HEADS[name] if name in HEADS else 'Implications:'
    c.view.instruction = f"Let's read the following passage and {task}\n\nPassage:\n{{text}}\n\n{head}\n"
    c.view.update(prompt_length=384, text_length=192)
    c.data.update(source='train.jsonl', text='context', prompt='title', questions='questions')
    c.eval.update(sources=dict(passages='validation.jsonl'), limit=20)
  c.inner = dict(
    # rows of an edit: lines | whole | blocks, whole in as many rows as it takes | questions | choice
    documents='questions' if format_ == 'self_qa' else 'lines',
    document='{line}' if tiny else '{prompt}\n{line}',  # a row; {prompt} is a passage's title
    question='{question}' if tiny else 'Topic: {prompt}\nQuestion: {question}\nAnswer:',
    passage=True,  # is a row, too
    grade='exact' if tiny else 'contains',  # contains | exact | f1 | verbatim | model: the base says yes or no
    rank=8 if tiny else 32,  # 0: a copy of all parameters
    alpha=8.0 if tiny else 64.0,
    targets=(),
    optimizer='adamw',
    lr=3e-3 if tiny else 1e-3,
    schedule='constant',
    clip=1.0,
    epochs=10,
    steps=0,  # most of a run; 0: those of `epochs` over `rows`
    batch=2 if tiny else 1,  # rows per step
    rows=8 if tiny else 16,  # most of a run
    length=36 if tiny else 256,  # tokens of a row
    questions=6 if tiny else 5,  # asked at a time
    prompt_length=16 if tiny else 64,
    answer_length=6 if tiny else 32,
    until='line' if tiny else 'end',  # an answer ends with its line | end: the first that is not empty counts
    chunk=128 if tiny else 8,  # runs at a time
  )


def edits_of_tasks(c, tiny: bool, format_: str):
  """Choices of how to train: a text that is none scores 0."""
  if format_:
    raise ValueError(f'config argument format={format_}: task=arc has one format.')
  if tiny:
    c.data.source, c.data.world = 'world:puzzles', dict(count=150, seed=0, split='tune')
    c.eval.update(sources=dict(puzzles='world:puzzles'), skip=100, limit=50)
    c.data.limit = 100
    c.view.update(instruction='{prompt}', prompt_length=112, text_length=80)
  else:
    c.data.source, c.data.world = 'world:arc', dict(count=70, seed=0, split='tune', side=8)
    c.eval.update(sources=dict(arc='world:arc'), skip=50, limit=20)
    c.data.limit = 50
    c.view.update(instruction='{prompt}', prompt_length=1024, text_length=96)
  c.inner = dict(
    documents='choice',
    document='{line}',
    question='{question}',
    passage=False,
    grade='verbatim',
    rank=0 if tiny else 128,
    alpha=16.0,
    targets=() if tiny else ('layers/(q|v|gate|up|down)$',),
    optimizer='adamw',
    lr=1e-3,  # of no run: every choice names its own, and its epochs
    schedule='constant',
    clip=1.0,
    epochs=1,
    steps=192 if tiny else 375,  # a choice that asks for more is none
    batch=2,
    rows=96 if tiny else 224,
    length=88 if tiny else 1024,
    questions=4 if tiny else 3,
    prompt_length=24 if tiny else 1024,
    answer_length=16 if tiny else 96,
    until='line',
    chunk=64 if tiny else 1,
  )


def base(c, tiny: bool, arc: bool):
  """A tiny model to begin with, from nothing: a writer of notes, or of choices, that knows how one asks."""
  if not tiny:
    raise ValueError('config argument arm=base: only size=tiny begins from nothing.')
  c.data.source = 'world:solved' if arc else 'world:writers'
  c.data.world = dict(count=32000 if arc else 64000, seed=0, split='tune')
  c.data.replay = ''
  c.view.update(prompt_length=8, text_length=168 if arc else 72)
  c.optimizer.update(lr=4e-3, schedule='cosine', warmup=0.1, end=0.1)
  c.study = dict(
    trains='policy',
    rounds=1,
    batch=32,
    micro=0,
    sample_prompts=32,  # unused, as all that is about groups
    answers='',
    buckets=(1.0,),
    generator=dict(name='given'),
    judge=dict(name='constant', value=0.0),
    select=dict(name='everything'),
    buffer=dict(name='fresh'),
    curriculum=dict(name='constant', temperature=1.0, prompts=0, epochs=2 if arc else 3, anchor_source='none'),
    reference=dict(role='policy', max_gap=0.01, rate=1.0),
    losses=dict(text=dict(nll=dict(weight=1.0))),
    replay_batch=8,
    replay_length=64,
  )
  c.stages = ('study',)
  c.eval.tasks, c.eval.heldout = dict(), ''
  return c
