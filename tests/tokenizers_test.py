"""Tokenizers as they are out there, trained here: equal to transformers, joined as ids without loss."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import logging
import math
import shutil
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import optax
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils

from past_jax.data import __file__ as data_file
from past_jax.judges.rows import bodies
from past_jax.logps import group_logps, scorer, token_mask
from past_jax.models.config import TINY
from past_jax.models.transformer import transformer
from past_jax.render import renderer, text_batch
from past_jax.sampler import sample
from past_jax.text import Tokenizer, completion_text, load_tokenizer, pack_completions, pack_prompts
from past_jax.types import Example, Plan, Prompts, UserError

V = 512
BYTES = [f'<0x{b:02X}>' for b in range(256)]

# --- tokenizers -----------------------------------------------------------------------------------------------------

LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
  r'\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')

TEMPLATES = {
  'llama3': (
    "{{- bos_token }}\n{%- set today = strftime_now('%d %b %Y') %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + today + '<|eot_id|>' }}\n"
    "{%- for m in messages %}\n"
    "    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim }}\n"
    "    {{- '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
  ),
  'qwen': (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  ),
  'llama2': (  # [INST], the system turn inside the first one
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system + '\\n' if loop.first and system else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
  ),
  'mistral': (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"
  ),
  'gemma': (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}\n"
    "{% for m in messages %}\n  {% set role = 'model' if m.role == 'assistant' else m.role %}\n"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
  ),
}  # fmt: skip


def train(pre_tokenizer, specials=(), alphabet=(), **options) -> dict:
  """The model part of tokenizer.json."""
  with open(data_file.replace('__init__.py', 'general.txt'), encoding='utf-8') as file:
    lines = [*file, *['The answer: x is    here.\n'] * 50]
  backend = tokenizers.Tokenizer(models.BPE(**options))
  backend.pre_tokenizer = pre_tokenizer
  trainer = trainers.BpeTrainer(
    vocab_size=490, show_progress=False, special_tokens=list(specials), initial_alphabet=list(alphabet)
  )
  backend.train_from_iterator(lines, trainer)
  return json.loads(backend.to_str())['model']


def assemble(model: dict, specials, **parts) -> tokenizers.Tokenizer:
  """A backend of a trained model; `specials` that it lacks get the next ids."""
  empty = dict.fromkeys(['truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'])
  backend = tokenizers.Tokenizer.from_str(json.dumps({'version': '1.0', 'added_tokens': [], **empty, 'model': model}))
  for name, part in parts.items():
    setattr(backend, name, part)
  backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
  return backend


def bos_first(backend, bos):
  backend.post_processor = processors.TemplateProcessing(
    single=f'{bos} $A', special_tokens=[(bos, backend.token_to_id(bos))]
  )


def split(regex):
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), 'isolated'), byte_level])


def make(kind: str, byte_model: dict, piece_model: dict):
  """(backend, tokenizer_config) of a tokenizer of one kind."""
  unmark = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  if kind == 'llama3':
    specials = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    backend = assemble(byte_model, specials, pre_tokenizer=split(LLAMA3), decoder=decoders.ByteLevel())
    bos_first(backend, '<|begin_of_text|>')
    return backend, {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': '<|begin_of_text|>',
      'eos_token': {'content': '<|eot_id|>', '__type': 'AddedToken', 'lstrip': False, 'special': True},
      'clean_up_tokenization_spaces': True,
      'model_max_length': 4096,
    }
  if kind == 'qwen':
    specials = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    backend = assemble(
      byte_model, specials, normalizer=normalizers.NFC(), pre_tokenizer=split(QWEN2), decoder=decoders.ByteLevel()
    )
    return backend, {
      'tokenizer_class': 'Qwen2Tokenizer',
      'bos_token': None,
      'eos_token': '<|im_end|>',
      'unk_token': None,
      'pad_token': '<|endoftext|>',
      'additional_special_tokens': ['<|im_start|>', '<|im_end|>'],
      'add_bos_token': False,
      'add_prefix_space': False,
      'padding_side': 'left',
    }
  if kind == 'gpt2':  # its one special token is id 0: what arrays are filled up with
    end = '<|endoftext|>'
    model = byte_model | {'vocab': {end: 0, **{token: i + 1 for token, i in byte_model['vocab'].items()}}}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = assemble(model, [end], pre_tokenizer=byte_level, decoder=decoders.ByteLevel())
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = dict.fromkeys(['bos_token', 'eos_token', 'unk_token', 'pad_token'], end)
    return backend, {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': 1024, **names}
  if kind == 'gemma':
    specials = ['<unk>', '<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>']
    backend = assemble(
      piece_model,
      specials,
      normalizer=normalizers.Replace(' ', '▁'),
      pre_tokenizer=pre_tokenizers.Split(' ', 'merged_with_previous'),
      decoder=decoders.Sequence(unmark),
    )
    bos_first(backend, '<bos>')
    return backend, {
      'tokenizer_class': 'GemmaTokenizer',
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'unk_token': '<unk>',
      'pad_token': '<eos>',
      'mask_token': '<start_of_turn>',
      'add_bos_token': True,
    }
  start = {
    'llama2': {
      'normalizer': normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]),
    },
    'mistral': {'pre_tokenizer': pre_tokenizers.Metaspace(prepend_scheme='first', split=False)},
  }[kind]
  decoder = decoders.Sequence([*unmark, decoders.Strip(' ', 1, 0)])
  backend = assemble(piece_model, ['<unk>', '<s>', '</s>'], decoder=decoder, **start)
  bos_first(backend, '<s>')
  return backend, {
    'tokenizer_class': 'PreTrainedTokenizerFast' if kind == 'llama2' else 'LlamaTokenizer',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'legacy': False,
    'add_bos_token': True,
    'add_eos_token': False,
  }


KINDS = ('llama3', 'qwen', 'gpt2', 'gemma', 'llama2', 'mistral')


def write(directory, backend, config, template=None):
  directory.mkdir(exist_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  template = {} if template is None else {'chat_template': template}
  (directory / 'tokenizer_config.json').write_text(json.dumps(config | template))
  return directory


def auto(directory):
  return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.fixture(scope='module')
def trained():
  byte_model = train(pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet=pre_tokenizers.ByteLevel.alphabet())
  options = {'unk_token': '<unk>', 'fuse_unk': True, 'byte_fallback': True}
  piece_model = train(pre_tokenizers.Metaspace(), specials=['<unk>', '<s>', '</s>', *BYTES], **options)
  return byte_model, piece_model


@pytest.fixture(scope='module')
def directories(trained, tmp_path_factory):
  root = tmp_path_factory.mktemp('tokenizers')
  return {kind: write(root / kind, *make(kind, *trained), TEMPLATES.get(kind)) for kind in KINDS}


@pytest.fixture(scope='module')
def pairs(directories):
  """kind -> (ours, transformers')."""
  return {kind: (load_tokenizer(path), auto(path)) for kind, path in directories.items()}


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


TEXTS = [
  'The answer: x',
  'Hello  two   spaces 12  3456',
  '  leading',
  'ends in a space ',
  '',
  ' ',
  'Zoë paid 12€ 👩‍🚀\n\n\x00\tline',
]

# --- equal to transformers ------------------------------------------------------------------------------------------


def test_ids_are_those_of_transformers(kind, pairs):
  ours, theirs = pairs[kind]
  special = theirs.all_special_tokens
  texts = [*TEXTS, *(f'a{token}b {token} c{token}' for token in special)]  # special tokens in ordinary text, too
  for text in texts:
    assert ours.plain(text) == theirs(text)['input_ids'], text
    assert ours.encode(text, start=True) == theirs(text, add_special_tokens=False)['input_ids'], text
  assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
  assert ours.vocab_size == len(theirs)
  assert ours.adds_bos == (kind not in ('qwen', 'gpt2'))


def test_special_tokens_in_ordinary_text_become_their_ids(kind, pairs):
  """A passage that holds the end token's text holds the end token: clean such data before studying it."""
  ours, theirs = pairs[kind]
  end = ours.decode([ours.eos_id])
  assert ours.encode(f'a{end}b').count(ours.eos_id) == 1
  if ours.adds_bos:  # P1: written out in front it is not doubled; transformers doubles it
    bos = ours.decode([ours.bos_id])
    written = f'{bos}The answer'
    assert ours.plain(written) == theirs(written, add_special_tokens=False)['input_ids']
    batch, _ = text_batch(ours, [written, 'a'], 8)
    (before, *_), ((ids,), *_) = rows(batch.prompts, batch.ids_BxGxT, batch.length_BxG)
    assert before + ids == [*ours.plain(written), ours.eos_id]
    assert ours.plain(written).count(ours.bos_id) == 1
    assert ours.encode(written).count(ours.bos_id) == 1  # after other ids it is none that we added


SYSTEM = [{'role': 'system', 'content': 'Be brief. '}]
CHAT = [
  {'role': 'user', 'content': ' Who is Zoë?'},
  {'role': 'assistant', 'content': 'A friend.'},
  {'role': 'user', 'content': 'Whose?\n'},
]


@pytest.fixture
def on_day(monkeypatch):
  """Sets the day that transformers' templates read."""

  def at(*day):
    class Clock(datetime.datetime):
      @classmethod
      def now(cls):
        return cls(*day)

    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)

  return at


