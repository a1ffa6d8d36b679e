"""Text to ids and back: the only place where it happens, so that trainer, judge and sampler cannot disagree.

Prompts and completions are encoded apart and joined as ids; joined text is never tokenised again. Nothing here adds an
end token, and a beginning token (BOS) is added only where the tokenizer itself adds one to plain text: in front, once.
"""

import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from past_jax.types import UserError

# Templates that ask for today's date get this day: the same run must read the same prompt tomorrow. It is the day that
# Llama 3's own template falls back on.
DAY = datetime.datetime(2024, 7, 26)
STRFTIME_NOW = (
  '{%- macro strftime_now(format) %}{%- set date = namespace(text=format) %}{%- for code, value in day.items() %}'
  '{%- set date.text = date.text.replace(code, value) %}{%- endfor %}{{- date.text }}{%- endmacro %}\n'
)


class Tokenizer:
  """A `tokenizers.Tokenizer` with the facts about its special tokens.

  Attributes:
    vocab_size: ids are below it (a model's vocabulary may be padded beyond).
    needs: as many embeddings a model must have: those of the ordinary tokens, the BOS and all that end a completion.
    limit: ids below it have an embedding; `models.load` sets it. A text that holds another special token is refused
      (Gemma 3's text models come with the tokenizer of those that see, whose image token they lack).
    bos_id: or None. Some tokenizers name a BOS that they never add; see `adds_bos`.
    eos_id: the token that ends a completion.
    stop_ids: every token that ends a completion when sampled; `eos_id` first.
    adds_bos: plain text gets a BOS.
    chat_template: jinja2 source, or None.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    eos_id: int,
    bos_id: int | None = None,
    stop_ids: Sequence[int] = (),
    adds_bos: bool = False,
    template: str | None = None,
    config: Mapping | None = None,
  ):
    """`config`: the tokenizer_config.json that `save` shall carry on; its special tokens are given as strings."""
    if adds_bos and bos_id is None:
      raise UserError('The tokenizer is said to add a BOS (add_bos_token) and names none (bos_token).')
    bos = None if bos_id is None else backend.id_to_token(bos_id)
    if adds_bos and _lead(backend) != [bos_id]:
      # Only readers of the saved file run the post-processor. It must tell them what `plain` does.
      backend.post_processor = processors.TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, bos_id)])
    self.vocab_size: int = max(backend.get_vocab().values()) + 1  # there may be holes
    self.bos_id: int | None = bos_id
    self.eos_id: int = eos_id
    self.stop_ids: tuple[int, ...] = (eos_id, *sorted(set(stop_ids) - {eos_id}))
    self.adds_bos: bool = adds_bos
    ordinary = backend.get_vocab(with_added_tokens=False).values()
    self.needs: int = 1 + max(*ordinary, *self.stop_ids, bos_id or 0)
    self.limit: int = self.vocab_size
    self.chat_template: str | None = template
    self._config = {
      'clean_up_tokenization_spaces': False,
      **(config or {}),
      'bos_token': bos,
      'eos_token': backend.id_to_token(eos_id),
      'add_bos_token': adds_bos,
    }
    self._backend = backend
    self._marks_start, self._inner = _continuing(backend)

  def differs(self, other: 'Tokenizer') -> str:
    """In which part the other one writes other ids for a text, or reads ids otherwise; '': in none."""
    mine, its = (json.loads(t._backend.to_str()) for t in (self, other))
    parts = ('model', 'added_tokens', 'normalizer', 'pre_tokenizer', 'decoder')
    return next((part for part in parts if mine[part] != its[part]), '' if self.eos_id == other.eos_id else 'eos_token')

  def encode(self, text: str, start: bool = False) -> list[int]:
    """The ids of the text alone, without BOS or EOS. Special tokens written out in the text become their ids.

    Args:
      start: nothing precedes the text but the BOS of a tokenizer that adds one; written out in front, it is that one.
        Tokenizers of the SentencePiece kind write a space before such a text. A text that follows other ids, a
        completion for one, must not gain it.

    Raises:
      UserError: the text holds a special token that the model has no embedding for.
    """
    ids = self._ids(self._backend if start else self._inner, text)
    return ids[1:] if start and self.adds_bos and ids[:1] == [self.bos_id] else ids

  def _ids(self, backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids = backend.encode(text, add_special_tokens=False).ids
    if (highest := max(ids, default=0)) >= self.limit:
      token = backend.id_to_token(highest)
      raise UserError(f'{token!r} (id {highest}) is in a text, and this model embeds {self.limit} ids: take it out.')
    return ids

  def plain(self, text: str) -> list[int]:
    """The ids of a text that nothing precedes, with exactly one BOS in front if the tokenizer adds one."""
    return [self.bos_id] * self.adds_bos + self.encode(text, start=True)

  def decode(self, ids: Sequence[int], start: bool = False) -> str:
    """Special tokens included. Bytes that are not UTF-8 become U+FFFD.

    decode(plain(prompt) + encode(completion), start=True) is the BOS, if any, the prompt and the completion, and
    decode(encode(completion)) the completion, as far as the tokenizer is lossless (some normalise Unicode).

    Args:
      start: as in `encode`: a space that the tokenizer wrote before the text is taken off. After a BOS it always is.
    """
    ids = [int(i) for i in ids]
    if not self._marks_start:
      return self._inner.decode(ids, skip_special_tokens=False)
    if ids[:1] == [self.bos_id]:
      return self._config['bos_token'] + self.decode(ids[1:], start=True)
    text = self._inner.decode(ids, skip_special_tokens=False)
    return text.removeprefix(' ') if start else text

  def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of [{'role': ..., 'content': ...}, ...] up to where the assistant's answer begins.

    They are those of transformers' `apply_chat_template`, with two exceptions. The date is always 26 July 2024. And
    where the template does not begin with a BOS, white space aside, a tokenizer that adds one to plain text adds it
    here, too: its model was pretrained with a BOS in front of everything. (Chat models of this kind were tuned either
    way, as it depends on whether the text or the ids of `apply_chat_template` went into the trainer.) What else a
    template writes is left alone: white space before its BOS, or one BOS a turn. Special tokens written out in a
    message become their ids.

    Raises:
      UserError: there is no template, it refuses the messages, or they hold a special token as in `encode`.
    """
    text = self._written(messages, marker=True)
    ids = self._ids(self._backend, text)
    return [self.bos_id, *ids] if self.adds_bos and not text.lstrip().startswith(self._config['bos_token']) else ids

  def reply(self, messages: Sequence[Mapping[str, str]], completion: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of what the template adds for the messages of `completion` after `chat(messages)`, its end included.

    Raises:
      UserError: as `chat`; or the template does not write `messages` the same way once they are answered.
    """
    before, whole = self._written(messages, marker=True), self._written([*messages, *completion], marker=False)
    if not whole.startswith(before):
      raise UserError(
        f'The chat template writes {before[-60:]!r} before an answer, and something else in a chat that has one: '
        'completions cannot be told from the prompt. Give prompt, chosen and rejected as strings.'
      )
    return self.encode(whole[len(before) :])

  def _written(self, messages: Sequence[Mapping[str, str]], marker: bool) -> str:
    """The text of a chat; `marker`: up to where the assistant's answer begins."""
    if self.chat_template is None:
      raise UserError('This tokenizer has no chat template; give `prompt`, a string, instead of `messages`.')
    from transformers.utils.chat_template_utils import render_jinja_template  # most of a second, for those who chat

    template, options = self.chat_template, {k: v for k, v in self._config.items() if k.endswith('_token') and v}
    if 'strftime_now' in template:
      # A macro hides transformers' function of that name, which reads the clock. A function of ours could not get in.
      day = {f'%{code}': DAY.strftime(f'%{code}') for code in 'aAbBcdFHIjmMpSTxXyY'}
      day |= {code.replace('%', '%-'): value.lstrip('0') or '0' for code, value in day.items()}
      template, options['day'] = STRFTIME_NOW + template, day
    said = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
      (text,), _ = render_jinja_template([said], chat_template=template, add_generation_prompt=marker, **options)
    except Exception as error:  # a template is a program of others, which may fail in any way
      raise UserError(f'The chat template refuses these messages ({error}): {str(messages)[:200]}') from error
    return text

  def pad_id(self, limit: int) -> int | None:
    """A special token below `limit` that ends no completion: what the config calls padding, the BOS, or another one."""
    pad, special = self._config.get('pad_token'), self._backend.get_added_tokens_decoder()
    ids = [None if pad is None else self._backend.token_to_id(pad), self.bos_id]
    ids += sorted(i for i, token in special.items() if token.special)
    return next((i for i in ids if i is not None and i not in self.stop_ids and i < limit), None)

  def save(self, directory: str | Path, pad: int | None = None):
    """Writes the tokenizer as `transformers.AutoTokenizer` reads it, with all that the source's config said.

    Args:
      pad: the id of another padding token than the config names.
    """
    directory = Path(directory)
    # The class that takes tokenizer.json as it is; see `load_tokenizer`.
    config = self._config | {'tokenizer_class': 'PreTrainedTokenizerFast'}
    if pad is not None:
      config |= {'pad_token': self._backend.id_to_token(pad), 'padding_side': 'right'}
    # Not its own `save`, which raises no OSError on a full disk.
    (directory / 'tokenizer.json').write_text(self._backend.to_str(pretty=True), encoding='utf-8')
    (directory / 'tokenizer_config.json').write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding='utf-8')
    if self.chat_template is not None and 'chat_template' not in config:  # named ones stay in the config
      (directory / 'chat_template.jinja').write_text(self.chat_template, encoding='utf-8')


