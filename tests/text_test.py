"""Text to ids: bytes, BOS, chat templates, saved files and packing."""

import json

import numpy as np
import pytest
import tokenizers

from past_jax import text
from past_jax.types import UserError

EMOJI = 'Zoë paid 12€ 👩‍🚀\n\x00\t'
MESSAGES = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]


def with_template(source, **options):
  """The byte tokenizer's vocabulary under another chat template."""
  inner = text.byte_tokenizer()
  return text.Tokenizer(inner._backend, eos_id=257, bos_id=256, template=source, **options)


def test_ids_of_the_byte_tokenizer_are_utf8():
  tokenizer = text.byte_tokenizer()
  assert tokenizer.encode(EMOJI) == list(EMOJI.encode())
  assert [tokenizer.decode([b]) for b in range(128)] == [chr(b) for b in range(128)]
  assert tokenizer.decode(tokenizer.encode(EMOJI)) == EMOJI
  assert tokenizer.decode([0xF0, 0x9F]) == '\ufffd'  # half an emoji, as a truncated completion leaves it
  assert tokenizer.vocab_size == 260
  assert tokenizer.stop_ids == (tokenizer.eos_id, 259)
  assert tokenizer.encode('') == []


@pytest.mark.parametrize('adds_bos', [False, True])
def test_plain_text_has_one_bos_exactly_where_the_tokenizer_adds_it(adds_bos):
  """P1"""
  tokenizer = text.byte_tokenizer(adds_bos)
  for source in ('', 'hello', '<|bos|>hello'):
    written = source.count('<|bos|>')
    assert tokenizer.encode(source).count(256) == written
    ids = tokenizer.plain(source)
    assert ids.count(256) == max(written, adds_bos)
    assert not adds_bos or ids[0] == 256


def test_chat_writes_the_template_and_one_bos():
  expected = '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  without = text.byte_tokenizer()
  assert without.decode(without.chat(MESSAGES)) == expected
  writes_bos = text.byte_tokenizer(adds_bos=True)
  assert '{{ bos_token }}' in writes_bos.chat_template
  assert writes_bos.decode(writes_bos.chat(MESSAGES)) == '<|bos|>' + expected
  # The template writes none, the tokenizer adds one; and the other way round.
  assert with_template('{{ messages[0].content }}', adds_bos=True).chat(MESSAGES) == [256, *b'Be brief.']
  assert with_template('{{ bos_token }}x').chat(MESSAGES) == [256, ord('x')]


def test_chat_templates_are_data():
  with pytest.raises(UserError, match='no system'):
    with_template("{{ raise_exception('no system') }}").chat(MESSAGES)
  with pytest.raises(UserError, match='unsafe'):
    with_template("{{ ''.__class__.__mro__ }}").chat(MESSAGES)
  with pytest.raises(UserError, match='refuses'):
    with_template('{% for %}').chat(MESSAGES)
  with pytest.raises(UserError, match='no chat template'):
    with_template(None).chat(MESSAGES)
  # Control flow beyond plain jinja that hub templates use, and non-ASCII left as it is.
  source = '{% for m in messages %}{% if m.role == "user" %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}'
  assert bytes(with_template(source).chat([{'role': 'a', 'content': 'é'}])) == '{"role": "a", "content": "é"}'.encode()


@pytest.mark.parametrize('adds_bos', [False, True])
def test_saved_tokenizer_is_read_back(tmp_path, adds_bos):
  tokenizer = text.byte_tokenizer(adds_bos)
  tokenizer.save(tmp_path)
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [259, 257]}')
  again = text.load_tokenizer(tmp_path)
  for name in ('vocab_size', 'bos_id', 'eos_id', 'stop_ids', 'adds_bos', 'chat_template'):
    assert getattr(again, name) == getattr(tokenizer, name), name
  assert again.plain(EMOJI) == tokenizer.plain(EMOJI)
  assert again.chat(MESSAGES) == tokenizer.chat(MESSAGES)


@pytest.mark.parametrize('adds_bos', [False, True])
def test_transformers_reads_the_saved_tokenizer_as_we_do(tmp_path, adds_bos):
  import transformers

  tokenizer = text.byte_tokenizer(adds_bos)
  tokenizer.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
  assert theirs(EMOJI)['input_ids'] == tokenizer.plain(EMOJI)
  assert theirs.decode(tokenizer.encode(EMOJI)) == EMOJI
  assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
  rendered = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
  assert rendered == tokenizer.decode(tokenizer.chat(MESSAGES))