@pytest.mark.parametrize('kind', TEMPLATES)
def test_chats_are_those_of_transformers(kind, pairs, on_day):
  """P1: exactly one BOS where the tokenizer adds one, written by the template."""
  ours, theirs = pairs[kind]
  on_day(2024, 7, 26)
  for messages in (CHAT[:1], CHAT, SYSTEM + CHAT):
    if messages[0]['role'] == 'system' and kind in ('gemma', 'mistral'):
      with pytest.raises(UserError, match='no system turn|must alternate'):
        ours.chat(messages)
      continue
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)['input_ids']
    assert ours.chat(messages) == expected
    if kind != 'llama2':  # which writes one before every turn
      assert ours.chat(messages).count(ours.bos_id) == ours.adds_bos
    assert ours.chat(messages)[:1] == [ours.bos_id] or not ours.adds_bos


@pytest.mark.parametrize('before', ['', '\n', '  \n '])
@pytest.mark.parametrize('kind', ['llama3', 'gemma', 'llama2', 'mistral'])
def test_p1_a_bos_behind_white_space_is_the_templates(kind, pairs, before):
  ours, theirs = pairs[kind]
  template = before.replace('\n', "{{ '\\n' }}") + '{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}'
  ours = Tokenizer(ours._backend, eos_id=ours.eos_id, bos_id=ours.bos_id, adds_bos=True, template=template)
  expected = theirs.apply_chat_template(CHAT, chat_template=template)['input_ids']
  assert ours.chat(CHAT) == expected and expected.count(ours.bos_id) == 1
  # Without one in the template we add what transformers leaves out.
  ours.chat_template = template.replace('{{ bos_token }}', '')
  bare = theirs.apply_chat_template(CHAT, chat_template=ours.chat_template)['input_ids']
  assert ours.chat(CHAT) == [ours.bos_id, *bare] and ours.bos_id not in bare