def _lead(backend: tokenizers.Tokenizer) -> list[int]:
  """The ids that the post-processor writes before a text."""
  encoding = backend.encode('a')
  pairs = zip(encoding.ids, encoding.special_tokens_mask)
  return [i for i, _ in itertools.takewhile(lambda pair: pair[1], pairs)]


def _continuing(backend: tokenizers.Tokenizer) -> tuple[bool, tokenizers.Tokenizer]:
  """Whether the backend writes a space before the text, and the same backend that neither writes nor strips one."""
  piece = backend.normalizer.normalize_str('a') if backend.normalizer else 'a'
  if backend.pre_tokenizer:
    piece = ''.join(part for part, _ in backend.pre_tokenizer.pre_tokenize_str(piece))
  if piece == 'a' and (backend.decoder is None or backend.decoder.decode(['\u2581a']) != 'a'):
    return False, backend

  def without(part):
    match part:
      case {'type': 'Prepend'} | {'type': 'Strip', 'content': ' '}:
        return None
      case {'type': 'Metaspace'}:
        return part | {'prepend_scheme': 'never'}
      case {'type': 'ByteLevel'}:
        return part | {'add_prefix_space': False}
      case {'type': 'Sequence'}:
        return {k: [new for x in v if (new := without(x))] if isinstance(v, list) else v for k, v in part.items()}
    return part

  parts = json.loads(backend.to_str())
  parts |= {name: without(parts[name]) for name in ('normalizer', 'pre_tokenizer', 'decoder')}
  return piece != 'a', tokenizers.Tokenizer.from_str(json.dumps(parts))


