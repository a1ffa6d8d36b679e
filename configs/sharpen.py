"""Sharpening: a model is better at telling which of its answers is good than at giving it first (arXiv 2412.01951).

  for each round:
    sample N answers to every prompt          from the frozen base; arm=xpo: one from the policy, one from the base
    reward each by the frozen base, in every round      log p(y) | log p(y) / tokens | its share of the votes | asked
    epochs x minibatches of one jitted step                                                           view: the prompt
      arm=sft         NLL(best of N)
      arm=regression  (beta * D - (r(y) - r(y')))^2 on all pairs, ties too     D: log-ratio to the base of y less y'
      arm=dpo         -log s(beta * D), y the one of higher reward: labels, not magnitudes
      arm=xpo         arm=regression on all pairs of all rounds so far + alpha * log p(y'), y' the base's
      arm=bon         none: what N samples and a judge are worth, coverage/... in metrics.jsonl (the step length is 0)

  past study --config=configs/sharpen.py --workdir=runs/sft --config.data.source=tasks.jsonl    rows prompt and target
  past study --config=configs/sharpen.py:size=tiny --config.model.spec=BASE --workdir=runs/tiny
  ... :arm=regression,beta=0.1                       the optimum is base^(1 + 1 / beta); a smaller beta takes longer
  ... :arm=xpo,alpha=1e-3
  ... :reward=majority --config.sharpen.judge.rule=boxed      votes; where answers stand: rules of past_jax/answers.py
  ... :arm=bon,N=64                                  with N=1, 2, 4, ... the curve of best-of-N: coverage/best_right
  ... --config.sharpen.rounds=3 --config.sharpen.generator.role=policy      rounds from the sharpened model; the reward
                                                     stays that of the base, and a moving one is refused

Targets are for the figures alone: nothing is rewarded for being right, and rows without one are studied all the same.
At inference: past sample --best_of=N --judge=majority. The default model is SmolLM2-135M-Instruct under adapters of
rank 16 (the paper: 3 to 14B parameters, rank 8 or 16, N=50, 10 or 30 epochs).

size=tiny: all parameters of a model of 0.1M, which has to know the task a little: BASE is a folder that `past export`
wrote. Nothing is learned of scratch:tiny, which only shows that it runs. With a base that has read 8 texts of each sum,
a share of 0.45 of them wrong, right of 16 samples at temperature 1 (one seed, 128 sums, 64 updates): 0.56 before, 0.78
after arm=sft, 0.68 after arm=dpo and 0.64 after arm=regression with N=16, 0.66 after arm=xpo. On sums that were not
sharpened on such a model learns nothing (0.57 and 0.53), and greedy decoding before it had 0.82 (LOG.md; the base of
configs/ablations/sharpening.py is another one).
"""

from configs import common

TEMPLATE = """\
Question: {prompt}

Answer A: {a}
Answer B: {b}

The better answer is answer"""


def get_config(arg=''):
  a = common.parse_arg(arg, size='smol', arm='sft', reward='likelihood', N=0, beta=0.5, alpha=1e-3)
  c = common.base(a.size)
  tiny = a.size == 'tiny'
  rewards = {name: common.JUDGES[name] for name in ('likelihood', 'length_normalised', 'majority')}
  rewards['preference'] = common.JUDGES['preference'] | dict(template=TEMPLATE)
  pairs, alone = dict(name='all_pairs', margin=0.0, nll='none', ties='drop'), dict(name='top_k', k=1)
  beta, nll = dict(weight=1.0, beta=a.beta), dict(nll=dict(weight=1.0, per='token'))
  # N, select, losses
  N, select, losses = common.choose(
    {
      'sft': (16, alone, nll),
      'regression': (2, pairs | dict(ties='keep'), dict(rebel=beta)),
      'dpo': (2, pairs, dict(dpo=beta)),
      'xpo': (1, pairs | dict(ties='keep'), dict(rebel=beta, optimism=dict(weight=a.alpha, source=1))),
      'bon': (16, alone, nll),
    },
    'arm',
    a.arm,
  )
  xpo = a.arm == 'xpo'
  prompts, rounds = 64 if tiny else 16, 8 if xpo else 1
  if not tiny:
    c.model.lora.rank = 16
  c.data.update(source='tasks.jsonl', text='', prompt='prompt', target='target', replay='')
  if tiny:
    c.data.source, c.data.world = 'world:arithmetic', dict(count=64, seed=0, noise=0.45, copies=1, split='tune')
  c.eval.tasks = dict(accuracy=dict(rule='last_number', samples=16, temperature=1.0))
  c.view.update(instruction='{prompt}', train_view='same', train_instruction='')
  c.view.prompt_length = 32 if tiny else 256
  imitates = a.arm == 'sft'
  lr = (1e-3 if imitates else 5e-4) if tiny else (3e-4 if imitates else 1e-4)
  c.optimizer.update(
    lr=0.0 if a.arm == 'bon' else lr, schedule='linear', warmup=0.0, end=0.0, clip=1.0 if tiny else 0.1
  )
  c.stages = ('sharpen',)
  c.sharpen = dict(
    trains='policy',
    rounds=rounds,
    batch=16 if tiny else 4,  # prompts per update
    micro=0,
    sample_prompts=16 if tiny else 4,
    answers='last_number',
    buckets=(1.0,),
    generator=dict(
      name='sampler',
      role='policy' if xpo else 'base',
      group=a.N or N,
      opponent='base',
      opponents=1 if xpo else 0,
      length=16 if tiny else 128,
      top_k=0,  # samples of the model itself: temperature 1, no filter
      top_p=1.0,
      min_p=0.0,
      stop=('\n',) if tiny else (),
      slots=0,
    ),
    judge=common.choose(rewards, 'reward', a.reward),
    select=select,
    buffer=dict(name='append', size=rounds * prompts) if xpo else dict(name='fresh'),
    curriculum=dict(
      name='constant', temperature=1.0, prompts=prompts, epochs=1 if a.arm == 'bon' else 2 if xpo else 16 if tiny else 4
    ),
    reference=dict(role='base', max_gap=0.01, rate=1.0),
    losses=dict(group=losses),
    replay_batch=8,  # unused without a term `replay`
    replay_length=64,
  )
  return c