def test_a_field_without_value_is_no_field(pairs):
  ours, theirs = pairs['qwen']
  messages = [{'role': 'user', 'content': 'a', 'name': None}, {'role': 'assistant', 'content': None}]
  template = "{% for m in messages %}{{ m.role }}{{ 'content' in m }}{{ 'name' in m }}{% endfor %}"
  ours = Tokenizer(ours._backend, eos_id=ours.eos_id, template=template)
  assert ours.chat(messages) == theirs.apply_chat_template(messages, chat_template=template)['input_ids']


def test_the_date_in_a_template_stands_still(pairs, on_day):
  ours, theirs = pairs['llama3']
  on_day(2031, 1, 2)
  assert '02 Jan 2031' in theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
  assert 'Today: 26 Jul 2024' in ours.decode(ours.chat(CHAT))
  # Nothing else of the template changes by it: white space at its start, inner scopes.
  source = (
    '\n  {% if true %}{% macro date() %}{{ strftime_now("%A, %Y-%-m-%d %H:%M") }}{% endmacro %}'
    '{{ date() }}{% endif %}\n x'
  )
  ours = Tokenizer(ours._backend, eos_id=ours.eos_id, template=source)
  on_day(2024, 7, 26)
  expected = theirs.apply_chat_template(CHAT, chat_template=source, tokenize=False)
  assert ours.decode(ours.chat(CHAT)) == expected == '\nFriday, 2024-7-26 00:00 x'