CHATML = (
  "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(adds_bos: bool = False, words: Sequence[str] = ()) -> Tokenizer:
  """260 ids: 0..255 are the bytes of UTF-8, then <|bos|> <|eos|> <|im_start|> <|im_end|>; ChatML. Needs no files.

  `words`, with the space before them if there is one, are a token each, too (before the special ones); with any, a
  text begins with a space.
  """
  # Byte-level BPE writes each byte as one visible character: itself where printable, else the next one from U+0100.
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [b for b in range(256) if b not in visible]
  vocab = {chr(b) if b in visible else chr(0x100 + hidden.index(b)): b for b in range(256)}
  vocab |= {word.replace(' ', '\u0120'): 256 + i for i, word in enumerate(words)}  # so a space looks
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=bool(words)))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(words), use_regex=bool(words))
  backend.decoder = decoders.ByteLevel()
  specials = ['<|bos|>', '<|eos|>', '<|im_start|>', '<|im_end|>']
  backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
  bos, eos, _, im_end = (backend.token_to_id(name) for name in specials)
  template = CHATML if adds_bos else CHATML.removeprefix('{{ bos_token }}')
  return Tokenizer(backend, eos_id=eos, bos_id=bos, stop_ids=[im_end], adds_bos=adds_bos, template=template)


