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

Ablations, arguments that combine (--config=configs/past.py:size=tiny,arm=dpo,group=8):

  arm=raw | unjudged | best_of | dpo | dpo_only     the texts alone | + NLL of one note at random | + NLL of the best of
                                                    the group | + DPO without NLL of the chosen | DPO alone
  group=2 | 8 | 16                                  candidates per text
  judge=...  select=best_vs_worst | all_pairs       judges; pair rules
  notes=forward                                     demonstrations that never name the deed before the person
  view=same | instruction                           trained with the passage in view | with 'Note:' alone
  pool=original | rewrite | original+rewrite        candidates more: the text itself, a note by the frozen base
  refresh=never | soft                              the reference: the base for ever | it follows the policy, rate 0.6

study/chosen_from_policy says which share of what is learned was sampled. The judge likelihood_gain lets copies abstain,
so the original is chosen under others only: judge=length_normalised or preference. How many tokens an arm learns from
differs (num_tokens, and TERM/tokens by term): match steps or tokens before comparing.

Default run, two CPU cores: 7 to 11 minutes; closed-book recall of 12 facts, 3 unseen paraphrases each way, seed 0:
forward 0.00 -> 0.69, reversed 0.00 -> 0.53, held-out perplexity 58.8 -> 46.4; with other draws of notes 0.50 and 0.86;
arm=raw: 0.81 and 0.00 (RESULTS.md). The demonstrations in the study instruction name the deed before the person, about
other people.
"""

from configs import common, instructions


def get_config(arg=''):
  a = common.parse_arg(
    arg,
    size='smol',
    judge='likelihood_gain',
    select='best_vs',
    arm='past',
    group=0,  # 0: 4, of the large sizes 8
    notes='mixed',
    view='none',
    pool='samples',
    refresh='round',
  )
  c = common.base(a.size)
  a.group = a.group or (8 if a.size in common.LARGE else 4)
  tiny, devices = a.size == 'tiny', common.DEVICES[a.size]
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
      group=a.group,
      opponent='base',
      opponents=0,  # as many completions more, of the role `opponent`: for XPO and Nash-MD
      length=32 if tiny else 36,
      top_k=0,
      top_p=1.0,
      min_p=0.0,
      stop=('\n',),
      slots=0,  # completions decoded at a time; 0: all. Fewer when few are long: one that ends makes room for the next
      anchors=False,  # the given completions of view.anchors are members, too
    ),
    judge=common.choose(common.JUDGES, 'judge', a.judge),
    select=common.choose(
      {
        'best_vs': dict(name='best_vs', other='random'),
        'best_vs_worst': dict(name='best_vs', other='worst'),
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
  if a.size in common.LARGE:  # one group per device
    c.study.update(batch=devices, sample_prompts=devices, replay_batch=devices)
    if a.size == '70b':
      del c.study.losses['replay']  # there are fewer texts than devices, which take one each
    c.study.generator.length = 256
    c.study.curriculum.prompts = c.data.world.count
    if 'role' in c.study.judge:
      c.study.judge.chunk = devices * (a.group if a.judge in ('likelihood', 'length_normalised') else 1)
  if a.select in ('top_k', 'everything', 'softmax'):  # no pairs: best-of-K, unjudged or weighted imitation
    del c.study.losses.group['dpo']
  c.view.train_view = a.view
  change = common.choose({'mixed': {}, 'forward': dict(instruction=forward_notes(tiny))}, 'notes', a.notes)
  c.view.update(change)
  arms = {'past': as_it_is, 'raw': raw, 'unjudged': unjudged, 'best_of': best_of, 'dpo': dpo, 'dpo_only': dpo_only}
  common.choose(arms, 'arm', a.arm)(c.study)
  pools = {'samples': (), 'original': (original,), 'rewrite': (rewrite,), 'original+rewrite': (original, rewrite)}
  for add in common.choose(pools, 'pool', a.pool):
    add(c)
  common.choose({'round': as_it_is, 'never': never, 'soft': soft}, 'refresh', a.refresh)(c.study)
  return c


def forward_notes(tiny: bool) -> str:
  return 'Text: {text}\nForward:' if tiny else instructions.few_shot('explain', 'forward')


# --- arms: what becomes of the stage ------------------------------------------------------------------------------


def as_it_is(s):
  """The stage has DPO and NLL of the chosen, against the policy as it is when a round begins."""


def raw(s):
  del s.losses['group']


def unjudged(s):
  s.judge, s.select = dict(name='random'), dict(name='top_k', k=1)
  s.losses.group = dict(nll=dict(weight=1.0))


def best_of(s):
  s.select = dict(name='top_k', k=1)
  s.losses.group = dict(nll=dict(weight=1.0))


def dpo(s):
  del s.losses.group['nll']


def dpo_only(s):
  del s.losses.group['nll']
  del s.losses['text']


# --- candidate pools and references -------------------------------------------------------------------------------


def original(c):
  c.view.transforms, c.view.anchors = ('original',), 1
  c.study.generator.anchors = True
  c.study.curriculum.anchor_source = 'given'


def rewrite(c):
  c.study.generator.opponents = 1


def never(s):
  s.reference.role = 'base'


def soft(s):
  s.curriculum.refresh = ('ref',)
  s.reference.update(role='ref', rate=0.6)