@pytest.mark.slow
def test_transformers_is_imported_by_those_who_chat_and_torch_by_nobody():
  program = (
    'import sys, past_jax.text as text; tokenizer = text.byte_tokenizer(); tokenizer.plain("a");'
    'assert "transformers" not in sys.modules; tokenizer.chat([{"role": "user", "content": "a"}]);'
    'assert "transformers" in sys.modules and "torch" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


# --- P5: ids are joined ---------------------------------------------------------------------------------------------

JOINS = [
  ('The answer:', ' x'),
  ('The answer: ', 'x'),  # a prompt that ends in a space
  ('The answer', ': x is'),
  ('The ans', 'wer: x'),
  ('Question?\n', '\nAnswer'),
  ('', 'The answer'),
  ('a', ''),
  ('flag 👩‍🚀', '👩‍🚀 12'),
]


def test_p5_joined_ids_are_the_joined_text(kind, pairs):
  """A completion gains no space and loses none, though its ids are not those of the joined text."""
  ours, _ = pairs[kind]
  bos = ours.decode([ours.bos_id]) if ours.adds_bos else ''
  for prompt, completion in JOINS:
    ids = ours.plain(prompt) + ours.encode(completion)
    assert ours.decode(ids, start=True) == bos + prompt + completion
    assert ours.decode(ours.encode(completion)) == completion
    assert completion_text(ours, [*ours.encode(completion), ours.eos_id], 99) == completion
    assert ours.decode(ours.encode(prompt, start=True), start=True) == prompt
  assert sum(ours.plain(p) + ours.encode(c) != ours.plain(p + c) for p, c in JOINS) >= 2, 'no merge across a boundary'


@pytest.mark.parametrize('kind', ['llama2', 'mistral', 'gemma'])
def test_p5_a_completion_is_its_pieces_and_nothing_else(kind, pairs):
  ours, theirs = pairs[kind]
  for _, completion in JOINS:
    pieces = theirs.backend_tokenizer.model.tokenize(completion.replace(' ', '▁'))
    assert ours.encode(completion) == [piece.id for piece in pieces]
  marked = {'llama2': '▁', 'mistral': '▁', 'gemma': ''}[kind]
  assert ''.join(theirs.convert_ids_to_tokens(ours.plain('x'))) == theirs.bos_token + marked + 'x'


def test_p5_without_a_bos_the_reader_is_told_where_a_text_starts(pairs):
  ours = pairs['llama2'][0]
  bare = Tokenizer(ours._backend, eos_id=ours.eos_id)
  ids = bare.plain('The answer:') + bare.encode(' x')
  assert ids == (ours.plain('The answer:') + ours.encode(' x'))[1:]
  assert bare.decode(ids, start=True) == 'The answer: x'
  assert bare.decode(ids) == ' The answer: x'  # as what follows other ids


def test_text_that_only_follows_a_space(trained):
  """GPT-2 with add_prefix_space, and a decoder that strips what no encoder wrote."""
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True)
  backend = assemble(trained[0], ['<e>'], pre_tokenizer=byte_level, decoder=decoders.ByteLevel())
  ours = Tokenizer(backend, eos_id=backend.token_to_id('<e>'))
  assert ours.plain('the') == ours.encode(' the') != ours.encode('the')
  assert ours.decode(ours.plain('the') + ours.encode('x y'), start=True) == 'thex y'
  strips = decoders.Sequence([decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  backend = assemble(trained[1], [], normalizer=normalizers.Replace(' ', '▁'), decoder=strips)
  ours = Tokenizer(backend, eos_id=2)
  assert ours.decode(ours.encode(' a b')) == ' a b' == ours.decode(ours.plain(' a b'), start=True)


def test_bytes(kind, pairs):
  """Half a character decodes to U+FFFD, both halves to the character; nothing is lost but Unicode's other spellings."""
  ours, _ = pairs[kind]
  ids = ours.encode('👩')
  assert len(ids) == 4
  assert ours.decode(ids) == '👩' and set(ours.decode(ids[:2])) == {'\ufffd'}
  accent = 'e\u0301'
  assert ours.decode(ours.encode(accent)) == (unicodedata.normalize('NFC', accent) if kind == 'qwen' else accent)


# --- directories ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_warnings():
  """transformers says it in its log."""
  records = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = records.append
  logger = logging.getLogger('transformers')
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)
  assert [record.getMessage() for record in records] == []


def test_an_export_is_read_as_its_source_whatever_the_model(kind, pairs, tmp_path):
  ours, theirs = pairs[kind]
  ours.save(tmp_path)
  families = ['llama', 'mistral', 'qwen3', 'phi3', 'gemma2', 'gemma3_text', 'gpt2', 'gpt_neox', 'smollm3']
  for family in [*families, 'qwen2'] if kind == 'qwen' else families:  # with qwen2 it is Qwen's regex, always
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': family}))
    with no_warnings():
      again = auto(tmp_path)
    for text in TEXTS:
      assert again(text)['input_ids'] == ours.plain(text), family
    assert again.special_tokens_map == theirs.special_tokens_map
    assert (again.chat_template, len(again)) == (theirs.chat_template, len(theirs))


def test_what_the_config_says_survives(kind, pairs, tmp_path):
  ours, theirs = pairs[kind]
  ours.save(tmp_path)
  once = auto(tmp_path)
  (tmp_path / 'again').mkdir()
  load_tokenizer(tmp_path).save(tmp_path / 'again')
  for again in (once, auto(tmp_path / 'again')):
    for name in ('all_special_ids', 'model_max_length', 'extra_special_tokens', 'pad_token_id', 'unk_token_id'):
      assert getattr(again, name) == getattr(theirs, name), name
    # Their Llama and Gemma classes pad on the left by themselves; the file says nothing.
    assert again.padding_side == (theirs.padding_side if kind in ('llama3', 'qwen', 'gpt2') else 'right')
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    assert (tmp_path / file).read_bytes() == (tmp_path / 'again' / file).read_bytes()


def test_named_templates_survive(trained, tmp_path):
  named = [{'name': 'default', 'template': 'd'}, {'name': 'tool_use', 'template': 't'}]
  source = write(tmp_path / 'source', *make('qwen', *trained), named)
  (tmp_path / 'export').mkdir()
  load_tokenizer(source).save(tmp_path / 'export')
  assert auto(tmp_path / 'export').chat_template == auto(source).chat_template == {'default': 'd', 'tool_use': 't'}


def test_the_file_is_the_tokenizer_and_the_class_is_a_name(trained, tmp_path):
  """transformers 5 lets some classes replace parts of tokenizer.json, which is what the model was trained with."""
  # A class that rebuilds what the file says anyway, or that transformers passes over for the model's sake.
  for kind, tokenizer_class in [('qwen', 'Qwen2Tokenizer'), ('gemma', 'GemmaTokenizer'), ('gpt2', 'GPT2TokenizerFast')]:
    backend, config = make(kind, *trained)
    directory = write(tmp_path / kind, backend, config | {'tokenizer_class': tokenizer_class})
    assert type(auto(directory)).__name__ == tokenizer_class.removesuffix('Fast')
    assert [auto(directory)(t)['input_ids'] for t in TEXTS] == [load_tokenizer(directory).plain(t) for t in TEXTS]
  # Llama 2: the dummy space of SentencePiece comes before a leading space, too. Their class drops it.
  backend, config = make('llama2', *trained)
  directory = write(tmp_path / 'llama2', backend, config | {'tokenizer_class': 'LlamaTokenizerFast'})
  text = '  leading'
  assert load_tokenizer(directory).plain(text) == backend.encode(text).ids != auto(directory)(text)['input_ids']
  # SmolLM2: digits stand alone before anything else. Their class forgets it.
  backend, config = make('gpt2', *trained)
  digits = pre_tokenizers.Digits(individual_digits=True)
  backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
  directory = write(tmp_path / 'smollm', backend, config)
  text = 'of   12'
  assert load_tokenizer(directory).plain(text) == backend.encode(text).ids != auto(directory)(text)['input_ids']


@pytest.mark.parametrize('key', ['add_bos_token', 'add_eos_token'])
@pytest.mark.parametrize('value', [True, False])
def test_the_post_processor_decides_about_bos(trained, tmp_path, key, value):
  for kind in ('llama3', 'qwen', 'mistral'):
    backend, config = make(kind, *trained)
    directory = write(tmp_path / kind, backend, config | {key: value})
    ours = load_tokenizer(directory)
    assert ours.plain('a') == auto(directory)('a')['input_ids'] == backend.encode('a').ids
    assert ours.adds_bos == (kind != 'qwen')


def test_an_end_token_that_the_post_processor_adds_is_not_ours(trained, tmp_path):
  """P2: a prompt never ends in the end token; who completes a text adds it."""
  backend, config = make('llama3', *trained)
  ids = {token: backend.token_to_id(token) for token in ('<|begin_of_text|>', '<|eot_id|>')}
  backend.post_processor = processors.TemplateProcessing(
    single='<|begin_of_text|> $A <|eot_id|>', special_tokens=list(ids.items())
  )
  directory = write(tmp_path / 'eos', backend, config)
  assert [*load_tokenizer(directory).plain('a'), ids['<|eot_id|>']] == auto(directory)('a')['input_ids']


def test_old_directories_name_their_tokens_elsewhere(trained, tmp_path):
  backend, config = make('llama3', *trained)
  for name in ('bos_token', 'eos_token'):
    del config[name]
  directory = write(tmp_path / 'old', backend, config)
  with pytest.raises(UserError, match='names no eos_token'):
    load_tokenizer(directory)
  tokens = {'bos_token': {'content': '<|begin_of_text|>', 'lstrip': False}, 'eos_token': '<|end_of_text|>'}
  (directory / 'special_tokens_map.json').write_text(json.dumps(tokens))
  ours, theirs = load_tokenizer(directory), auto(directory)
  assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
  assert ours.plain('a') == theirs('a')['input_ids']
  # A newer directory lists its added tokens, and its map is left alone.
  write(directory, backend, config | {'bos_token': '<|begin_of_text|>', 'added_tokens_decoder': {}})
  assert auto(directory).eos_token is None
  with pytest.raises(UserError, match='names no eos_token'):
    load_tokenizer(directory)


def test_gpt2_leaves_the_names_to_the_models_config(trained, tmp_path):
  backend, _ = make('gpt2', *trained)
  directory = write(tmp_path / 'gpt2', backend, {'model_max_length': 1024})
  with pytest.raises(UserError, match='names no eos_token'):
    load_tokenizer(directory)
  (directory / 'config.json').write_text('{"model_type": "gpt2", "bos_token_id": 9999, "eos_token_id": 9999}')
  with pytest.raises(UserError, match='names no eos_token'):
    load_tokenizer(directory)
  (directory / 'config.json').write_text('{"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": [0, 5]}')
  ours, theirs = load_tokenizer(directory), auto(directory)
  assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (0, 0)
  assert ours.plain('The answer') == theirs('The answer')['input_ids']


@pytest.mark.parametrize('form', [['<new>', '<|im_start|>'], {'image_token': '<new>'}])
def test_tokens_that_only_the_config_names(trained, tmp_path, form):
  backend, config = make('qwen', *trained)
  del config['additional_special_tokens']
  directory = write(tmp_path / 'extra', backend, config | {'extra_special_tokens': form, 'unk_token': 'Ġthe'})
  ours, theirs = load_tokenizer(directory), auto(directory)
  (tmp_path / 'export').mkdir()
  ours.save(tmp_path / 'export')
  for text in ('a<new>b', 'Ġthe', ' the'):
    assert ours.encode(text) == theirs(text)['input_ids'] == auto(tmp_path / 'export')(text)['input_ids']
  assert ours.vocab_size == len(theirs) == backend.get_vocab_size() + 1


def test_vocabularies_with_holes(trained, tmp_path):
  """`vocab_size` bounds the ids: it is what the embedding must cover, not the number of tokens."""
  backend, config = make('qwen', *trained)
  parts = json.loads(backend.to_str())
  parts['model']['vocab']['Ġzzz'] = 600
  directory = write(tmp_path / 'holes', tokenizers.Tokenizer.from_str(json.dumps(parts)), config)
  ours = load_tokenizer(directory)
  assert ours.vocab_size == 601 > len(auto(directory))


ENDS = [  # generation_config.json, config.json
  (None, None),
  (None, {'eos_token_id': 2}),
  (None, {'eos_token_id': [5, 2]}),
  (None, {'eos_token_id': None}),
  ({}, {'eos_token_id': 5}),
  ({'eos_token_id': None}, {'eos_token_id': 5}),
  ({'eos_token_id': 7}, {'eos_token_id': 5}),
  ({'eos_token_id': [7, 0]}, None),
]


@pytest.mark.parametrize('generation, config', ENDS)
def test_what_ends_a_completion_is_what_ends_it_in_transformers(directories, tmp_path, generation, config):
  directory = shutil.copytree(directories['qwen'], tmp_path / 'model')
  for name, values in (('config.json', config), ('generation_config.json', generation)):
    if values is not None:
      (directory / name).write_text(json.dumps({'model_type': 'qwen3', **values}))
  try:  # the order in which their models look
    theirs = transformers.GenerationConfig.from_pretrained(directory, local_files_only=True)
  except OSError:
    read = dict(config_file_name='config.json', _from_model_config=True, local_files_only=True)
    theirs = transformers.GenerationConfig.from_pretrained(directory, **read) if config else None
  ends = theirs.eos_token_id if theirs else None
  ours = load_tokenizer(directory)
  assert set(ours.stop_ids) == {ours.eos_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}


def test_ends_that_are_no_tokens_are_left_out(directories, tmp_path):
  directory = shutil.copytree(directories['qwen'], tmp_path / 'model')
  (directory / 'generation_config.json').write_text('{"eos_token_id": [-1, 9999, 3]}')
  ours = load_tokenizer(directory)
  assert ours.stop_ids == (ours.eos_id, 3)


def test_special_tokens_beyond_the_embedding(trained, tmp_path):
  """Gemma 3's text models: the vocabulary fills the embedding, and the tokenizer adds an image token."""
  backend, config = make('gemma', *trained)
  size = backend.get_vocab_size()
  backend.add_special_tokens([AddedToken('<image>', special=True, normalized=False)])
  ours = load_tokenizer(write(tmp_path / 'source', backend, config, TEMPLATES['gemma']))
  assert (ours.needs, ours.vocab_size, ours.encode('<image>')) == (ours.eos_id + 1, size + 1, [size])
  ours.limit = size
  for read in (ours.plain, ours.encode, lambda text: ours.chat([{'role': 'user', 'content': text}])):
    assert size not in read('an image')
    with pytest.raises(UserError, match=f"^'<image>' \\(id {size}\\) is in a text, and this model embeds {size} ids"):
      read('an <image>')
  (tmp_path / 'export').mkdir()
  ours.save(tmp_path / 'export')
  assert auto(tmp_path / 'export')('an <image>')['input_ids'] == auto(tmp_path / 'source')('an <image>')['input_ids']
  # What ends or begins a text is needed, though it is an added token, too.
  for role in ('eos_id', 'bos_id', 'stop_ids'):
    roles = {'eos_id': ours.eos_id, role: [size] if role == 'stop_ids' else size}
    assert Tokenizer(ours._backend, **roles).needs == size + 1


# --- pitfalls, through the path of a run ----------------------------------------------------------------------------

B, P, G, T = 2, 12, 2, 16
EXAMPLES = [
  Example(prompt='The answer', text='The answer: x is here.', anchors=(' x', 'far too long to fit, and so it is cut')),
  Example(prompt='a long prompt that is cut on its left, surely', text='x ' * 40, anchors=('yes',)),
]


@pytest.fixture(scope='module')
def policy():
  return transformer(dataclasses.replace(TINY, vocab=V))


@pytest.fixture(scope='module')
def params(policy):
  return jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, jax.jit(policy.init)(jax.random.key(0)))


