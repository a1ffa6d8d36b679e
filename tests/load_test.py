"""`models.load`: tokenizers that hold more than the model embeds, and where one reads of it."""

import json

import jax
import pytest
import small
import tokenizers

from past_jax import models
from past_jax.commands import score
from past_jax.models import weights
from past_jax.text import byte_tokenizer
from past_jax.types import UserError

CONFIG = small.llama(vocab_size=260)  # the ids of the byte tokenizer, none to spare


@pytest.fixture
def directory(tmp_path):
  """A model whose tokenizer has one more token, <image>, as Gemma 3's text models do."""
  weights.write(tmp_path / 'model', small.random_params(CONFIG), CONFIG, byte_tokenizer())
  file = tmp_path / 'model/tokenizer.json'
  backend = tokenizers.Tokenizer.from_file(str(file))
  backend.add_special_tokens(['<image>'])
  backend.save(str(file))
  return tmp_path / 'model'


def test_a_token_without_an_embedding_is_refused_where_it_is_read(directory):
  tokenizer = models.load(str(directory)).tokenizer
  assert (tokenizer.vocab_size, tokenizer.limit) == (261, 260)
  assert tokenizer.plain('an image') == [*b'an image']
  with pytest.raises(
    UserError, match=r"^'<image>' \(id 260\) is in a text, and this model embeds 260 ids: take it out"
  ):
    tokenizer.plain('an <image>')


@pytest.mark.parametrize('name', ['prompt', 'messages', 'completion'])
def test_score_says_in_which_row(directory, tmp_path, name):
  bad = {
    'prompt': {'prompt': '<image>', 'completion': ''},
    'messages': {'messages': [{'role': 'user', 'content': 'an <image>'}], 'completion': ''},
    'completion': {'prompt': 'a', 'completion': '<image>'},
  }[name]
  data = tmp_path / 'data.jsonl'
  data.write_text(json.dumps({'prompt': 'a', 'completion': 'b'}) + '\n' + json.dumps(bad) + '\n')
  flags = [f'--model={directory}', f'--data={data}', f'--out={tmp_path}/out.jsonl', '--mesh=1,1,1']
  with pytest.raises(UserError, match=rf"^{data}:2: '<image>' \(id 260\) is in a text"):
    score.run(flags)


def test_an_end_token_without_an_embedding_is_another_model(directory):
  config = directory / 'tokenizer_config.json'
  config.write_text(json.dumps(json.loads(config.read_text()) | {'eos_token': '<image>'}))
  with pytest.raises(UserError, match='the tokenizer has 261 ids and the embedding 260.*of different models'):
    models.load(str(directory))


@pytest.mark.parametrize('spec,parameters', [('scratch:tiny', 90_944), ('scratch:small', 477_056)])
def test_models_from_scratch_are_as_large_as_they_say(spec, parameters):
  model = models.load(spec)
  shapes = jax.eval_shape(model.policy.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


def test_a_choice_of_rope_that_a_model_does_not_have_is_refused(directory):
  for spec in ('scratch:tiny', str(directory)):
    with pytest.raises(UserError, match=f"{spec}.*rope 'long' is a choice of longrope's factors"):
      models.load(spec, rope='long')
