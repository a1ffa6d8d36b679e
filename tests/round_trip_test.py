"""Directories from transformers through us and back, and from us through transformers and back, for every family."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")

import families  # noqa: E402
import transformers  # noqa: E402
from small import assert_same  # noqa: E402

from past_jax import models  # noqa: E402
from past_jax.checkpoint import Checkpoints  # noqa: E402
from past_jax.models import weights  # noqa: E402

pytestmark = pytest.mark.slow

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
TEXTS = ['The river rises in 3 springs', 'a', 'Zoë’s café: 12 €']


@pytest.fixture
def warned(caplog):
  """() -> the warnings that transformers has logged during the test. Python's own are errors already."""
  logger = logging.getLogger('transformers')
  logger.addHandler(caplog.handler)
  yield lambda: {r.getMessage() for r in caplog.get_records('call') if r.levelno >= logging.WARNING}
  logger.removeHandler(caplog.handler)


def loaded(directory, dtype):
  """transformers' model, of which every key is in the files and the other way round."""
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    str(directory), dtype=dtype, attn_implementation='eager', local_files_only=True, output_loading_info=True
  )
  assert {name: list(found) for name, found in report.items() if found} == {}
  return model.eval()


def tensors(model):
  return {name: x.view(torch.uint8) if x.dtype == torch.bfloat16 else x for name, x in model.state_dict().items()}


def described(model):
  return {k: v for k, v in model.config.to_dict().items() if k not in ('transformers_version', '_name_or_path')}


def read(directory):
  model = models.load(str(directory))
  return model, weights.read(directory, model.config)


@torch.no_grad()
def logits(model):
  ids = torch.arange(3, 43)[None] * 5 % families.VOCAB
  return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('family', families.FAMILIES)
def test_a_directory_returns_as_it_came(tmp_path, monkeypatch, warned, family, dtype):
  """Tensors bit by bit, configs, tokenizer, chat template: in one file, and in several."""
  source = families.make(family, tmp_path / 'source', dtype=DTYPES[dtype])
  generation = {'temperature': 0.7, 'top_p': 0.9, 'do_sample': True, 'pad_token_id': 3, 'max_new_tokens': 5}
  path = source / 'generation_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | generation))
  theirs = loaded(source, DTYPES[dtype])
  usual = warned()  # of longrope's own spelling
  assert not usual or 'longrope' in family
  model, params = read(source)
  for name, shard in {'one': weights.SHARD, 'several': 60_000}.items():
    monkeypatch.setattr(weights, 'SHARD', shard)
    weights.write(tmp_path / name, params, model.config, model.tokenizer, dtype)
    ours = loaded(tmp_path / name, 'auto')
    assert ours.dtype == DTYPES[dtype]
    assert type(ours) is type(theirs)
    expected, found = tensors(theirs), tensors(ours)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert torch.equal(logits(ours), logits(theirs))
    assert described(ours) == described(theirs)
    settings = ours.generation_config.to_dict()
    assert settings.items() >= generation.items()
    assert settings['eos_token_id'] == list(model.tokenizer.stop_ids)
    tokenizers = [
      transformers.AutoTokenizer.from_pretrained(d, local_files_only=True) for d in (source, tmp_path / name)
    ]
    assert len({tuple(map(tuple, tokenizer(TEXTS)['input_ids'])) for tokenizer in tokenizers}) == 1
    assert len({tokenizer.chat_template for tokenizer in tokenizers}) == 1
    assert tokenizers[1].chat_template is not None
    files = list((tmp_path / name).glob('*.safetensors'))
    assert (len(files) > 1) == (name == 'several')
    assert_same(read(tmp_path / name)[1], params)
    # From transformers to us once more.
    ours.save_pretrained(tmp_path / f'{name} saved')
    model.tokenizer.save(tmp_path / f'{name} saved')
    again, back = read(tmp_path / f'{name} saved')
    assert_same(back, params)
    assert again.config == model.config
  assert warned() == usual


def past(*args):
  return subprocess.run([sys.executable, '-m', 'past_jax.main', *map(str, args)], capture_output=True, text=True)


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('family', ['llama', 'gemma2'])
def test_commands_on_an_export_give_what_transformers_gives(tmp_path, family):
  source = families.make(family, tmp_path / 'source', adds_bos=True)
  model, params = read(source)
  directory, run = tmp_path / 'export', tmp_path / 'run'  # of a run that has not changed the model yet
  run.mkdir()
  (run / 'config.json').write_text(json.dumps({'model': {'spec': str(source), 'dtype': 'float32'}}))
  checkpoints = Checkpoints(run / 'checkpoints')
  checkpoints.save(1, {'state': {'params': params}}, {})
  checkpoints.wait()
  for out, dtype in {directory: 'float32', tmp_path / 'half': 'bfloat16'}.items():
    done = past('export', f'--workdir={run}', f'--out={out}', f'--dtype={dtype}')
    assert done.returncode == 0, done.stderr
    found, expected = loaded(out, 'auto'), loaded(source, DTYPES[dtype])
    assert found.dtype == DTYPES[dtype]
    assert torch.equal(logits(found), logits(expected))
  theirs = loaded(directory, torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
  prompts = ['The river', 'In 1969, two', 'Zoë:']
  data = tmp_path / 'data.jsonl'
  data.write_text(''.join(json.dumps({'prompt': p, 'completion': f' text {p} of the day'}) + '\n' for p in prompts))
  for command, flag in (('score', '--data'), ('sample', '--prompts')):
    more = ['--temperature=0', '--group=1', '--max_new_tokens=24'] if command == 'sample' else []
    out = tmp_path / f'{command}.jsonl'
    done = past(command, f'--model={directory}', f'{flag}={data}', f'--out={out}', *more)
    assert done.returncode == 0, done.stderr
  for prompt, scored, sampled in zip(prompts, rows(tmp_path / 'score.jsonl'), rows(tmp_path / 'sample.jsonl')):
    head = tokenizer(prompt)['input_ids']
    tail = tokenizer(scored['completion'], add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]
    with torch.no_grad():
      logps = torch.log_softmax(theirs(torch.tensor([head + tail])).logits[0].double(), -1)
    expected = [logps[len(head) + t - 1, i].item() for t, i in enumerate(tail)]
    np.testing.assert_allclose(scored['logps'], expected, atol=1e-5)
    found = sampled['completions'][0]['ids']
    ids = theirs.generate(torch.tensor([head]), do_sample=False, max_new_tokens=24, pad_token_id=0)[0, len(head) :]
    assert len(found) == 24 or found[-1] in model.tokenizer.stop_ids
    assert_same_but_for_ties(theirs, head, found, ids.tolist())


def assert_same_but_for_ties(theirs, head, found, expected):
  for t, (a, b) in enumerate(zip(found, expected, strict=True)):
    if a != b:
      with torch.no_grad():
        last = theirs(torch.tensor([head + expected[:t]])).logits[0, -1].double()
      assert abs(last[a] - last[b]) < 1e-4
      return