@pytest.fixture(scope='module')
def score(policy):
  return jax.jit(lambda *args: group_logps(policy, *args))


def bigram(policy, vocab=V, end=None):
  """Parameters under which a token depends on the one before it alone, and the embedding in float64."""
  E = np.random.default_rng(0).normal(size=(vocab, TINY.width)) * 0.1
  E[:, 0] = 3.0
  if end is not None:
    E[end, 0] = 3.45  # has a sixteenth of the mass
  E = E.astype(np.float32)
  # Layers add nothing to the residual stream; the head is the embedding.
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  fill = lambda x: E if len(x.shape) == 2 and len(x) == vocab else np.full(x.shape, len(x.shape) < 3, np.float32)
  return jax.tree.map(fill, shapes), E.astype(np.float64)


def loop(E, prompt, completion):
  """log p of every token of the completion under `bigram`, one at a time."""
  out = []
  for previous, token in zip([*prompt[-1:], *completion], completion) if prompt else zip(completion, completion[1:]):
    x = E[previous]
    logits = E @ (x / np.sqrt(np.mean(x**2) + 1e-5))
    out.append(logits[token] - logits.max() - np.log(np.sum(np.exp(logits - logits.max()))))
  return out if prompt else [0.0, *out][: len(completion)]


def rows(prompts, ids, length):
  """Prompts and completions as lists, without what fills the arrays up."""
  starts = [prompts.ids_BxP.shape[1] - n for n in np.asarray(prompts.length_B)]
  before = [np.asarray(row[start:]).tolist() for row, start in zip(prompts.ids_BxP, starts)]
  return before, [[np.asarray(i[:n]).tolist() for i, n in zip(*group)] for group in zip(ids, np.asarray(length))]


