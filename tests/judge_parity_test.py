"""Judges as files against torch: what we write transformers reads as a sequence classifier, and the other way round.

Slow: `pytest -m slow tests/judge_parity_test.py`.
"""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")

import families  # noqa: E402
import paths  # noqa: E402
import transformers  # noqa: E402
from small import assert_same  # noqa: E402

from past_jax import mesh as mesh_lib  # noqa: E402
from past_jax import models  # noqa: E402
from past_jax.models import weights  # noqa: E402
from past_jax.scores import group_scores  # noqa: E402

pytestmark = pytest.mark.slow

BOUND = 1e-5
GROUPS = paths.ragged(  # the second prompt has no token, and no row is empty
  seed=0,
  prompt_lengths=[24, 0, 7, 1],
  completion_lengths=[[16, 1, 9], [16, 3, 5], [1, 2, 16], [15, 16, 4]],
  P=24,
  T=16,
)


def scores(model, params):
  return np.asarray(jax.jit(group_scores, static_argnums=0)(model.policy, params, *GROUPS)).ravel()


def classifier(directory):
  """transformers' model, of which every key is in the files and the other way round."""
  model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    str(directory), dtype=torch.float32, attn_implementation='eager', local_files_only=True, output_loading_info=True
  )
  assert {name: list(found) for name, found in report.items() if found} == {}
  return model.eval()


@torch.no_grad()
def their_scores(directory, side):
  """Of all rows of GROUPS in one padded batch; '': each row alone."""
  model, rows = classifier(directory), paths.rows_of(*GROUPS)
  assert model.config.num_labels == 1
  if not side:
    return np.array([model(input_ids=torch.tensor([list(row)])).logits.item() for row in rows])
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, padding_side=side)
  assert tokenizer.pad_token_id == model.config.pad_token_id
  batch = tokenizer.pad({'input_ids': [list(map(int, row)) for row in rows]}, return_tensors='pt')
  logits = model(**batch).logits
  assert logits.shape == (len(rows), 1)
  return logits[:, 0].numpy()


def judge(name, directory, **changes):
  """(our model, its parameters and those of a random head) of a small random model of transformers."""
  model = models.load(str(families.make(name, directory, **changes)))
  params = model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
  width = model.config.width
  head = np.random.default_rng(3).standard_normal((width, 1)) / width**0.5  # for scores about as far apart as 1
  return model, params | {'score': {'kernel': head.astype(np.float32)}}


@pytest.mark.parametrize('name', ['llama', 'qwen2', 'gemma3', 'gpt2', 'gptneox'])
def test_transformers_scores_what_we_write(tmp_path, name):
  model, params = judge(name, tmp_path / 'source', pad_token_id=257)  # the end token, as many models have it
  ours = scores(model, params)
  assert ours.std() > 0.1
  out = tmp_path / 'judge'
  weights.write(out, params, model.config, model.tokenizer)
  config = json.loads((out / 'config.json').read_text())
  assert config['architectures'] == [type(classifier(out)).__name__]
  assert config['pad_token_id'] not in model.tokenizer.stop_ids
  for side in ('', 'right', *(('left',) if name != 'gpt2' else ())):  # whose positions count padding
    np.testing.assert_allclose(their_scores(out, side), ours, atol=BOUND, rtol=0)


@pytest.mark.parametrize('name', ['llama', 'qwen2'])
def test_we_score_what_transformers_writes(tmp_path, name):
  torch.manual_seed(0)
  config = families.config(name, num_labels=1, pad_token_id=256)
  theirs = transformers.AutoModelForSequenceClassification.from_config(config)
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(torch.randn(parameter.shape) * 0.1)
  theirs.save_pretrained(tmp_path / 'theirs')
  families.byte_tokenizer().save(tmp_path / 'theirs', pad=256)
  model = models.load(str(tmp_path / 'theirs'), judge=True)
  params = model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
  ours = scores(model, params)
  assert ours.std() > 0.1
  for side in ('', 'right'):
    np.testing.assert_allclose(ours, their_scores(tmp_path / 'theirs', side), atol=BOUND, rtol=0)
  # And once more through us.
  weights.write(tmp_path / 'ours', params, model.config, model.tokenizer)
  again = classifier(tmp_path / 'ours').state_dict()
  assert again.keys() == theirs.state_dict().keys()
  assert all(torch.equal(again[key], x) for key, x in theirs.state_dict().items())
  assert_same(weights.read(tmp_path / 'ours', models.load(str(tmp_path / 'ours'), judge=True).config), params)
