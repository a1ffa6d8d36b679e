"""PIT: learning to improve a response from preference data alone, without being told what better is (arXiv 2310.00898).

  imitate  NLL of the preferred response                        prompt: the request and the other response, as a draft
  fit      g(y, draft), how much better y is, from the same pairs in all four orders: a scalar head on the policy's body
  easy     RLOO on g of 8 responses, KL to what `imitate` gave      drafts: both responses of the data, in turn
  hard     RLOO on g of 8 responses, KL to what `easy` gave         drafts: what the run's first model answers
  harder   the same, KL to what `hard` gave                         drafts: the first model's, improved once (depth=3)

  past study --config=configs/pit.py --workdir=runs/pit --config.data.source=prefs.jsonl   rows prompt/chosen/rejected
  past study --config=configs/pit.py:size=tiny,arm=policy --workdir=runs/policy            a policy to improve on, then
  past export --workdir=runs/policy --out=runs/policy/model
  past study --config=configs/pit.py:size=tiny --workdir=runs/pit --config.model.spec=runs/policy/model

  ... :arm=policy           imitate, fit and RLOO on plain rewards, without drafts: an ordinary RLHF policy
  ... :depth=0 | 1 | 3      imitate alone | only up to `easy` | also `harder`;  :easy=false   leave `easy` out
  ... :gap=one | difference g from the pair the right way and the wrong way alone | a Bradley-Terry reward, whose
                            differences are the gaps
  ... :rl=grpo | dpo        dpo: the best and the worst of 8 by g, DPO against the stage's beginning: the offline form
  ... :beta=0.05            weight of the KL to what a stage began with

A run that was stopped goes on in the stage, round and update where it was. At inference: past sample --improve.

size=tiny: keys and responses of eight letters with a hidden quality (docs/tasks.md, `edits`), 0.1M parameters from
nothing. Two CPU cores, seed 0: the policy takes a minute, and its responses to 256 other keys have quality 0.55 at
temperature 1 (those that it imitates 0.48, the best 1); the improver takes two to four minutes. Its judge tells 0.71
of 256 pairs. Responses improved once have quality 0.58, of drafts of 0.56: by quality 0.06 more are better than
worse, by likelihood 0.26 fewer (improvement/quality/t1/i1/delta, improvement/likelihood/...); improved twice 0.57,
0.01 and -0.38; another sample of the policy in place of an improvement has 0.05 and 0.17. Seeds differ: five others,
with other letters, have 0.20 to 0.51 by quality (RESULTS.md, D1).

The default size is SmolLM2-135M-Instruct under adapters. Measured of it are judges, --config.stages="('fit',)": on 312
pairs of models' answers (scripts/model_pairs.py) g takes an hour on two cores and tells 0.74 of 90 others [0.65, 0.82],
gap=difference 0.68 [0.58, 0.77] in twenty minutes (LOG.md). The improver has not been trained at that size.
"""

from configs import common

IMPROVE = """\
{prompt}

Here is a draft of a response:
{draft}

Write a better response to the request. Give the response alone."""
MARK = 'past_jax.data.worlds.edits:quality'