@pytest.mark.parametrize('view', ['same', 'instruction', 'none'])
def test_p1_to_p4_and_p23_rendered_rows(kind, pairs, policy, score, view):
  ours, _ = pairs[kind]
  render = renderer(
    tokenizer=ours,
    instruction='{prompt}: ',
    prompt_length=P,
    text_length=16,
    completion_length=T,
    train_view=view,
    train_instruction='Recall {prompt}:',
    anchors=G,
  )
  rendered = render(EXAMPLES, Plan(anchor_source='given'))
  given, train, texts = rendered.sample.given, rendered.train, rendered.text
  sampled, completions = rows(rendered.sample, given.ids_BxAxT, given.length_BxA)
  trained, raw = (
    rows(train, *(given.ids_BxAxT, given.length_BxA))[0],
    rows(texts.prompts, texts.ids_BxGxT, texts.length_BxG),
  )
  bos = [ours.bos_id] if ours.adds_bos else []

  # P1: one BOS, in front, where the tokenizer adds one; a BOS that is also the end token only ever ends.
  for row in (*sampled, *trained, *raw[0]):
    assert row[: len(bos)] == bos and row.count(ours.bos_id) == len(bos)
  for row in [ids for group in (*completions, *raw[1]) for ids in group]:
    assert row.count(ours.bos_id) == (row.count(ours.eos_id) if ours.bos_id == ours.eos_id else 0)

  # P2, P3: a whole completion has its one end token inside the mask, a cut one has none; an absent one has no token.
  first, cut, yes, absent = [ids for group in completions for ids in group]
  assert first == [*ours.encode(' x'), ours.eos_id] and yes == [*ours.encode('yes'), ours.eos_id]
  assert cut == ours.encode(EXAMPLES[0].anchors[1])[:T] and ours.eos_id not in cut
  assert absent == []
  mask = np.asarray(token_mask(train, given.length_BxA, T))
  first_known = np.array([[bool(row)] for row in trained])  # nothing predicts the first token after no prompt at all
  counts = np.array([[len(ids) for ids in group] for group in completions])
  np.testing.assert_array_equal(mask.sum(-1), counts - (~first_known & (counts > 0)))

  # P4: prompts lose their left, completions and texts their right, and each loss is counted.
  assert sampled[0] == ours.plain('The answer: ')
  long = ours.plain(EXAMPLES[1].prompt + ': ')
  assert sampled[1] == bos + long[len(long) - P + len(bos) :] and len(sampled[1]) == P
  whole = [[*ours.encode(example.text, start=True), ours.eos_id] for example in EXAMPLES]
  assert [group[0] for group in raw[1]] == [ids[:16] for ids in whole]
  assert rendered.trimmed == {'prompts': 1, 'texts': sum(len(ids) > 16 for ids in whole), 'anchors': 1}

  # P7, P23: log-probs of completion tokens alone, prompts of both halves and what fills the arrays left out.
  if view != 'none':
    likely, E = bigram(policy, end=ours.eos_id)
    logps = np.asarray(score(likely, train, given.ids_BxAxT, given.length_BxA))
    expected = np.zeros((B, G, T))
    for b, g in np.ndindex(B, G):
      expected[b, g, : counts[b, g]] = loop(E, trained[b], completions[b][g])
    np.testing.assert_allclose(logps, expected, atol=2e-5)


