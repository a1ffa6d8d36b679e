"""Text to ids and back: the only place where it happens, so that trainer, judge and sampler cannot disagree.

Prompts and completions are encoded apart and joined as ids; joined text is never tokenised again. Nothing here adds an
end token, and a beginning token (BOS) is added only where the tokenizer itself adds one to plain text.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from past_jax.types import UserError


class Tokenizer:
  """A `tokenizers.Tokenizer` with the facts about its special tokens.

  Attributes:
    vocab_size: ids are below it (a model's vocabulary may be padded beyond).
    bos_id: or None. Some tokenizers name a BOS that they never add; see `adds_bos`.
    eos_id: the token that ends a completion.
    stop_ids: every token that ends a completion when sampled; `eos_id` first.
    adds_bos: plain text gets a BOS.
    chat_template: jinja2 source, or None.
  """

  def __init__(self, backend: tokenizers.Tokenizer, *, eos_id, bos_id=None, stop_ids=(), adds_bos=False, template=None):
    if adds_bos and bos_id is None:
      raise UserError('The tokenizer is said to add a BOS (add_bos_token) and names none (bos_token).')
    self.vocab_size: int = backend.get_vocab_size()
    self.bos_id: int | None = bos_id
    self.eos_id: int = eos_id
    self.stop_ids: tuple[int, ...] = (eos_id, *sorted(set(stop_ids) - {eos_id}))
    self.adds_bos: bool = adds_bos
    self.chat_template: str | None = template
    if adds_bos != (bos_id is not None and backend.encode('').ids[:1] == [bos_id]):
      # Only readers of the saved file run the post-processor. It must tell them what `plain` does.
      bos = backend.id_to_token(bos_id)
      backend.post_processor = (
        processors.TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, bos_id)])
        if adds_bos
        else processors.ByteLevel(trim_offsets=False)
      )
    self._backend = backend

  def encode(self, text: str) -> list[int]:
    """The ids of the text alone, without BOS or EOS. Special tokens written out in the text become their ids."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def plain(self, text: str) -> list[int]:
    """As `encode`, with exactly one BOS in front if the tokenizer adds one to plain text."""
    ids = self.encode(text)
    return [self.bos_id, *ids] if self.adds_bos and ids[:1] != [self.bos_id] else ids

  def decode(self, ids: Sequence[int]) -> str:
    """Special tokens included. Bytes that are not UTF-8 become U+FFFD."""
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

  def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of [{'role': ..., 'content': ...}, ...] up to where the assistant's answer begins.

    The template writes its own special tokens; a BOS it wrote is not doubled.

    Raises:
      UserError: there is no template, or it refuses the messages.
    """
    if self.chat_template is None:
      raise UserError('This tokenizer has no chat template; give `prompt`, a string, instead of `messages`.')

    def refuse(message):
      raise jinja2.TemplateError(message)

    # The date (strftime_now) is kept from templates: the same run must read the same prompt tomorrow.
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
    env.filters['tojson'] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    specials = {
      name: None if i is None else self._backend.id_to_token(i)
      for name, i in (('bos_token', self.bos_id), ('eos_token', self.eos_id))
    }
    try:
      text = env.from_string(self.chat_template).render(
        messages=list(messages), add_generation_prompt=True, raise_exception=refuse, **specials
      )
    except (jinja2.TemplateError, TypeError) as error:
      raise UserError(f'The chat template refuses these messages ({error}): {str(messages)[:200]}') from error
    return self.plain(text)

  def save(self, directory: str | Path):
    """Writes tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them."""
    directory = Path(directory)
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': None if self.bos_id is None else self._backend.id_to_token(self.bos_id),
      'eos_token': self._backend.id_to_token(self.eos_id),
      'add_bos_token': self.adds_bos,
      'clean_up_tokenization_spaces': False,
    }
    if self.chat_template is not None:
      config['chat_template'] = self.chat_template
    self._backend.save(str(directory / 'tokenizer.json'))
    (directory / 'tokenizer_config.json').write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding='utf-8')


CHATML = (
  "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(adds_bos: bool = False) -> Tokenizer:
  """260 ids: 0..255 are the bytes of UTF-8, then <|bos|> <|eos|> <|im_start|> <|im_end|>; ChatML. Needs no files."""
  # Byte-level BPE writes each byte as one visible character: itself where printable, else the next one from U+0100.
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [b for b in range(256) if b not in visible]
  vocab = {chr(b) if b in visible else chr(0x100 + hidden.index(b)): b for b in range(256)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  specials = ['<|bos|>', '<|eos|>', '<|im_start|>', '<|im_end|>']
  backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
  bos, eos, _, im_end = (backend.token_to_id(name) for name in specials)
  template = CHATML if adds_bos else CHATML.removeprefix('{{ bos_token }}')
  return Tokenizer(backend, eos_id=eos, bos_id=bos, stop_ids=[im_end], adds_bos=adds_bos, template=template)


def load_tokenizer(directory: str | Path) -> Tokenizer:
  """Reads tokenizer.json, tokenizer_config.json and, where they are, generation_config.json and chat_template.jinja.

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

  try:
    backend = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  except Exception as error:  # tokenizers raises no narrower class
    raise UserError(f'{directory}/tokenizer.json cannot be read ({error}); a model directory needs one.') from error
  backend.no_padding()
  backend.no_truncation()
  config = read_json('tokenizer_config.json')

  def special(name):
    token = config.get(name)  # absent and null both mean: none
    token = token['content'] if isinstance(token, dict) else token
    if token is not None and backend.token_to_id(token) is None:
      raise UserError(f'{directory}/tokenizer_config.json: {name} {token!r} is not in tokenizer.json.')
    return None if token is None else backend.token_to_id(token)

  bos, eos, stops = special('bos_token'), special('eos_token'), []
  if (directory / 'generation_config.json').exists():
    stops = read_json('generation_config.json').get('eos_token_id') or []
    stops = [stops] if isinstance(stops, int) else stops
  if eos is None:
    raise UserError(f'{directory}/tokenizer_config.json names no eos_token; a completion could never end.')
  # Where the config is silent, the post-processor in tokenizer.json decides.
  adds_bos = config.get('add_bos_token')
  if adds_bos is None:
    adds_bos = bos is not None and backend.encode('').ids[:1] == [bos]
  template = config.get('chat_template')
  if isinstance(template, list):  # named templates
    template = {entry['name']: entry['template'] for entry in template}.get('default')
  if (directory / 'chat_template.jinja').exists():
    template = (directory / 'chat_template.jinja').read_text(encoding='utf-8')
  return Tokenizer(backend, eos_id=eos, bos_id=bos, stop_ids=stops, adds_bos=adds_bos, template=template)


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
