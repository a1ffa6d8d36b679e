"""SEAL: a model writes what it is to be trained on, and is judged by what it then knows (arXiv 2506.10943).

  for each round, on other passages:
    sample 5 self-edits of each passage             view: an instruction + the passage
    judge each by inner runs: adapters fit its lines and the passage, then the passage's questions, nothing in view
    keep the best of each passage
    epochs x minibatches of NLL(edit)               view: the instruction + the passage (ReST-EM)

  past study --config=configs/seal.py --workdir=runs/seal --config.data.source=squad.jsonl      (README: its columns)
  past study --config=configs/seal.py:size=tiny --workdir=runs/seal --config.model.spec=DIR      DIR: a base that takes
                                                                     notes, which a run of :arm=base makes, exported

Arguments

  format=implications | long | very_long | rewrite | self_qa     what the instruction asks for
                    (tiny: notes | paraphrase | reversed | questions | long)
  keep=best | improving   the best edit of a passage | all after which it is answered better than before
  rl=rest_em | grpo | rloo | dpo     NLL of what is kept | policy gradients of the scores, with beta | DPO of the best
                    against the worst
  judge=inner_update | rubric | likelihood_gain     trains | a model's marks, without training | how much likelier the
                    answers are with the edit in view
  reward=accuracy | gain | logp          of inner_update: see past_jax/judges/inner_update.py
  seeds=3           inner runs per edit: judge/noise in metrics.jsonl is the share of chance in differences of scores

Inner runs have a section of their own, config.inner: adapters of `rank` (0: a copy of all parameters), `lr`, `epochs`,
and how an edit becomes rows (`documents`). They begin at the policy as it is, its adapters merged; nothing of them is
kept. The evaluation has the arms base, passage alone and own edits, on passages of --config.eval.sources.
"""

from configs import common

PROMPTS = {  # as published, appendix B
  'implications': 'produce a list of implications derived directly or indirectly from the content.',
  'long': 'produce a long list of implications derived directly or indirectly from the content.',
  'very_long': 'produce a very long list of implications derived directly or indirectly from the content.',
  'rewrite': 'rewrite it in a few different ways, each one separated by a newline.',
  'self_qa': 'rewrite it in a question-answer format.',
}
HEADS = {'rewrite': 'Rewritten passages:', 'self_qa': 'Question 1:'}
TINY = {name: f'{name.capitalize()}:' for name in ('notes', 'paraphrase', 'reversed', 'questions', 'long')}


def get_config(arg=''):
  a = common.parse_arg(
    arg,
    size='smol',
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
  tiny = a.size == 'tiny'
  common.choose({'seal': 0, 'base': 0}, 'arm', a.arm)
  c.view.update(train_view='same', train_instruction='')
  if tiny:
    c.view.instruction = '{text}\n' + common.choose(TINY, 'format', a.format or 'notes')
    c.view.prompt_length, c.view.text_length = 96, 96
  else:
    name = a.format or 'implications'
    head = HEADS[name] if name in HEADS else 'Implications:'
    task = common.choose(PROMPTS, 'format', name)
    c.view.instruction = f"Let's read the following passage and {task}\n\nPassage:\n{{text}}\n\n{head}\n"
    c.view.prompt_length, c.view.text_length = 384, 320
    c.model.lora.update(rank=32, alpha=64.0)
    c.data.update(source='squad.jsonl', text='context', prompt='title', questions='questions', anchors='completions')
  c.optimizer.update(lr=1e-3 if tiny else 3e-4, schedule='linear', warmup=0.05, end=0.0)
  c.inner = dict(
    documents='questions'
    if a.format == 'self_qa' and not tiny
    else 'lines',  # rows of an edit: lines | whole | questions
    document='{line}' if tiny else '{prompt}\n{line}',  # a row; {prompt} is a passage's title
    question='{question}' if tiny else 'Topic: {prompt}\nQuestion: {question}\nAnswer:',
    passage=True,  # is a row, too
    grade='exact' if tiny else 'contains',  # contains | exact | f1 | verbatim
    rank=8 if tiny else 32,  # 0: a copy of all parameters
    alpha=8.0 if tiny else 64.0,
    targets=(),
    optimizer='adamw',
    lr=1e-2 if tiny else 1e-3,
    schedule='constant',
    clip=1.0,
    epochs=10,
    steps=0,  # most of a run; 0: those of `epochs` over `rows`
    batch=4 if tiny else 1,  # rows per step
    rows=8 if tiny else 16,  # most of a run
    length=64 if tiny else 256,  # tokens of a row
    questions=8 if tiny else 5,  # asked at a time
    prompt_length=24 if tiny else 64,
    answer_length=8 if tiny else 24,
    until='line',  # an answer ends with its line | end
    chunk=240 if tiny else 8,  # runs at a time
  )
  inner = dict(name='inner_update', role='policy', seeds=a.seeds, reward=a.reward)
  gain = dict(name='likelihood_gain', target='answers', role='base', max_overlap=1.0, target_length=48 if tiny else 96)
  judge = common.choose(
    {'inner_update': inner, 'rubric': dict(name='rubric', role='base'), 'likelihood_gain': gain}, 'judge', a.judge
  )
  group = 5
  keep = common.choose(
    {'best': dict(name='top_k', k=1), 'improving': dict(name='top_k', k=group, above=0.0)}, 'keep', a.keep
  )
  if a.keep == 'improving' and a.judge == 'inner_update':
    inner['reward'] = 'gain'
  select, losses = common.choose(
    {
      'rest_em': (keep, dict(nll=dict(weight=1.0))),
      'grpo': (dict(name='everything'), dict(grpo=dict(weight=1.0, beta=a.beta))),
      'rloo': (dict(name='everything'), dict(rloo=dict(weight=1.0, beta=a.beta))),
      'dpo': (dict(name='best_vs', other='worst', nll='none'), dict(dpo=dict(weight=1.0, beta=a.beta))),
    },
    'rl',
    a.rl,
  )
  c.study = dict(
    trains='policy',
    rounds=2,
    batch=10 if tiny else 5,  # prompts per update
    micro=0 if tiny else 1,
    sample_prompts=50 if tiny else 5,
    answers='',
    buckets=(1.0,),
    generator=dict(
      name='sampler',
      role='policy',
      group=group,
      length=64 if tiny else 192,
      top_k=0,
      top_p=1.0 if tiny else 0.95,
      min_p=0.0,
      stop=(),
      slots=0,
    ),
    judge=judge,
    select=select,
    buffer=dict(name='fresh'),
    curriculum=dict(name='constant', temperature=1.0, prompts=50, epochs=2, anchor_source='none'),
    reference=dict(role='policy', max_gap=0.01, rate=1.0),
    losses=dict(group=losses),
    replay_batch=8,  # unused without a term `replay`
    replay_length=64,
  )
  c.stages = ('study',)
  c.eval.tasks = dict(self_edits=dict(arms=('base', 'passage', 'own'), seeds=1, length=c.study.generator.length))
  c.eval.update(prompt_length=64, answer_length=16, chunk=50 if tiny else 5)
  return c