def test_p2_p3_p7_sampled_rows_and_what_judges_read(kind, pairs, policy):
  ours, _ = pairs[kind]
  likely, E = bigram(policy, end=ours.eos_id)
  ids, length, _ = pack_prompts([ours.plain('The answer:'), ours.plain('a')], P)
  prompts, stop = Prompts(ids, length), np.full(4, -1)
  stop[: len(ours.stop_ids)] = ours.stop_ids
  keys = jax.random.split(jax.random.key(1), B)
  group = jax.device_get(_draw(policy)(likely, keys, prompts, stop))
  before, completions = rows(prompts, group.ids_BxGxT, group.length_BxG)
  assert 0 < group.finished_BxG.sum() < group.finished_BxG.size
  read = bodies(ours, group)
  for b, g in np.ndindex(*group.length_BxG.shape):
    row, finished = completions[b][g], group.finished_BxG[b, g]
    assert row.count(ours.eos_id) == finished and (row[-1] == ours.eos_id or len(row) == T)
    np.testing.assert_allclose(group.logps_BxGxT[b, g, : len(row)], loop(E, before[b], row), atol=2e-5)
    assert read[b][g] == row[: len(row) - finished]
    assert completion_text(ours, group.ids_BxGxT[b, g], len(row)) == ours.decode(read[b][g])
  again = scorer(policy, B)(likely, prompts, group.ids_BxGxT, group.length_BxG)
  np.testing.assert_allclose(again, group.logps_BxGxT, atol=2e-5)