def load_tokenizer(directory: str | Path) -> Tokenizer:
  """Reads a directory as `transformers` writes it.

  tokenizer.json is the whole tokenizer: what the model was trained with, the post-processor that adds a BOS included.
  tokenizer_config.json (with special_tokens_map.json in old directories) only names special tokens. Its
  `tokenizer_class` is not heeded: transformers 5 lets some classes replace the pre-tokenizer of the file by their own.

  Raises:
    UserError: a file is missing or malformed, there is no EOS, or a special token is not in the vocabulary.
  """
  directory = Path(directory)

  def read_json(name):
    try:
      return json.loads((directory / name).read_text(encoding='utf-8'))
    except FileNotFoundError:
      raise UserError(f'{directory} has no {name}, which a model directory needs.') from None
    except ValueError as error:
      raise UserError(f'{directory / name} is not JSON: {error}') from error

  def read_if_there(name):
    return read_json(name) if (directory / name).exists() else {}

  if not (directory / 'tokenizer.json').exists():
    raise UserError(
      f'{directory} has no tokenizer.json, which a model directory needs. If it has a tokenizer in another form '
      '(tokenizer.model, vocab.json), convert it once, with sentencepiece and protobuf installed: '
      f'transformers.AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r}).'
    )
  try:
    backend = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  except Exception as error:  # tokenizers raises no narrower class
    raise UserError(f'{directory}/tokenizer.json cannot be read: {error}') from error
  backend.no_padding()
  backend.no_truncation()
  config = read_json('tokenizer_config.json')
  if 'added_tokens_decoder' not in config:  # as transformers decides whether a directory is an old one
    config |= read_if_there('special_tokens_map.json')
  content = lambda token: token['content'] if isinstance(token, dict) else token
  config |= {name: content(token) for name, token in config.items() if name.endswith('_token')}
  model, generation = read_if_there('config.json'), read_if_there('generation_config.json')

  def ids_of(name, *sources):
    """The first source's that has any; without those of another tokenizer, which some configs were left with."""
    found = next((source[name] for source in sources if source.get(name) is not None), [])
    found = found if isinstance(found, list) else [found]
    return [i for i in found if i >= 0 and backend.id_to_token(i) is not None]

  if 'eos_token' not in config:  # GPT-2's directory leaves it to the model's config
    for name in ('bos_token', 'eos_token'):
      config.setdefault(name, next(map(backend.id_to_token, ids_of(f'{name}_id', generation, model)), None))

  def special(name):
    if config.get(name) is None:
      return None
    if backend.token_to_id(config[name]) is None:
      raise UserError(f'{directory}/tokenizer_config.json: {name} {config[name]!r} is not in tokenizer.json.')
    return backend.token_to_id(config[name])

  bos, eos = special('bos_token'), special('eos_token')
  if eos is None:
    raise UserError(f'{directory}/tokenizer_config.json names no eos_token; a completion could never end.')

  # Named in the config only: transformers makes these special, too.
  extra = config.get('extra_special_tokens') or config.get('additional_special_tokens') or []
  named = [token for name, token in config.items() if name.endswith('_token') and isinstance(token, str)]
  named += map(content, extra.values() if isinstance(extra, dict) else extra)
  known = {token.content for token in backend.get_added_tokens_decoder().values()}
  backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in named if t not in known])

  if (lead := _lead(backend)) not in ([], [bos]):
    names = ' '.join(map(backend.id_to_token, lead))
    raise UserError(
      f'{directory}/tokenizer.json writes {names!r} before a text; tokenizer_config.json names no such BOS.'
    )

  template = config.pop('chat_template', None)
  if isinstance(template, list):  # named templates
    config['chat_template'], template = template, {t['name']: t['template'] for t in template}.get('default')
  if (directory / 'chat_template.jinja').exists():
    config.pop('chat_template', None)
    template = (directory / 'chat_template.jinja').read_text(encoding='utf-8')
  config.pop('auto_map', None)  # names code that came with the source
  # As in transformers: generation_config.json alone says what ends a completion, and the model's config if it lacks.
  stops = ids_of('eos_token_id', generation if (directory / 'generation_config.json').exists() else model)
  return Tokenizer(
    backend, eos_id=eos, bos_id=bos, stop_ids=stops, adds_bos=bool(lead), template=template, config=config
  )


# --- ids to arrays ------------------------------------------------------------------------------------------------


def pack_prompts(rows: Sequence[Sequence[int]], P: int, bos_id: int | None = None):
  """Right-aligned prompts; what does not fit is cut off on the left, away from the completion.

  Args:
    rows: B lists of ids; an empty one is an empty prompt.
    bos_id: a row that starts with it keeps it when it is trimmed. Give it for tokenizers with `adds_bos` only: for
      others the id may have a meaning of its own (a chat marker), and a lone one would be out of place.

  Returns:
    (ids_BxP int32, length_B int32, number of rows trimmed)
  """
  ids_BxP = np.zeros((len(rows), P), np.int32)
  length_B = np.zeros(len(rows), np.int32)
  trimmed = 0
  for b, row in enumerate(rows):
    if len(row) > P:
      trimmed += 1
      kept = row[:1] if bos_id is not None and row[0] == bos_id else []
      row = [*kept, *row[len(row) - P + len(kept) :]]
    length_B[b] = len(row)
    ids_BxP[b, P - len(row) :] = row
  return ids_BxP, length_B, trimmed


def pack_completions(rows: Sequence[Sequence[Sequence[int]]], T: int):
  """Left-aligned completions; what does not fit is cut off on the right, so a trimmed one has no end token.

  Args:
    rows: for each of B prompts its completions as ids, end token included. A is the longest of these lists; absent
      completions have length 0.

  Returns:
    (ids_BxAxT int32, length_BxA int32, number of completions trimmed)
  """
  A = max(map(len, rows), default=0)
  ids_BxAxT = np.zeros((len(rows), A, T), np.int32)
  length_BxA = np.zeros((len(rows), A), np.int32)
  trimmed = 0
  for b, completions in enumerate(rows):
    for a, ids in enumerate(completions):
      trimmed += len(ids) > T
      length_BxA[b, a] = n = min(len(ids), T)
      ids_BxAxT[b, a, :n] = ids[:n]
  return ids_BxAxT, length_BxA, trimmed


def completion_text(tokenizer: Tokenizer, ids: Sequence[int], length: int) -> str:
  """The first `length` ids as people read them: without the end token, where there is one."""
  ids = [int(i) for i in ids[:length]]
  return tokenizer.decode(ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids)