def get_config(arg=''):
  a = common.parse_arg(arg, size='smol', arm='pit', gap='five', rl='rloo', easy=True, depth=2, beta=0.2)
  c = common.base(a.size)
  tiny, improves = a.size == 'tiny', a.arm == 'pit'
  if not tiny:
    c.model.lora.rank = 16
  c.data.update(text='', prompt='prompt', chosen='chosen', rejected='rejected', replay='', source='prefs.jsonl')
  if tiny:
    c.data.source, c.data.world = 'world:edits', dict(count=3328, seed=0, noise=0.05, split='tune')
    c.data.limit = 3072  # keys that are studied; the last 256 are asked
    c.eval.update(sources=dict(edits='world:edits'), skip=3072, limit=256)
  c.view.update(instruction='{prompt}', train_view='same', train_instruction='', anchors=2, chat=not tiny)
  c.view.prompt_length, c.view.text_length = (8, 12) if tiny else (192, 192)
  c.improve = dict(
    instruction='{prompt}{draft}>' if tiny else IMPROVE,  # what the improver, and a judge of gaps, read
    prompt_length=24 if tiny else 448,
    temperature=1.0,  # of sampled drafts
  )
  c.optimizer.update(lr=3e-3 if tiny else 1e-4, schedule='linear', warmup=0.05, end=0.0, b2=0.99)
  c.eval.update(prompt_length=24 if tiny else 256, answer_length=12 if tiny else 192, chunk=128 if tiny else 16)
  c.eval.heldout = ''
  # Who says what is better: nobody who was trained on. Win rates of y_1, y_2, ... over drafts of the first model.
  judges = dict(likelihood='likelihood') | (dict(quality=MARK) if tiny else {})
  c.eval.tasks = dict(judge_accuracy=dict(reads='draft' if improves and a.gap != 'difference' else 'prompt'))
  if improves:
    c.eval.tasks.improvement = dict(judges=judges, iterations=2, temperatures=(1.0,), baseline='self_refine')
    if tiny:  # it follows no request: its refined response is another one of its own
      c.eval.tasks.improvement.refine = '{prompt}'
  elif tiny:
    c.eval.tasks.accuracy = dict(function=MARK, samples=4, temperature=1.0)

  gap = common.choose({'five': 'five', 'one': 'one', 'difference': ''}, 'gap', a.gap) if improves else ''
  common.choose({'policy': 0, 'pit': 0}, 'arm', a.arm)
  draft = lambda name: name if improves else 'none'
  view = 'same' if gap else 'plain'
  stage = dict(
    trains='policy',
    rounds=1,
    batch=64 if tiny else 8,
    micro=0 if tiny else 4,
    sample_prompts=64 if tiny else 8,
    answers='',
    buckets=(1.0,),
    generator=dict(name='given'),
    judge=dict(name='order'),
    select=dict(name='top_k', k=1),
    buffer=dict(name='fresh'),
    curriculum=dict(
      name='constant',
      temperature=1.0,
      prompts=0,
      epochs=12 if tiny else 1,
      anchor_source='given',
      draft=draft('rejected'),
    ),
    reference=dict(role='ref', max_gap=0.01, rate=1.0),
    losses=dict(group=dict(nll=dict(weight=1.0, per='token'))),
    optimizer=dict(),  # what is another than in config.optimizer
    replay_batch=8,  # unused without a term `replay`
    replay_length=64,
  )
  c.imitate = stage
  c.fit = stage | dict(
    trains='judge',
    select=dict(name='everything') if gap else dict(name='all_pairs', margin=0.0),
    curriculum=dict(
      name='constant', prompts=0, epochs=6 if tiny else 1, anchor_source='given', draft='orders' if gap else 'none'
    ),
    losses=dict(group=dict(gap=dict(weight=1.0, terms=gap)) if gap else dict(bradley_terry=dict(weight=1.0))),
    optimizer=dict(lr=2e-3 if tiny else 1e-4),
  )
  pairs = dict(name='best_vs', other='worst')
  select, loss = common.choose(
    {
      'rloo': (dict(name='everything'), dict(rloo=dict(weight=1.0, beta=a.beta))),
      'grpo': (dict(name='everything'), dict(grpo=dict(weight=1.0, beta=a.beta))),
      'dpo': (pairs, dict(dpo=dict(weight=1.0, beta=a.beta))),
    },
    'rl',
    a.rl,
  )
  learn = stage | dict(
    rounds=(60 if improves else 30) if tiny else 20,
    generator=dict(
      name='sampler', role='policy', group=8, length=12 if tiny else 192, top_k=0, top_p=1.0, min_p=0.0, stop=()
    ),
    judge=dict(name='reward', role='judge', view=view, chunk=512 if tiny else 16),
    select=select,
    losses=dict(group=loss),
    optimizer=dict(lr=5e-4 if tiny else 1e-5, warmup=0.0),
  )
  of = lambda name: dict(
    name='constant', temperature=1.0, prompts=64 if tiny else 32, epochs=1, anchor_source='none', draft=draft(name)
  )
  c.easy = learn | dict(curriculum=of('given'))
  c.hard = learn | dict(curriculum=of('sampled'))
  c.harder = learn | dict(curriculum=of('improved'))
  chosen = ('imitate', 'fit', *(('easy',) if a.easy or not improves else ()), 'hard', 'harder')
  ends = {0: 'imitate', 1: 'easy', 2: 'hard', 3: 'harder'}
  c.stages = chosen[: chosen.index('easy' if not improves else common.choose(ends, 'depth', a.depth)) + 1]
  for name in ('imitate', 'fit', 'easy', 'hard', 'harder'):
    if name not in c.stages:
      del c[name]
  return c