@functools.cache
def _draw(policy):
  return jax.jit(lambda p, keys, prompts, stop: sample(policy, p, keys, prompts, 1.0, stop, group=6, length=T))


def test_p6_shared_answer_tokens_belong_to_either_side(kind, pairs, params, score):
  """The margin of two answers is the same whether their common beginning is prompt or completion."""
  ours, _ = pairs[kind]
  prompt, shared, answers = ours.plain('The'), ours.encode(' answer:'), [ours.encode(' x'), ours.encode(' is here')]
  ends = [[*ids, ours.eos_id] for ids in answers]
  ids, length, _ = pack_prompts([prompt + shared, prompt], P)
  packed, counts, trimmed = pack_completions([ends, [shared + end for end in ends]], T)
  assert not trimmed
  total = np.asarray(score(params, Prompts(ids, length), packed, counts)).sum(-1, dtype=np.float64)
  margin = total[:, 0] - total[:, 1]
  assert abs(margin[0]) > 0.1
  np.testing.assert_allclose(margin[0], margin[1], atol=2e-5)


def test_p24_the_end_token_is_not_learnt_from_what_fills_the_arrays(pairs, policy, params):
  """Loss and slope do not change with the length of the arrays, though they are filled up with GPT-2's end token."""
  ours, _ = pairs['gpt2']
  assert ours.eos_id == 0
  prompts = Prompts(*pack_prompts([ours.plain('The answer:'), ours.plain('a')], P)[:2])
  completions = [[[*ours.encode(' x'), ours.eos_id], ours.encode(' is')], [[ours.eos_id], ours.encode('here')]]

  @jax.jit
  def loss_and_slope(ids, length):
    """And the derivative along the parameters themselves."""
    loss = lambda params: -group_logps(policy, params, prompts, ids, length).sum() / length.sum()
    value, grads = jax.value_and_grad(loss)(params)
    return value, optax.tree.vdot(grads, params)

  short, long = (np.array(loss_and_slope(*pack_completions(completions, width)[:2])) for width in (4, 9))
  assert (np.abs(short) > 0.01).all()
  np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)


def test_p7_every_log_prob_of_three_tokens():
  """All completions of up to three of three tokens, after prompts of 0 to 3: group and sampler, by hand."""
  policy = transformer(dataclasses.replace(TINY, vocab=3))
  params, E = bigram(policy, vocab=3)
  every = [[*ids] for n in range(4) for ids in itertools.product(range(3), repeat=n)]
  before = [[], [0], [2, 1], [1, 0, 2]]
  prompts = Prompts(*pack_prompts(before, 3)[:2])
  packed, length, _ = pack_completions([every] * len(before), 3)
  expected = np.zeros(packed.shape)
  for b, prompt in enumerate(before):
    for g, completion in enumerate(every):
      expected[b, g, : len(completion)] = loop(E, prompt, completion)
  whole = [math.fsum(np.exp(expected[1, g].sum()) for g, ids in enumerate(every) if len(ids) == n) for n in range(4)]
  np.testing.assert_allclose(whole, 1, atol=1e-12)  # a distribution over all completions of each length
  logps = jax.jit(lambda *args: group_logps(policy, *args))(params, prompts, packed, length)
  np.testing.assert_allclose(logps, expected, atol=1e-5)
  known = Prompts(prompts.ids_BxP[1:], prompts.length_B[1:])
  keys = jax.random.split(jax.random.key(0), 3)
  draw = jax.jit(lambda *args: sample(policy, *args, group=4, length=3))
  drawn = jax.device_get(draw(params, keys, known, 1.0, np.array([-1])))
  for b, g in np.ndindex(3, 4):
    ids = drawn.ids_BxGxT[b, g].tolist()
    np.testing.assert_allclose(drawn.logps_BxGxT[b, g], loop(E, before[b + 1], ids), atol=1e-5)
