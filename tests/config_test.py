"""Shipped configs resolve to what is on file; what a user can get wrong is one clear message, told before any work.

`python tests/config_test.py --write` rewrites tests/golden/ after a change of a config that was meant.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from past_jax import build, checks, models, settings, train, update
from past_jax.commands import study
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.types import Example, Question, UserError

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / 'golden'
sys.path.insert(0, str(ROOT))

from configs import common  # noqa: E402

JUDGES = [f'judge={name}' for name in common.JUDGES if name != 'likelihood_gain']
SELECTS = ['select=all_pairs', 'select=top_k', 'select=everything', 'select=softmax', 'select=best_vs_worst']
ARMS = ['arm=raw', 'arm=unjudged', 'arm=best_of', 'arm=dpo', 'arm=dpo_only', 'pool=original+rewrite', 'refresh=never']
ARMS += ['refresh=soft', 'notes=forward']
ARGS = {  # file -> its arguments; any other file: its default and size=tiny
  'past': [
    '',
    'size=tiny',
    'arm=raw',
    *(f'size={size}' for size in common.LARGE),
    *(f'size=tiny,{a}' for a in (*JUDGES, *SELECTS, *ARMS)),
    'notes=forward',
  ],
  'study': [
    '',
    'arm=raw',
    'arm=pairs',
    'arm=explain,direction=both',
    'filter=gain',
    'filter=consistent',
    'generations=3',
    'related=2',
  ]
  + [f'size=tiny,{a}' for a in ('arm=triples,writer=policy', 'arm=segment_reversal', 'arm=recorded', 'arm=copy')],
  'dpo': ['', 'size=tiny', 'size=tiny,arm=sft', 'arm=sft+dpo'],
  'pit': [''] + [f'size=tiny{a}' for a in ('', ',arm=policy', ',gap=difference,depth=3', ',rl=dpo,easy=false')],
  'seal': ['', 'task=arc', 'format=self_qa,judge=rubric']
  + [f'size=tiny{a}' for a in ('', ',arm=base', ',arm=base,task=arc', ',task=arc', ',rl=grpo', ',rl=dpo,judge=random')]
  + ['size=tiny,keep=improving,format=reversed'],
  'sharpen': [
    '',
    *(f'size=tiny,arm={arm}' for arm in ('sft', 'regression', 'dpo', 'xpo', 'bon')),
    *(f'size=tiny,reward={reward}' for reward in ('length_normalised', 'majority', 'preference')),
  ],
}
FILES = sorted(
  path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem not in ('common', 'instructions', '__init__')
)
VARIANTS = [(name, arg) for name in FILES for arg in ARGS.get(name, ['', 'size=tiny'])]


def load(name='past', arg='size=tiny', *flags):
  config = study.load_config(f'{ROOT}/configs/{name}.py:{arg}')
  for flag in flags:
    study.override(config, flag)
  return config


def resolved(name, arg) -> str:
  return json.dumps(settings.plain(load(name, arg)), indent=2, default=list) + '\n'


def golden(name, arg) -> Path:
  return GOLDEN / f'{",".join(filter(None, (name, arg)))}.json'


@pytest.mark.parametrize('name, arg', VARIANTS)
def test_shipped_configs_resolve_to_what_is_on_file(name, arg):
  path = golden(name, arg)
  rewrite = 'if this change is meant: python tests/config_test.py --write'
  assert path.exists(), rewrite
  assert json.loads(resolved(name, arg)) == json.loads(path.read_text()), rewrite


@pytest.mark.parametrize('name, arg', VARIANTS)
def test_shipped_configs_have_no_problems(name, arg):
  assert checks.check(load(name, arg), devices=1) == []


def test_no_file_is_left_over():
  assert {path.name for path in GOLDEN.iterdir()} == {golden(*variant).name for variant in VARIANTS}


# --- arguments and overrides --------------------------------------------------------------------------------------


def test_arguments_take_the_type_of_their_default():
  a = common.parse_arg('n=3,x=1,on=true,name=b', n=1, x=0.5, on=False, name='a', rest=2)
  assert a.to_dict() == {'n': 3, 'x': 1.0, 'on': True, 'name': 'b', 'rest': 2}
  assert isinstance(a.x, float)
  wrong = [('m=3', "config argument 'm'"), ('n=1.5', 'type int'), ('on=yes', 'type bool'), ('n', 'type int')]
  for arg, message in wrong:
    with pytest.raises(ValueError, match=message):
      common.parse_arg(arg, n=1, on=False)


def test_overrides_take_the_type_of_what_they_replace():
  config = load(
    'past',
    'size=tiny',
    '--config.optimizer.lr=1',
    '--config.study.rounds=7',
    '--config.view.chat',
    '--config.data.shuffle=false',
    "--config.study.generator.stop=('a', 'b')",
    '--config.stages=study',
    '--config.data.source=a=b:c.jsonl',
    "--config.study.judge={'name': 'random'}",
  )
  assert (config.optimizer.lr, config.study.rounds, config.view.chat, config.data.shuffle) == (1.0, 7, True, False)
  assert isinstance(config.optimizer.lr, float)
  assert (config.study.generator.stop, config.stages) == (('a', 'b'), ('study',))
  assert config.data.source == 'a=b:c.jsonl'
  assert config.study.judge.to_dict() == {'name': 'random'}
  assert checks.check(config, 1) == []


def test_a_resumed_run_may_change_only_its_length_and_housekeeping():
  old = json.loads(json.dumps(settings.plain(load()), default=list))
  assert settings.differences(old, load()) == []
  free = ('--config.study.rounds=9', '--config.checkpoint.keep=3', '--config.log.groups=1', '--config.eval.every=1')
  assert settings.differences(old, load('past', 'size=tiny', *free)) == []
  fixed = load('past', 'size=tiny', '--config.seed=1', "--config.study.judge={'name': 'constant', 'value': 0.0}")
  found = settings.differences(old, fixed)
  assert found[0] == 'seed: 0 -> 1'
  assert "study.judge.name: 'likelihood_gain' -> 'constant'" in found
  assert "study.judge.target: 'text' -> absent" in found
  assert 'study.judge.value: absent -> 0.0' in found
  assert 'eval.questions: 3 -> 0' in settings.differences({**old, 'eval': {**old['eval'], 'questions': 3}}, load())


def test_plans_inside_a_config_survive_json():
  """Tuples become lists on disk; the same run must still be the same run."""
  plans = "{'name': 'stages', 'plans': ((1, {'temperature': 0.5}), (1, {'refresh': ('ref',)}))}"
  config = load('past', 'size=tiny', f'--config.study.curriculum={plans}')
  assert checks.check(config, 1) == []
  assert settings.differences(json.loads(json.dumps(settings.plain(config), default=list)), config) == []


# --- keys and values ----------------------------------------------------------------------------------------------


def edited(*edits, arg='size=tiny') -> ConfigDict:
  """A config as a user might write it in a file: no override has looked at these values."""
  tree = settings.plain(load('past', arg))
  for path, value in edits:
    *parents, last = path.split('.')
    node = tree
    for name in parents:
      node = node[name]
    if value is None:
      del node[last]
    else:
      node[last] = value
  return ConfigDict(tree)


MUON = {'name': 'muon', 'lr': 1e-3, 'schedule': 'cosine', 'warmup': 0.0, 'end': 0.0}
EVERYTHING = {'name': 'everything'}
KEPT = {'name': 'all_pairs', 'ties': 'keep'}


@pytest.mark.parametrize(
  'edits, message',
  [
    ([('optimzer', {'lr': 1.0})], "config.optimzer: there is no such key. Did you mean 'optimizer'?"),
    ([('view.chat', None)], 'config.view.chat is missing.'),
    ([('study.rouns', 2)], "config.study.rouns: there is no such key. Did you mean 'rounds'?"),
    ([('study.judge.chnk', 2)], "'likelihood_gain' does not take chnk; it takes target, role, joiner, max_overlap"),
    ([('optimizer.lr', '1e-3')], "config.optimizer.lr='1e-3' must be a number."),
    ([('optimizer.lr', float('nan'))], 'config.optimizer.lr=nan must be a number of at least 0.0.'),
    ([('optimizer.lr', None)], 'config.optimizer.lr is missing.'),
    ([('optimizer.learning_rate', 1.0)], "config.optimizer: 'adamw' does not take learning_rate; it takes b1, b2, eps"),
    ([('optimizer.schedule', 'cosin')], "config.optimizer.schedule='cosin': choose one of cosine, linear, constant."),
    ([('optimizer.name', 'lion')], "config.optimizer: 'lion' does not take eps; it takes b1, b2, weight_decay, clip."),
    ([('optimizer', MUON), ('model.lora.rank', 4)], "config.optimizer 'muon' orthogonalizes whole kernels"),
    ([('model.remat', 'dot')], "config.model.remat='dot': choose one of 'none', 'dots', 'layer'. Did you mean 'dots'?"),
    ([('study.buckets', (0.5,))], 'config.study.buckets=(0.5,): give ascending shares of the lengths, the last 1'),
    ([('study.buckets', (0, 1))], 'config.study.buckets=(0, 1): give ascending shares of the lengths, the last 1'),
    ([('study.buckets', ('a', 1))], "config.study.buckets=('a', 1): give ascending shares of the lengths, the last 1"),
    ([('study.micro', 3)], 'config.study.batch=8 must be a multiple of config.study.micro=3, or no larger.'),
    ([('study.micro', 4), ('study.replay_batch', 6)], 'config.study.replay_batch=6 must be a multiple of config.study'),
    ([('study.rounds', True)], 'config.study.rounds=True must be a whole number.'),
    ([('eval.tasks', {'force_choice': {}})], 'choose one of accuracy, closed_book, forced_choice'),
    (
      [('eval.tasks', {'accuracy': {'role': 'line'}})],
      "'accuracy' does not take role; it takes rule, function, samples",
    ),
    ([('eval.tasks', {'accuracy': {'samples': 0}})], 'config.eval.tasks.accuracy.samples=0 must be'),
    ([('eval.tasks', {'accuracy': 3})], 'config.eval.tasks.accuracy=3 must be a dict of its keys'),
    ([('eval.sources', {'forward': 3})], 'config.eval.sources.forward=3 must be a source'),
    ([('study.judge', 'random')], "config.study.judge='random' must be a dict of keys."),
    ([('study.judge.name', None)], 'config.study.judge.name is missing: choose one of'),
    ([('stages', 'study')], "config.stages='study' must be a tuple."),
    ([('study.losses', {})], 'config.study.losses is empty'),
    ([('study.losses.txt', {'nll': {'weight': 1.0}})], "Did you mean 'text'?"),
    ([('study.losses.group.dpoo', {'weight': 1.0})], "Did you mean 'dpo'?"),
    ([('study.losses.group.dpo.weight', None)], 'config.study.losses.group.dpo.weight is missing.'),
    ([('study.losses.text', 1.0)], 'config.study.losses.text=1.0 must be losses with their keys'),
    ([('data.replay', '')], 'config.study.losses.replay needs texts'),
    ([('study.replay_batch', 8000)], 'texts to replay'),
    ([('study.trains', 'juge')], "config.study.trains='juge': choose one of policy, judge. Did you mean 'judge'?"),
    ([('study.trains', 'judge')], "is of a policy; config.study.trains='judge' takes losses of scores"),
    (
      [('study.losses', {'group': {'bradley_terry': {'weight': 1.0}}})],
      "losses.group.bradley_terry trains a judge: set config.study.trains='judge'",
    ),
    ([('study.judge', {'name': 'reward'})], "reads the role 'judge', which no stage before 'study' trains"),
    (
      [('study.judge', {'name': 'reward', 'role': 'base'})],
      "config.study.judge.role='base': choose one of judge, teacher",
    ),
    ([('study.curriculum.draft', 'sampled')], "draft='sampled' needs config.improve with the keys instruction"),
    ([('study.curriculum.draft', 'orders')], "draft='orders' and the loss gap belong together"),
    ([('study.optimizer', {'lrr': 1.0})], 'config.study.optimizer'),
    ([('study.reference.role', 'bas')], 'choose one of policy, base, ref'),
    ([('study.curriculum.refresh', ('base',))], "only the role 'ref' can be refreshed"),
    ([('study.generator', {'name': 'given'})], "needs config.study.curriculum.anchor_source='given'"),
    ([('study.curriculum.anchor_source', 'given')], 'needs config.view.anchors of at least 1'),
    ([('study.curriculum.anchor_source', 'given')], "needs config.study.generator 'given'"),
    ([('study.select', {'name': 'top_k'})], "config.study.losses.group.dpo needs pairs: not select 'top_k'"),
    ([('study.losses.group.grpo', {'weight': 1.0})], 'group.grpo needs the score of every completion: not select'),
    ([('study.losses.text.simpo', {'weight': 1.0})], 'text.simpo learns from judged completions: only the term group'),
    ([('study.losses.group.hinge', {'weight': 1.0, 'wpo': 1})], 'group.hinge.wpo=1 must be true or false'),
    ([('study.losses.group.hinge', {'weight': 1.0, 'ld_alpha': 2.0})], 'hinge.ld_alpha=2.0'),
    ([('study.losses.group.hinge', {'weight': 1.0, 'divergence': 'j'})], "divergence='j': choose one of reverse_kl"),
    ([('study.losses.group.aot', {'weight': 1.0, 'wpo': True})], "'aot' does not take wpo; it takes beta, label_smoo"),
    ([('study.losses.group.simpo', {'weight': 1.0, 'gama': 1.0})], "Did you mean 'gamma'?"),
    ([('study.reference.rate', 0.0)], 'config.study.reference.rate=0.0: a refresh moves the reference'),
    ([('study.reference.rate', 0.6), ('model.lora.rank', 4)], 'a mean of adapters is no mean of models'),
    ([('study.reference.rate', 0.6)], "rate=0.6 moves the role 'ref' when it is refreshed"),
    (
      [('study.judge', {'name': 'likelihood', 'role': 'policy'})],
      "judge.role='policy': 'likelihood' would reward what",
    ),
    ([('study.judge', {'name': 'majority', 'role': 'ref'})], "a self-reward is that of the frozen role 'base'"),
    ([('study.judge', {'name': 'majority', 'rule': 'lines'})], 'choose one of line, last_number, boxed, choice, tag.'),
    ([('study.select', KEPT)], "group.dpo learns who won, and config.study.select.ties='keep' has pairs that nobody"),
    ([('study.answers', 'lines')], "config.study.answers='lines': choose one of line, last_number"),
    ([('study.buffer', {'name': 'rings'})], "config.study.buffer.name='rings': choose one of fresh, append, ring. Did"),
    (
      [('study.buffer', {'name': 'ring', 'size': 0})],
      'config.study.buffer.size=0 must be a whole number of at least 1',
    ),
    ([('study.buffer', {'name': 'ring'})], 'config.study.buffer.size is missing'),
    (
      [('study.buffer', {'name': 'ring', 'size': 12}), ('study.losses.text', None)],
      'config.study.buffer.size=12 must be a multiple of config.study.batch=8',
    ),
    ([('study.buffer', {'name': 'append', 'size': 16})], "losses.text is about the round's own texts, which no buffer"),
    ([('study.generator.min_p', 1.5)], 'config.study.generator.min_p=1.5 must be a number from 0.0 to 1.0.'),
    ([('study.generator.stop', 'END')], "config.study.generator.stop='END' must be a tuple."),
    (
      [('study.generator.opponent', 'bas')],
      "'bas': choose one of policy, base, ref, teacher. Did you mean 'base'?",
    ),
    ([('study.judge.role', 1)], 'config.study.judge.role=1 must be a string.'),
    ([('optimizer.warmup', 100)], 'config.optimizer.warmup=100 must be a number from 0.0 to 1.0.'),
    ([('study.losses.group.optimism', {'weight': 1.0})], 'members of source 1, and there are none: set config.study.'),
    ([('study.losses.group.sppo', {'weight': 1.0})], "set config.study.select to best_vs with score='win', or take"),
    (
      [('study.losses.group', {'rloo': {'weight': 1.0}}), ('study.generator.group', 1), ('study.select', EVERYTHING)],
      'generator.group=1, but config.study.losses.group.rloo compares completions',
    ),
    ([('model.lora.targets', ('q',))], 'config.model.lora.targets are set, but rank=0 trains all parameters'),
    ([('model.lora.rank', 4), ('model.lora.alpha', 0.0)], 'config.model.lora.alpha=0 scales the adapters away'),
    ([('model.lora.rank', -1)], 'config.model.lora.rank=-1 must be a whole number of at least 0'),
    ([('mesh.data', 16)], 'needs 16 devices; this machine has 8.'),
    ([('mesh.fsdp', -1)], 'at most one is -1'),
    ([('mesh.data', 0)], 'sizes are positive'),
  ],
)
def test_check_names_the_key_and_what_to_do(edits, message):
  problems = checks.check(edited(*edits), devices=8)
  assert any(message in problem for problem in problems), problems


def test_a_stage_without_rounds_among_others_is_told():
  config = load('pit', 'size=tiny')
  config.fit.rounds = 0
  (problem,) = checks.check(config, 1)
  assert problem.startswith('config.fit.rounds=0, and other stages have rounds: leave it out of config.stages=')
  for name in config.stages:
    config[name].rounds = 0
  assert not checks.check(config, 1)


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    (
      [('inner.documents', 'line')],
      "config.inner.documents='line': choose one of lines, whole, .* Did you mean 'lines'",
    ),
    ([('inner.grade', 'right')], "config.inner.grade='right': choose one of contains, exact, f1, verbatim"),
    (
      [('inner.grade', 'model'), ('study.judge.role', 'teacher')],
      "'model' is the role base, and config.study.judge.role",
    ),
    ([('inner.until', 'stop')], "config.inner.until='stop': choose one of line, end"),
    ([('inner.document', 'a text')], 'config.inner.document lacks {line}'),
    ([('inner.question', 'Answer:')], 'config.inner.question lacks {question}'),
    ([('inner.targets', ('q$',)), ('inner.rank', 0)], 'config.inner.targets are set, but rank=0'),
    ([('inner.alpha', 0.0)], 'config.inner.alpha=0 scales the adapters away'),
    ([('inner.optimizer', 'muon')], "config.inner.optimizer 'muon' orthogonalizes whole kernels"),
    ([('inner.rank', -1)], 'config.inner.rank=-1 must be a whole number of at least 0'),
    ([('inner.epoch', 3)], r'config.inner.epoch: there is no such key. Did you mean .epochs.\?'),
    ([('study.judge.seeds', 0)], 'config.study.judge.seeds=0 must be a whole number of at least 1'),
    ([('study.judge.reward', 'gains')], "config.study.judge.reward='gains': choose one of accuracy, gain, logp"),
    ([('study.buffer', dict(name='append', size=100))], 'keeps scores of models that the policy no longer is'),
  ],
)
def test_what_is_wrong_with_inner_runs_is_told(edits, message):
  config = load('seal', 'size=tiny')
  for key, value in edits:
    *path, last = key.split('.')
    section = config
    for name in path:
      section = section[name]
    with section.unlocked():
      section[last] = value
  assert any(re.search(message, problem) for problem in checks.check(config, 1)), checks.check(config, 1)


@pytest.mark.parametrize(('name', 'arg'), VARIANTS)
def test_the_worlds_of_shipped_configs_are_there(name, arg):
  config = load(name, arg)
  for source in (config.data.source, *config.eval.sources.values()):
    if source.startswith('world:'):
      if 'count' in config.data.world:
        config.data.world.count = min(config.data.world.count, 400)
      assert build.load(config, source, 'test', 0).examples


def test_a_judge_that_trains_needs_to_know_how():
  config = load('seal', 'size=tiny')
  with config.unlocked():
    del config.inner
  assert any("'inner_update' needs the section config.inner" in problem for problem in checks.check(config, 1))
  for arg in ('rl=grpo,keep=improving', 'judge=random,keep=improving', 'reward=logp,keep=improving'):
    with pytest.raises(UserError, match='keep=improving is about'):
      load('seal', f'size=tiny,{arg}')
  bare = [Example(text='a', where='x.jsonl:1')]
  problems = checks.check_examples(load('seal', 'size=tiny,task=arc'), bare)
  assert any("documents='choice' trains on tasks on grids. x.jsonl:1: " in problem for problem in problems), problems
  assert any(
    "'questions'" in problem and 'x.jsonl:1' in problem
    for problem in checks.check_examples(load('seal', 'size=tiny'), bare)
  )


def test_micro_batches_fill_the_data_axes_of_the_mesh():
  assert checks.check(edited(('study.micro', 4)), devices=4) == []
  (problem,) = checks.check(edited(('study.micro', 2)), devices=4)
  assert problem.startswith('config.study.micro=2 must be a multiple of 4, the devices of the mesh axes')


@pytest.mark.parametrize('name', update.OPTIMIZERS)
def test_every_optimizer_can_be_chosen_from_the_command_line(name):
  keys = MUON | {'name': name}
  assert checks.check(load('past', 'size=tiny', f'--config.optimizer={keys}'), 1) == []


def test_check_lists_all_problems_of_a_kind_at_once():
  problems = checks.check(edited(('study.batch', 6), ('eval.chunk', 9), ('model.dtype', 'float16')), devices=4)
  assert [p.split('=')[0].split(' ')[0] for p in problems] == [
    'config.model.dtype',
    'config.study.curriculum.prompts',
    'config.eval.chunk',
    'config.study.batch',
  ]


def test_a_stage_that_is_not_listed_is_no_problem():
  config = settings.plain(load())
  assert checks.check(ConfigDict({**config, 'warm': config['study']}), 1) == []


def test_check_model_knows_what_a_model_that_grades_reads():
  config, model = load('seal', 'size=tiny'), models.load('scratch:tiny')
  config.inner.update(prompt_length=400, answer_length=50)
  assert checks.check_model(config, model) == []
  config.inner.grade = 'model'
  (problem,) = checks.check_model(config, model)
  assert "the prompt of grade='model'" in problem and '512' in problem


def test_check_model_knows_the_context_and_the_heads():
  model = models.load('scratch:tiny')
  assert checks.check_model(load(), model) == []
  config = edited(('view.prompt_length', 500), ('study.judge.target_length', 500), ('mesh.tensor', 3))
  assert checks.check_model(config, model) == [
    'config.view.prompt_length + study.generator.length = 532 tokens; the model has room for 512.',
    'config.study.generator.length + study.judge.target_length = 532 tokens; the model has room for 512.',
    'config.mesh.tensor=3 does not divide the 4 and 2 heads of the model.',
  ]


# --- the command line ---------------------------------------------------------------------------------------------

DATA = {
  'empty.jsonl': '',
  'bad.jsonl': '{"text": "Green."}\n{"text": "Bl\n',
  'miss.jsonl': '{"text": "Green."}\n{"txt": "Blue."}\n',
  'some.jsonl': '{"text": "Green.", "t": "a", "q": []}\n{"text": "Blue.", "t": null, "q": []}\n',
  'syntax.py': 'def get_config(arg=""):\n  return 1 +\n',
  'fails.py': 'def get_config(arg=""):\n  return {}["a"]\n',
  'other.py': 'def config(arg=""):\n  return 1\n',
  'dict.py': 'def get_config(arg=""):\n  return {}\n',
}
TINY = '--config=configs/past.py:size=tiny'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  for name, text in DATA.items():
    (tmp_path / name).write_text(text)
  return tmp_path


# Command line ({d}: a folder with the files above; --workdir is added) -> parts of the message.
EARLY = [
  (f'{TINY} --config.study.judge.nmae=x', ["has no key 'nmae'", 'Did you mean config.study.judge.name?']),
  (f'{TINY} --config.optimzer.lr=1', ["config has no key 'optimzer'", 'Did you mean config.optimizer?']),
  (f'{TINY} --config.study.rounds.x=1', ['config.study.rounds is a value (2)']),
  (f'{TINY} --config.study.rounds=1.5', ['--config.study.rounds=1.5: expected a whole number. The config has 2.']),
  (f'{TINY} --config.optimizer.lr=abc', ['--config.optimizer.lr=abc: expected a number']),
  (f'{TINY} --config.view.chat=perhaps', ['expected true or false']),
  (f'{TINY} --config.study.judge=random', ["expected a dict, like {'name': 'random'}"]),
  (f'{TINY} --config.seed', ['--config.seed has no value']),
  ('--config=configs/past.py:siez=tiny', ["config argument 'siez': did you mean 'size'?"]),
  ('--config=configs/past.py:size=huge', ['config argument size=huge: choose one of']),
  ('--config=configs/pas.py', ["no file 'configs/pas.py'", 'Did you mean configs/past.py?']),
  ('--config={d}/syntax.py', ['syntax.py:2: SyntaxError']),
  ('--config={d}/fails.py', ["fails.py:2: KeyError: 'a'"]),
  ('--config={d}/other.py', ['defines no get_config(arg)']),
  ('--config={d}/dict.py', ['returns dict, not a ConfigDict']),
  ('--config={d}/empty.jsonl', ['a config is a Python file']),
  ('', ['--config=... is missing']),
  (f'{TINY} --workdir=', ['--workdir=... is missing']),
  (f'{TINY} --wrkdir=x', ['no flag --wrkdir', 'Did you mean --workdir?']),
  (f'{TINY} foo', ["unexpected argument 'foo'"]),
  (f'{TINY} --config.study.judge.name=random', ["'random' does not take max_overlap", ':judge=random']),
  (f'{TINY} --config.study.judge.name=randm', ["Did you mean 'random'?"]),
  (f'{TINY} --config.study.judge.target=answer', ["Did you mean 'answers'?"]),
  (f'{TINY} --config.study.judge.role=bse', ["Did you mean 'base'?"]),
  (f'{TINY} --config.study.select.name=bestvs', ["Did you mean 'best_vs'?"]),
  (f'{TINY} --config.study.generator.name=samplr', ["Did you mean 'sampler'?"]),
  (f'{TINY} --config.study.curriculum.name=stage', ["Did you mean 'stages'?"]),
  (f'{TINY} --config.optimizer.name=adam', ["Did you mean 'adamw'?"]),
  (f'{TINY} --config.view.train_view=non', ["Did you mean 'none'?"]),
  (f'{TINY} --config.study.batch=4', ['config.study.batch=4 must be a multiple of 8, the devices of the mesh axes']),
  (f'{TINY} --config.study.curriculum.prompts=12', ['must be a multiple of config.study.batch=8']),
  (f'{TINY} --config.study.generator.group=1', ["generator.group=1, but select 'best_vs' compares completions"]),
  (
    f'{TINY} --config.study.generator.slots=12',
    ['config.study.generator.slots=12 must be R x C', 'the 8 prompts of a call', 'the group of 4', '; 8 is near'],
  ),
  (f'{TINY} --config.study.rounds=-2', ['config.study.rounds=-2 must be a whole number of at least 0.']),
  (f'{TINY} --config.study.generator.length=0', ['length=0 must be a whole number of at least 1.']),
  (f'{TINY} --config.study.curriculum.temperature=-1', ['curriculum.temperature=-1.0: give a number of at least 0']),
  (f'{TINY} --config.study.losses.group.dpo.beta=-1', ['dpo.beta=-1.0: give a number of at least 0']),
  (f'{TINY} --config.stages=()', ['config.stages is empty']),
  (f'{TINY} --config.stages=stdy', ["config.stages names 'stdy'", "Did you mean 'study'?"]),
  (f'{TINY} --config.data.source={{d}}/empty.jsonl', ['empty.jsonl is empty']),
  (f'{TINY} --config.data.source={{d}}/emty.jsonl', ['no such file', 'did you mean empty.jsonl?']),
  (f'{TINY} --config.data.source={{d}}/bad.jsonl', ['bad.jsonl:2: not a line of JSON', 'on_error=skip']),
  (f'{TINY} --config.data.source={{d}}/miss.jsonl', ["miss.jsonl:2: no column 'text'", 'columns present: txt']),
  (
    f'{TINY} --config.data.source={{d}}/some.jsonl --config.data.target=t --config.study.judge.target=target',
    ["judge with target='target' needs 'target', which 1 of 2 rows lack", 'some.jsonl:2 first'],
  ),
  (
    f'{TINY} --config.data.source={{d}}/some.jsonl --config.data.questions=q --config.study.judge.target=answers',
    ["judge with target='answers' needs 'questions', which 2 of 2 rows lack"],
  ),
  (
    '--config=configs/past.py:size=tiny,judge=text --config.data.source={d}/some.jsonl',
    ["judge with rule='exact' needs 'target', which 2 of 2 rows lack"],
  ),
  (f'{TINY} --workdir={{d}}/empty.jsonl/run', ['cannot write in', 'Not a directory', 'another --workdir']),
]
LATE = [
  (f'{TINY} --config.model.spec=nowhere/model', ["'nowhere/model' is neither a directory nor a model spec"]),
  (
    f'{TINY} --config.model.lora.rank=4 --config.model.lora.targets=layers/qv',
    ["config.model.lora.targets: 'layers/qv' is found in no linear layer; there are", 'layers/v', 'Did you mean'],
  ),
  (f'{TINY} --config.view.prompt_length=600', ['view.prompt_length + study.generator.length = 632 tokens']),
  (f'{TINY} --config.study.generator.stop=ab', ["'ab' is 2 tokens; a stop text is exactly one token"]),
  ('--config=configs/past.py:size=tiny,judge=text --config.study.judge.rule=numbr', ["judge.rule='numbr': choose"]),
]


def refused(folder, capsys, line: str) -> str:
  """What `past study` prints when it refuses this command line, which must leave nothing behind."""
  argv = line.format(d=folder).split()
  workdir = [] if any(a.startswith('--workdir') for a in argv) else [f'--workdir={folder}/run']
  assert main(['study', *argv, *workdir]) == 2
  error = capsys.readouterr().err
  assert 'past study: ' in error and 'Traceback' not in error
  assert not list((folder / 'run').glob('*')), 'a refused config must not claim the workdir'
  return error


@pytest.mark.parametrize('line, parts', EARLY)
def test_a_mistake_is_told_before_the_model_is_looked_for(folder, capsys, monkeypatch, line, parts):
  monkeypatch.setattr(models, 'load', lambda *args, **kwargs: pytest.fail('the model was loaded'))
  error = refused(folder, capsys, line)
  assert [part for part in parts if part not in error] == [], error


@pytest.mark.parametrize('line, parts', LATE)
def test_what_needs_the_model_is_told_before_its_weights_are_read(folder, capsys, monkeypatch, line, parts):
  monkeypatch.setattr(train.Loop, '__init__', lambda *args: pytest.fail('the loop was made'))
  error = refused(folder, capsys, line)
  assert [part for part in parts if part not in error] == [], error


def test_another_configs_workdir_is_left_alone(folder, capsys, monkeypatch):
  monkeypatch.setattr(models, 'load', lambda *args, **kwargs: pytest.fail('the model was loaded'))
  workdir = folder / 'run'
  workdir.mkdir()
  study.claim(workdir, settings.plain(load()))
  before = (workdir / 'config.json').read_text()
  assert main(['study', TINY, f'--workdir={workdir}', '--config.seed=3', '--config.study.rounds=5']) == 2
  error = capsys.readouterr().err
  assert 'was made with another config' in error and 'seed: 0 -> 3' in error and 'rounds' not in error
  assert (workdir / 'config.json').read_text() == before
  (workdir / 'config.json').write_text('{')
  assert main(['study', TINY, f'--workdir={workdir}']) == 2
  assert 'is not readable as JSON' in capsys.readouterr().err


def test_help_and_unknown_commands(capsys):
  for argv in ([], ['--help'], ['study', '--help'], ['study', '--config=nowhere.py', '-h']):
    assert main(argv) == 0
    assert 'study' in capsys.readouterr().out
  assert main(['studdy']) == 2
  assert "Did you mean 'past study'?" in capsys.readouterr().err


def test_zeros_are_values_and_cut_texts_are_told(tmp_path, monkeypatch, capsys):
  """Temperature 0 and beta 0 on rows of which one does not fit and one is no JSON; shapes as small as they get."""
  monkeypatch.chdir(ROOT)
  data = tmp_path / 'long.jsonl'
  lines = [json.dumps({'text': 'The lamp is green. ' * 40}), json.dumps({'text': 'Blue.'}), '{"text"']
  data.write_text('\n'.join(lines))
  values = {
    'data.source': data,
    'data.on_error': 'skip',
    'view.train_view': 'same',
    'view.prompt_length': 24,
    'view.text_length': 8,
    'study.rounds': 1,
    'study.curriculum.temperature': 0,
    'study.curriculum.epochs': 1,
    'study.curriculum.prompts': 2,
    'study.batch': 2,
    'study.sample_prompts': 2,
    'study.generator.length': 4,
    'study.generator.group': 2,
    'study.losses': "{'group': {'nll': {'weight': 1.0}, 'dpo': {'weight': 1.0, 'beta': 0.0}}}",  # one term: one program
    'study.reference.max_gap': 0,
    'mesh.data': 1,
    'eval.heldout': '',
  }
  flags = [f'--config.{key}={value}' for key, value in values.items()]
  assert main(['study', f'{TINY},judge=random', f'--workdir={tmp_path}/run', *flags]) == 0
  error = capsys.readouterr().err
  assert 'skipped' in error and 'long.jsonl:3' in error
  assert '1 of 2 prompts were cut' in error and '1 of 2 texts were cut' in error
  (step,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert (step['study/trimmed_prompts'], step['study/trimmed_texts']) == (1, 1)
  assert step['rewards/margins'] == 0 and step['loss'] > 0
  for group in rows(tmp_path / 'run' / 'groups.jsonl'):  # greedy: both the same
    assert len({completion['text'] for completion in group['completions']}) == 1


def write() -> None:
  GOLDEN.mkdir(exist_ok=True)
  for path in GOLDEN.glob('*.json'):
    path.unlink()
  for variant in VARIANTS:
    golden(*variant).write_text(resolved(*variant))


def test_a_limited_evaluation_asks_every_kind():
  kinds = [k for _ in range(5) for k in ('forward', 'forward', 'reversed')]
  pairs = [(i, Question('q', 'a', kind)) for i, kind in enumerate(kinds)]
  assert [q.kind for _, q in build.some(pairs, 4)] == ['forward', 'reversed'] * 2
  assert len({i for i, _ in build.some(pairs, 14)}) == 14
  assert build.some(pairs, 0) == pairs


if __name__ == '__main__':
  if sys.argv[1:] != ['--write']:
    sys.exit('usage: python tests/config_test.py --write')
  write()
