"""DPO: direct preference optimisation on given pairs (arXiv 2305.18290), as users of TRL's DPOTrainer know it.

  once: log-probs of every chosen and rejected completion under the initial model    (the reference; never again)
  epochs x minibatches of one jitted step on the loss of (chosen, rejected)           view: the prompt

  past study --config=configs/dpo.py --workdir=runs/dpo --config.data.source=prefs.jsonl     rows prompt/chosen/rejected
  past study --config=configs/dpo.py:size=tiny --workdir=runs/tiny      from scratch, no network, under a minute
  ... --config.data.prompt=                      rows chosen/rejected that are chats: what both begin with is the prompt
  ... --config.data.preference=COLUMN            it says which of the two columns is better, from 1 to 2 (AlpacaEval)
  ... :loss=ipo,beta=0.2                         any loss of pairs, or kto: past_jax/losses
  ... :arm=sft    NLL of the chosen alone;  :arm=sft+dpo    first that, then DPO against what came of it
  ... --config.data.world.flips=0.2              size=tiny: a fifth of the labels are wrong

Prompts are strings, or lists of messages that the model's chat template writes; --config.view.chat makes a string the
user's message. Prompts are cut on the left, completions on the right, each to its own length, and both are counted. One
minibatch is `batch` pairs, the last of an epoch what is left. Rows with an empty completion, or two that are the same,
are no pairs: they are counted and weigh nothing (kto learns from single ones, so from all that are not empty).
--config.data.shuffle=false trains in the data's order.

size=tiny: instructions such as 'sort d b a c with commas:', answers of four imperfect responders (data/worlds.py).
Two CPU cores: half a minute; seed 0, four epochs: the model tells 0.48, 0.87, 0.97, 0.97 of the pairs it is trained on
(rewards/accuracies, mean of each epoch) at a margin of 0.01, 0.16, 0.28, 0.37. It learns to rank, from nothing; to
answer it would have to be pretrained (closed-book questions are the instructions: 0 of 12 before and after).
"""

from configs import common


def get_config(arg=''):
  a = common.parse_arg(arg, size='smol', loss='dpo', beta=-1.0, arm='dpo')
  beta = {'beta': 0.1} if a.loss == 'dpo' else {}  # other losses: their own default
  beta = {'beta': a.beta} if a.beta >= 0 else beta
  unpaired = a.loss == 'kto'  # single completions, and others' to tell how far the policy has drifted
  c = common.base(a.size)
  tiny = a.size == 'tiny'
  c.data.update(text='', prompt='prompt', chosen='chosen', rejected='rejected', replay='')
  if tiny:
    c.data.source, c.data.world = 'world:preferences', dict(count=60, seed=0, flips=0.0, split='tune')
  else:
    c.data.source = 'prefs.jsonl'
  c.view.update(instruction='{prompt}', train_view='same', train_instruction='', anchors=2)
  c.view.prompt_length, c.view.text_length = (40, 24) if tiny else (256, 256)
  c.optimizer.update(lr=1e-3 if tiny else 1e-6, b2=0.999)
  c.eval.update(prompt_length=48 if tiny else 256, answer_length=24 if tiny else 64)
  c.eval.questions, c.eval.chunk = (12, 12) if tiny else (64, 32)
  stage = dict(
    trains='policy',
    rounds=1,
    batch=8,  # pairs per update
    micro=0,  # pairs whose activations an update holds at once; 0: all. Changes memory, not the step
    sample_prompts=8,
    buckets=(1.0,),  # shares of the lengths that programs are compiled for: (0.25, 0.5, 1.0) is fast on ragged rows
    generator=dict(name='given', mismatched=unpaired),
    judge=dict(name='order'),  # chosen is better than rejected
    select=dict(name='everything') if unpaired else dict(name='all_pairs', margin=0.0),
    curriculum=dict(name='constant', prompts=0, epochs=4 if tiny else 1, anchor_source='given'),  # prompts 0: all
    reference=dict(role='policy', max_gap=0.01, rate=1.0),
    losses=dict(group={a.loss: dict(weight=1.0, **beta)}),
    replay_batch=8,  # unused without a term `replay`
    replay_length=64,
  )
  c.stages = common.choose({'dpo': ('dpo',), 'sft': ('sft',), 'sft+dpo': ('sft', 'dpo')}, 'arm', a.arm)
  for name in c.stages:
    c[name] = stage
  if 'sft' in c.stages:
    c.sft.losses = dict(group=dict(nll=dict(weight=1.0, rows='chosen')))
  return c
