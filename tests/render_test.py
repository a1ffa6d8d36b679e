"""Examples to ids: templates, the three training views, and the empty prompt with and without a BOS."""

import numpy as np
import pytest

from past_jax.render import fill, renderer, text_batch
from past_jax.text import byte_tokenizer
from past_jax.types import Example, Plan, UserError

EXAMPLE = Example(prompt='p', text='a {prompt} in braces', anchors=('one', 'two', 'three'))
SHAPE = dict(instruction='Read: {text}\nNote:', prompt_length=48, text_length=24, completion_length=8)


def test_only_the_template_is_filled_in():
  assert fill('{text}|{prompt}|{anchor}|{other}', EXAMPLE) == 'a {prompt} in braces|p|one|{other}'


def decoded(tokenizer, prompts, b=0):
  n, P = int(prompts.length_B[b]), prompts.ids_BxP.shape[1]
  return tokenizer.decode([int(i) for i in prompts.ids_BxP[b, P - n :]])


@pytest.mark.parametrize(
  ('view', 'expected'),
  [('same', 'Read: a {prompt} in braces\nNote:'), ('instruction', 'Note about :'), ('none', '')],
)
def test_training_views(tokenizer, view, expected):
  render = renderer(tokenizer=tokenizer, train_view=view, train_instruction='Note about {text}:', **SHAPE)
  rendered = render([EXAMPLE, EXAMPLE], Plan())
  assert decoded(tokenizer, rendered.sample) == 'Read: a {prompt} in braces\nNote:'
  assert decoded(tokenizer, rendered.train) == expected
  assert rendered.train.ids_BxP.shape[0] == 2


def test_a_chat_instruction_goes_through_the_template(tokenizer):
  rendered = renderer(tokenizer=tokenizer, chat=True, **(SHAPE | {'prompt_length': 96}))([EXAMPLE], Plan())
  n = int(rendered.sample.length_B[0])
  ids = rendered.sample.ids_BxP[0, -n:].tolist()
  assert ids == tokenizer.chat([{'role': 'user', 'content': 'Read: a {prompt} in braces\nNote:'}])


@pytest.mark.parametrize('adds_bos', [False, True])
def test_the_raw_text_has_one_end_token_and_at_most_one_bos(adds_bos):
  tokenizer = byte_tokenizer(adds_bos)
  batch, trimmed = text_batch(tokenizer, ['abc', 'x' * 40], 8)
  assert trimmed == 1
  assert batch.prompts.length_B.tolist() == [int(adds_bos)] * 2
  first = batch.ids_BxGxT[0, 0, : batch.length_BxG[0, 0]].tolist()
  assert first == [*b'abc', tokenizer.eos_id]
  cut = batch.ids_BxGxT[1, 0].tolist()
  assert batch.length_BxG[1, 0] == 8 and tokenizer.eos_id not in cut
  if adds_bos:
    assert batch.prompts.ids_BxP[:, -1].tolist() == [tokenizer.bos_id] * 2


def test_an_empty_prompt_is_not_sampled_from(tokenizer):
  render = renderer(tokenizer=tokenizer, **(SHAPE | {'instruction': '{text}'}))
  with pytest.raises(UserError, match='row 3: its prompt for sampling is empty'):
    render([Example(text='a'), Example(prompt='p', where='row 3')], Plan())


def test_an_empty_text_teaches_nothing():
  batch, _ = text_batch(byte_tokenizer(adds_bos=True), ['', 'a'], 8)
  assert batch.length_BxG.tolist() == [[0], [2]]


def test_a_long_prompt_is_cut_on_the_left_and_counted():
  tokenizer = byte_tokenizer(adds_bos=True)
  render = renderer(tokenizer=tokenizer, **(SHAPE | {'prompt_length': 12}))
  rendered = render([EXAMPLE], Plan())
  assert rendered.trimmed['prompts'] == 1
  ids = rendered.sample.ids_BxP[0].tolist()
  assert ids[0] == tokenizer.bos_id and bytes(ids[1:]) == b'races\nNote:'


def test_given_completions_are_rendered_where_the_plan_asks(tokenizer):
  render = renderer(tokenizer=tokenizer, anchors=2, **SHAPE)
  given = render([EXAMPLE, Example(text='t')], Plan(anchor_source='given')).sample.given
  assert given.ids_BxAxT.shape == (2, 2, 8)
  np.testing.assert_array_equal(given.length_BxA, [[4, 4], [0, 0]])
  assert given.ids_BxAxT[0, 0, :4].tolist() == [*b'one', tokenizer.eos_id]
  assert render([EXAMPLE], Plan()).sample.given is None
