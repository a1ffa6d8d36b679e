"""Machine studying: a model learns a corpus from what a teacher makes of it: notes, pairs of names, texts turned round.

  for each round:
    a teacher writes about every text                      view: few-shot instruction + text; or the text is transformed
    keep all, or what a filter lets through                no preferences
    epochs x minibatches of NLL(text) + NLL(notes) + r * NLL(replay)      view: nothing (closed book)

  past study --config=configs/study.py --workdir=runs/reverse                        notes in the other order
  past study --config=configs/study.py:arm=raw --workdir=runs/raw                    control: the texts alone
  past study --config=configs/study.py:arm=paraphrase --workdir=runs/paraphrase      control: notes in the same order
  ...

Arms, each as :arm=NAME
  raw | copy                                the texts once | twice in every update
  paraphrase, explain, question_answer, implication, rewrite     few-shot notes, shown forward notes only;
                                            direction=reverse or both shows the other order: say so in any claim
  reverse                                   notes in the other order
  pairs | triples                           names first, then a note for every combination of them (arXiv 2409.07431)
  recorded                                  a teacher's text from a file: --config.data.recorded=FILE, rows of
                                            {context, completions}; with SQuAD passages as SEAL's repository has them:
                                            --config.data.source=validation.jsonl --config.data.text=context
                                            --config.data.questions=questions, and longer shapes (README)
  token_reversal | word_reversal | entity_reversal | segment_reversal    the text turned round, no model (2403.13799)

Further arguments
  writer=teacher    the notes are of --config.teacher.spec=MODEL, larger than the student, with the same tokenizer
  writer=policy     of the student as it is; default: of the base, frozen
  generations=3     the student becomes the teacher of the next, which begins at the base again; how far that collapses
                    is told by study/distinct_2, study/compression, study/repeated and, with --config.eval.every=1000,
                    an evaluation between generations. --config.teacher.restart=false: one student goes on
  filter=gain       keeps notes that make the text likelier to the base than it is without them, by more than 0 nats
  filter=distinct   drops notes that nearly say what an earlier one of the round says
  filter=consistent keeps notes whose answer over half of the notes on the text agree with, each once; where answers
                    stand: --config.study.judge.rule=boxed, of past_jax/answers.py
  notes=4           completions per prompt
  related=2         as many other texts of the corpus stand before the text, the nearest by BM25 (past-jax[study])
  text=1.0, synthetic=1.0, replay=0.5    the mix: weights of the terms' losses, a mean over its tokens each; 0 leaves
                    one out. text/tokens, group/tokens and replay/tokens in metrics.jsonl count what was learned from:
                    match these, or steps, before comparing arms

size=tiny is a byte-level model from scratch: without a base that can take notes (--config.model.spec=DIR, a run on
notes that `past export` wrote) its notes are noise, and only raw, recorded and the transforms say anything.
"""

from configs import common, instructions

REVERSALS = ('token_reversal', 'word_reversal', 'entity_reversal', 'segment_reversal')
COMBINATIONS = {'pairs': 2, 'triples': 3}
KINDS = tuple(dict.fromkeys((*instructions.FORWARD, *instructions.REVERSE)))
WRITERS = {'base': 'base', 'policy': 'policy', 'teacher': 'teacher'}


def get_config(arg=''):
  a = common.parse_arg(
    arg,
    size='smol',
    arm='reverse',
    direction='',
    writer='base',
    notes=4,
    generations=1,
    filter='none',
    related=0,
    text=1.0,
    synthetic=1.0,
    replay=0.5,
  )
  arms = dict.fromkeys(('raw', 'recorded', *KINDS, *COMBINATIONS, *REVERSALS))
  common.choose(arms, 'arm', a.arm)
  c = common.base(a.size)
  tiny = a.size == 'tiny'
  c.data.related = a.related
  if a.arm in COMBINATIONS:
    c.pairs.size = COMBINATIONS[a.arm]
    c.view.instruction = 'Text: {text}\nAbout: {prompt}\nNote:' if tiny else instructions.PAIRS
  elif a.arm in KINDS and not tiny:
    c.view.instruction = instructions.few_shot(a.arm, a.direction or ('reverse' if a.arm == 'reverse' else 'forward'))
  if a.related:
    c.view.instruction = c.view.instruction.replace('{text}', '{related} {text}')
  stage = dict(
    trains='policy',
    rounds=2 if tiny else 4,
    batch=8 if tiny else 6,  # prompts per update
    buckets=(1.0,),
    micro=0,
    sample_prompts=8 if tiny else 6,  # prompts per call of the sampler
    answers='',
    buffer=dict(name='fresh'),
    generator=writer(c, a),
    judge=dict(name='constant', value=0.0),
    select=dict(name='everything'),
    curriculum=dict(
      name='constant',
      temperature=0.8,
      prompts=8 if tiny else 12,
      epochs=2 if tiny else 4,
      anchor_source='given' if c.view.anchors else 'none',
    ),
    reference=dict(role='policy', max_gap=0.01, rate=1.0),  # no loss reads it
    losses=mix(text=a.text, group=0.0 if a.arm == 'raw' else a.synthetic, replay=a.replay),
    replay_batch=8 if tiny else 2,  # replayed texts per update
    replay_length=64,
  )
  stage.update(common.choose(filters(c), 'filter', a.filter))
  c.stages = tuple(f'generation{i + 1}' for i in range(a.generations)) if a.generations > 1 else ('study',)
  if a.generations > 1:
    c.teacher.update(spec='policy', restart=True)
    stage['generator']['role'] = 'teacher'
  for name in c.stages:
    c[name] = stage
  return c


def mix(**weights: float) -> dict:
  return {term: dict(nll=dict(weight=weight)) for term, weight in weights.items() if weight}


def writer(c, a) -> dict:
  """The generator of the notes; given ones make room for themselves in the view."""
  if a.arm in REVERSALS or a.arm in ('copy', 'recorded'):
    name = {'copy': 'original'}.get(a.arm, a.arm)
    c.view.transforms = () if a.arm == 'recorded' else (name,) * a.notes if name == 'segment_reversal' else (name,)
    c.view.anchors = a.notes if a.arm == 'recorded' else len(c.view.transforms)
    return dict(name='given')
  return dict(
    name='sampler',
    role=common.choose(WRITERS, 'writer', a.writer),
    group=a.notes,
    length=32 if a.size == 'tiny' else 36,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    stop=('\n',),
    slots=0,
  )


def filters(c) -> dict:
  gain = dict(common.JUDGES['likelihood_gain'], target_length=c.view.text_length)
  return {
    'none': {},
    'gain': dict(judge=gain, select=dict(name='distinct', max_overlap=1.0, ngram=3, above=0.0)),
    'distinct': dict(select=dict(name='distinct', max_overlap=0.8, ngram=3)),
    'consistent': dict(
      judge=common.JUDGES['majority'], select=dict(name='distinct', max_overlap=1.0, ngram=3, above=0.5)
    ),
  }