def edit(directory, **changes):
  path = directory / 'tokenizer_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_forms_of_tokenizer_config(tmp_path):
  text.byte_tokenizer(adds_bos=True).save(tmp_path)
  edit(tmp_path, add_bos_token=False)  # the post-processor of tokenizer.json decides
  assert text.load_tokenizer(tmp_path).adds_bos
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))  # what a trainer's settings leave there
  backend.enable_truncation(2)
  backend.enable_padding(length=8)
  backend.save(str(tmp_path / 'tokenizer.json'))
  assert text.load_tokenizer(tmp_path).encode('abc') == [*b'abc']
  named = [{'name': 'tool', 'template': 't'}, {'name': 'default', 'template': 'd'}]
  edit(tmp_path, eos_token={'content': '<|im_end|>', 'special': True}, chat_template=named)
  (tmp_path / 'chat_template.jinja').unlink()
  tokenizer = text.load_tokenizer(tmp_path)
  assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.chat_template) == (259, (259,), 'd')
  (tmp_path / 'chat_template.jinja').write_text('file')
  assert text.load_tokenizer(tmp_path).chat_template == 'file'
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": 257}')
  assert text.load_tokenizer(tmp_path).stop_ids == (259, 257)


def test_unusable_tokenizer_files_are_named(tmp_path):
  (tmp_path / 'tokenizer.model').touch()
  with pytest.raises(UserError, match=r'no tokenizer\.json.*tokenizer\.model.*convert it once.*save_pretrained'):
    text.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version"')
  with pytest.raises(UserError, match=r'tokenizer\.json cannot be read'):
    text.load_tokenizer(tmp_path)
  text.byte_tokenizer(adds_bos=True).save(tmp_path)
  for changes, message in [
    ({'eos_token': None}, 'names no eos_token'),
    ({'eos_token': '</s>'}, "eos_token '</s>' is not in tokenizer.json"),
    ({'eos_token': '<|eos|>', 'bos_token': None}, r"tokenizer\.json writes '<\|bos\|>' before a text"),
  ]:
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
      text.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(UserError, match=r'tokenizer_config\.json is not JSON'):
    text.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  with pytest.raises(UserError, match=r'no tokenizer_config\.json'):
    text.load_tokenizer(tmp_path)


def test_prompts_are_trimmed_on_the_left():
  """P4"""
  rows = [[1, 2, 3, 4, 5], [6, 7], [], [9, 2, 3, 4]]
  ids, length, trimmed = text.pack_prompts(rows, 4)
  np.testing.assert_array_equal(ids, [[2, 3, 4, 5], [0, 0, 6, 7], [0, 0, 0, 0], [9, 2, 3, 4]])
  np.testing.assert_array_equal(length, [4, 2, 0, 4])
  assert (trimmed, ids.dtype, length.dtype) == (1, np.int32, np.int32)
  ids, length, trimmed = text.pack_prompts(rows, 3, bos_id=1)  # only a row that starts with the BOS keeps it
  np.testing.assert_array_equal(ids, [[1, 4, 5], [0, 6, 7], [0, 0, 0], [2, 3, 4]])
  assert (length.tolist(), trimmed) == ([3, 2, 0, 3], 2)
  np.testing.assert_array_equal(text.pack_prompts(rows, 1, bos_id=1)[0], [[1], [7], [0], [4]])


def test_completions_are_trimmed_on_the_right_and_lose_their_end():
  """P2, P4"""
  eos = 257
  rows = [[[1, 2, eos], [1, 2, 3, eos]], [[eos]], []]
  ids, length, trimmed = text.pack_completions(rows, 3)
  np.testing.assert_array_equal(ids, [[[1, 2, eos], [1, 2, 3]], [[eos, 0, 0], [0, 0, 0]], np.zeros((2, 3))])
  np.testing.assert_array_equal(length, [[3, 3], [1, 0], [0, 0]])
  assert (trimmed, ids.dtype, length.dtype) == (1, np.int32, np.int32)
  assert text.pack_completions([[], []], 3)[0].shape == (2, 0, 3)


def test_completion_text_is_without_its_end_token():
  tokenizer = text.byte_tokenizer()
  ids = np.array([*b'ok', 259, 0, 0])
  assert text.completion_text(tokenizer, ids, 3) == 'ok'
  assert text.completion_text(tokenizer, ids, 2) == 'ok'
  assert text.completion_text(tokenizer, ids, 0) == ''
  assert text.completion_text(tokenizer, [257, 257], 2) == '<|eos|>'  # one end is stripped; a second is no end
