"""PAST: preference-amplified synthesis training. The model learns from a text and from preferences over its own notes.

  for each round:
    sample G longer versions of every text                 view: study instruction + text
    score each by how much better the text is predicted after reading it    (frozen base, copies abstain)
    chosen = best, rejected = a random one of the rest     (dDPO, arXiv 2310.16944)
    epochs x minibatches of one jitted step on
      NLL(text) + NLL(chosen) + w * DPO(chosen, rejected) + r * NLL(replay)   view: nothing (closed book)

  past study --config=configs/past.py --workdir=runs/first                   SmolLM2-135M-Instruct, 12 invented facts
  past study --config=configs/past.py:size=tiny --workdir=runs/tiny          from scratch, no network, under a minute
  past study --config=configs/past.py:arm=raw --workdir=runs/raw             control: the texts alone
  past study --config=configs/past.py:judge=random --workdir=runs/random     control: no judge

Default run, two CPU cores: 7 to 11 minutes; closed-book recall of 12 facts, 3 unseen paraphrases each way, seed 0:
forward 0.00 -> 0.69, reversed 0.00 -> 0.53, held-out perplexity 58.8 -> 46.4; with other draws of notes 0.50 and 0.86;
arm=raw: 0.81 and 0.00 (RESULTS.md). The demonstrations in the study instruction name the deed before the person, about
other people.
"""

from configs import common


def get_config(arg=''):
  a = common.parse_arg(arg, size='smol', judge='likelihood_gain', select='best_vs', arm='past')
  c = common.base(a.size)
  tiny = a.size == 'tiny'
  c.stages = ('study',)
  c.study = dict(
    trains='policy',
    rounds=2 if tiny else 4,
    batch=8 if tiny else 6,  # prompts per update
    buckets=(1.0,),  # shares of the lengths that programs are compiled for: (0.25, 0.5, 1.0) is fast on ragged texts
    micro=0,  # prompts whose activations an update holds at once; 0: all. Changes memory, not the step
    sample_prompts=8 if tiny else 6,  # prompts per call of the sampler
    answers='',  # where the answer of a completion stands, for figures of coverage: past_jax/answers.py
    generator=dict(
      name='sampler',
      role='policy',
      group=4,
      opponent='base',
      opponents=0,  # as many completions more, of the role `opponent`: for XPO and Nash-MD
      length=32 if tiny else 36,
      top_k=0,
      top_p=1.0,
      min_p=0.0,
      stop=('\n',),
      slots=0,  # completions decoded at a time; 0: all. Fewer when few are long: one that ends makes room for the next
    ),
    judge=common.choose(common.JUDGES, 'judge', a.judge),
    select=common.choose(
      {
        'best_vs': dict(name='best_vs', other='random'),
        'all_pairs': dict(name='all_pairs', margin=0.0),
        'top_k': dict(name='top_k', k=1),
        'everything': dict(name='everything'),
        'softmax': dict(name='softmax', temperature=1.0),
      },
      'select',
      a.select,
    ),
    buffer=dict(name='fresh'),  # append | ring with size=PROMPTS: rounds learn from what earlier ones collected, too
    curriculum=dict(name='constant', temperature=0.8, prompts=8 if tiny else 12, epochs=2 if tiny else 4),
    reference=dict(role='policy', max_gap=0.01, rate=1.0),  # nats per completion; how far a refresh moves the role ref
    losses=dict(
      text=dict(nll=dict(weight=1.0)),
      group=dict(nll=dict(weight=1.0), dpo=dict(weight=0.1, beta=0.1, label_smoothing=0.0)),
      replay=dict(nll=dict(weight=0.5)),
    ),
    replay_batch=8 if tiny else 2,  # replayed texts per update
    replay_length=64,
  )
  if a.judge == 'likelihood_gain' and tiny:
    c.study.judge.target_length = c.view.text_length
  if a.select in ('top_k', 'everything', 'softmax'):  # no pairs: best-of-K, unjudged or weighted imitation
    del c.study.losses.group['dpo']
  common.choose({'past': 0, 'raw': 0}, 'arm', a.arm)
  if a.arm == 'raw':
    del c.study.losses['group']
  return c
