"""Judges as directories, and `past export` of a run that trains one."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import tokenizers
from safetensors.numpy import load_file, save_file
from small import assert_same, edit_config, random_params
from tokenizers import AddedToken

from past_jax import lora, models
from past_jax.checkpoint import Checkpoints
from past_jax.main import main
from past_jax.models import weights
from past_jax.models.config import TINY
from past_jax.models.families import FAMILIES
from past_jax.scores import group_scores
from past_jax.text import Tokenizer, byte_tokenizer
from past_jax.types import TrainState, UserError


def judge_of(config, seed=0):
  """Random parameters with a head."""
  rng = np.random.default_rng(seed + 100)
  return random_params(config, seed) | {'score': {'kernel': rng.standard_normal((config.width, 1)).astype(np.float32)}}


def without_output(params):
  return {name: leaves for name, leaves in params.items() if name != 'head'}


# --- directories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('tied', [True, False])
def test_a_judge_is_written_as_a_classifier_and_read_again(tmp_path, mesh, tied):
  config = small.llama(tie_word_embeddings=tied)
  params = judge_of(config)
  assert ('head' in params) != tied
  weights.write(tmp_path / 'judge', params, config, byte_tokenizer())
  written = json.loads((tmp_path / 'judge' / 'config.json').read_text())
  assert written['architectures'] == ['LlamaForSequenceClassification']
  assert len(written['id2label']) == len(written['label2id']) == 1
  assert written['tie_word_embeddings'] == tied
  assert written['pad_token_id'] == byte_tokenizer().bos_id
  tensors = load_file(tmp_path / 'judge' / 'model.safetensors')
  assert 'lm_head.weight' not in tensors
  np.testing.assert_array_equal(tensors['score.weight'], params['score']['kernel'].T)
  model = models.load(str(tmp_path / 'judge'), judge=True)
  found = model.read(mesh)
  assert_same(jax.tree.map(np.asarray, found), without_output(params))
  assert not model.tokenizer.differs(byte_tokenizer())
  # Once more, from what was read.
  weights.write(tmp_path / 'again', found, model.config, model.tokenizer)
  for name in ('config.json', 'model.safetensors', 'tokenizer_config.json'):
    assert (tmp_path / 'again' / name).read_bytes() == (tmp_path / 'judge' / name).read_bytes()


def test_a_judge_is_read_onto_eight_devices(tmp_path):
  from past_jax import mesh as mesh_lib

  weights.write(tmp_path / 'judge', judge_of(TINY), TINY, byte_tokenizer())
  found = models.load(str(tmp_path / 'judge'), judge=True).read(mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2}))
  assert {s.data.shape for s in found['score']['kernel'].addressable_shards} == {(32, 1)}
  assert_same(jax.tree.map(np.asarray, found), judge_of(TINY))


def test_what_is_a_judge_and_what_is_not(tmp_path):
  weights.write(tmp_path / 'judge', judge_of(TINY), TINY, byte_tokenizer())
  weights.write(tmp_path / 'policy', random_params(TINY), TINY, byte_tokenizer())
  with pytest.raises(UserError, match='judge is a judge: it has a scalar head, and no output head to write a text'):
    models.load(str(tmp_path / 'judge'))
  for spec in (str(tmp_path / 'policy'), 'scratch:tiny'):
    with pytest.raises(UserError, match=f'{spec} is no judge: it has no scalar head. past export --role=judge'):
      models.load(spec, judge=True)


def test_files_of_judges_that_do_not_fit(tmp_path, mesh):
  weights.write(tmp_path, judge_of(TINY), TINY, byte_tokenizer())
  read = lambda: models.load(str(tmp_path), judge=True).read(mesh)
  path = tmp_path / 'model.safetensors'
  tensors = load_file(path)
  save_file({**tensors, 'lm_head.weight': np.zeros((264, 64), np.float32)}, path)  # nothing reads it
  assert_same(jax.tree.map(np.asarray, read()), judge_of(TINY))
  save_file({**tensors, 'score.weight': np.zeros((3, 64), np.float32)}, path)
  with pytest.raises(UserError, match=r'score.weight is \[3, 64\]; config.json makes it \[1, 64\]'):
    read()
  save_file({name: x for name, x in tensors.items() if name != 'score.weight'}, path)
  with pytest.raises(UserError, match='1 tensors are missing: score.weight'):
    read()
  for labels, n in ((None, 2), ({'0': 'a', '1': 'b', '2': 'c'}, 3)):  # two is what transformers understands by silence
    edit_config(tmp_path, id2label=labels, label2id=None)
    with pytest.raises(UserError, match=f'a classifier of {n} labels is not supported; a judge has one'):
      read()


def test_the_names_of_classifiers_are_those_of_transformers():
  from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

  assert {name: family.classifier for name, family in FAMILIES.items()} == {name: NAMES[name] for name in FAMILIES}


def tokenizer_of(names, bos, eos, **config):
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={'a': 0}, merges=[]))
  backend.add_special_tokens([AddedToken(name, special=True) for name in names])
  backend.add_tokens([AddedToken('word', special=False)])
  return Tokenizer(
    backend, bos_id=backend.token_to_id(bos) if bos else None, eos_id=names.index(eos) + 1, config=config
  )


def test_padding_is_what_ends_no_completion():
  names = ['<s>', '</s>', '<p>']
  of = lambda *args, limit=9, **config: tokenizer_of(names, *args, **config).pad_id(limit)
  assert of('<s>', '</s>', pad_token='<p>') == 3  # named
  assert of('<s>', '</s>', pad_token='</s>') == 1  # the end is no padding: the BOS
  assert of('</s>', '</s>') == 1 and of(None, '<s>') == 2  # any other
  assert of('<s>', '</s>', pad_token='<p>', limit=3) == 1  # the model has no embedding for it
  assert tokenizer_of(['</s>'], '</s>', '</s>').pad_id(9) is None


# --- past export --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
  """run(*flags) -> (exit code, stdout, stderr) of past export, in a folder of its own."""
  monkeypatch.chdir(tmp_path)

  def export(*flags):
    capsys.readouterr()
    code = main(['export', *flags])
    return code, *capsys.readouterr()

  return export


def workdir(name, trees, *, rank=0, base=None, loss='gap'):
  """As `past study` leaves it: {step: the arrays of its checkpoint}."""
  os.mkdir(name)
  stage = lambda trains, loss: {'trains': trains, 'losses': {'group': {loss: {'weight': 1.0}}}}
  config = {'seed': 0, 'model': {'spec': 'scratch:tiny', 'dtype': 'float32', 'lora': {'rank': rank, 'alpha': 8.0}}}
  config |= {'stages': ['sft', 'fit'], 'sft': stage('policy', 'nll'), 'fit': stage('judge', loss)}
  with open(f'{name}/config.json', 'w') as file:
    json.dump(config, file)
  checkpoints = Checkpoints(f'{name}/checkpoints', keep=9)
  for step, tree in trees.items():
    checkpoints.save(step, tree, {'base': base})
  checkpoints.wait()


def state(params):
  return TrainState(jnp.int32(0), params, optax.adam(1e-3).init(params))


def test_export_takes_the_role_wherever_it_is(run, mesh):
  policy, judge = random_params(TINY, 1), judge_of(TINY, 2)
  trees = {
    1: {'state': state(policy)},  # before the judge begins
    2: {'state': state(judge), 'policy': policy},  # it is trained
    3: {'state': state(policy), 'judge': judge, 'ref': random_params(TINY, 3)},  # and used
  }
  workdir('run', trees)
  for step in (1, 2, 3):
    assert run('--workdir=run', f'--out=policy{step}', f'--step={step}')[0] == 0
    assert_same(jax.tree.map(np.asarray, models.load(f'policy{step}').read(mesh)), policy)
  for step in (2, 3):
    code, out, err = run('--workdir=run', f'--out=judge{step}', f'--step={step}', '--role=judge')
    said = f'judge{step}: the judge on scratch:tiny as studied in run up to step {step}, in float32. '
    assert (code, out, err) == (0, f'{said}Use it with --judge_model=judge{step} --judge_reads=draft.\n', '')
    assert_same(jax.tree.map(np.asarray, models.load(f'judge{step}', judge=True).read(mesh)), judge)
  code, out, err = run('--workdir=run', '--out=x', '--role=judge', '--step=1')
  assert (code, out) == (2, '') and err.startswith('past export: run has trained no judge yet: ')
  workdir('rewards', {2: trees[2]}, loss='bradley_terry')
  assert run('--workdir=rewards', '--out=rm', '--role=judge')[1].endswith('--judge_model=rm --judge_reads=prompt.\n')


def test_export_merges_the_judge_of_a_run_with_adapters(run, policy, ragged, mesh):
  base = models.load('scratch:tiny').read(mesh)
  noisy = lambda tree, seed: jax.tree.map(
    lambda x: np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32) * 0.1, tree
  )
  new = lora.init(jax.random.key(0), base, targets=(), rank=4, input_axes={'o': 2})
  adapters, judge = noisy(new, 1), noisy(new | {'score': {'kernel': np.zeros((64, 1))}}, 2)
  trees = {5: {'state': state(adapters), 'judge': judge}}
  workdir('run', trees, rank=4, base=int(lora.fingerprint(base)))
  assert run('--workdir=run', '--out=judge', '--role=judge')[0] == 0
  merged = models.load('judge', judge=True).read(mesh)
  beside = lora.attach(base, {name: x for name, x in judge.items() if name != 'score'}, 8.0 / 4)
  score = jax.jit(lambda params: group_scores(policy, params, *ragged))
  wanted = np.asarray(score(beside | {'score': judge['score']}))
  assert wanted.std() > 0.1
  np.testing.assert_allclose(np.asarray(score(merged)), wanted, atol=1e-5)
  code, out, err = run('--workdir=run', '--out=x', '--role=judge', '--adapter')
  assert (code, out) == (2, '') and 'past export: --adapter is for a policy: ' in err
  assert run('--workdir=run', '--out=adapter', '--adapter')[0] == 0
  assert not any('score' in name for name in load_file('adapter/adapter_model.safetensors'))


def test_export_of_a_run_without_a_judge(run):
  workdir('run', {1: {'state': state(random_params(TINY))}}, loss='gap')
  with open('run/config.json') as file:
    config = json.load(file)
  with open('run/config.json', 'w') as file:
    json.dump(config | {'stages': ['sft']}, file)
  code, out, err = run('--workdir=run', '--out=x', '--role=judge')
  said = "past export: run trains no judge: no stage of its config has trains='judge'.\n"
  assert (code, out, err) == (2, '', said) and not os.path.exists('x')
