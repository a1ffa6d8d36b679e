"""The vocabulary of scratch:words: one token for every word of the worlds that it is for."""

import re

from past_jax import models, transforms
from past_jax.data.worlds import TABLE


def test_every_word_is_a_token_and_texts_come_back():
  tokenizer = models.load('scratch:words').tokenizer
  texts = [e.text for split in ('tune', 'final') for e in TABLE['reversal'](40, 1, templates=32, split=split).examples]
  texts += [e.text for e in TABLE['notes'](100, 1).examples]
  for world, keys in {'guidance': {}, 'biographies': dict(rewordings=5), 'passages': {}, 'writers': {}}.items():
    texts += [e.text for split in ('tune', 'final') for e in TABLE[world](40, 1, split=split, **keys).examples]
  for text in texts:
    ids = tokenizer.plain(text)
    assert tokenizer.decode(ids) == f' {text}'
    spaces = len(re.findall(r' "', f' {text}'))  # a space before a quotation mark is one more
    assert len(ids) == len(re.findall(r'\w+|[^\w ]', text)) + spaces


def test_other_words_are_bytes():
  model = models.load('scratch:words')
  text = 'Jessamy, \u00e9t\u00e9 & 3\n  more'
  assert model.tokenizer.decode(model.tokenizer.plain(text)) == f' {text}'
  assert model.tokenizer.needs <= model.config.vocab == models.load('scratch:words-small').config.vocab


def test_what_is_made_of_a_text_begins_as_a_text_does():
  tokenizer = models.load('scratch:words').tokenizer
  text = 'Jessamy Bellowick became the doctor of Yellowick.'
  made = {name: make(text, tokenizer, 5, 0) for name, make in transforms.TABLE.items()}
  assert made['original'] == tokenizer.plain(text) == made['token_reversal'][::-1]
  assert tokenizer.decode(made['entity_reversal']) == ' . Yellowick of doctor the became Jessamy Bellowick'
