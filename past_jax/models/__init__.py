"""Models by spec. The package sees a `Model`: a policy, its tokenizer, its shape and how to read its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from past_jax import mesh as mesh_lib
from past_jax.models import shapes, specs, weights
from past_jax.models.config import SCRATCH, ModelConfig
from past_jax.models.families import NO_CHOICE, read_config
from past_jax.models.transformer import RULES, transformer
from past_jax.text import Tokenizer, byte_tokenizer, load_tokenizer
from past_jax.types import Params, Policy, UserError

__all__ = ['Model', 'ModelConfig', 'RULES', 'described', 'load']
NO_SCORE = '{} is no judge: it has no scalar head. past export --role=judge writes the judge of a run as a directory.'


class Model(NamedTuple):
  policy: Policy
  tokenizer: Tokenizer
  config: ModelConfig
  read: Callable[[jax.sharding.Mesh], Params]  # the weights, placed; only owned slices are read


def load(
  spec: str, *, dtype: str = 'float32', remat: str = 'none', rope: str = 'short', seed: int = 0, judge: bool = False
) -> Model:
  """The model that `spec` names; those of `SCRATCH` are random ones, made from `seed`.

  Args:
    judge: it is one with a scalar head (scores.py); its policy's output head means nothing.

  Raises:
    UserError: an unknown form of spec, an unsupported architecture, a failed download or hash, a tokenizer that needs
      more embeddings than the model has, a judge where a language model is wanted, or the other way round.
  """
  if spec in SCRATCH:
    if judge:
      raise UserError(NO_SCORE.format(spec))
    if rope == 'long':
      raise UserError(f'{spec}: {NO_CHOICE}')
    config = SCRATCH[spec]
    policy = transformer(config, dtype=dtype, remat=remat)

    def init(mesh):
      placed = mesh_lib.shardings(mesh, jax.eval_shape(policy.init, jax.random.key(seed)), RULES)
      return jax.jit(policy.init, out_shardings=placed)(jax.random.key(seed))

    return Model(policy, scratch_tokenizer(spec), config, init)
  directory = specs.resolve(spec)
  config, tokenizer = read_config(directory, rope), load_tokenizer(directory)
  if judge and not config.scored:
    raise UserError(NO_SCORE.format(spec))
  if config.scored and not judge:
    raise UserError(f'{spec} is a judge: it has a scalar head, and no output head to write a text with.')
  if tokenizer.needs > config.vocab:  # fewer is well: many embeddings are padded
    what = f'the tokenizer has {tokenizer.vocab_size} ids and the embedding {config.vocab} (vocab_size in config.json)'
    raise UserError(f'{directory}: {what}; they are of different models.')
  tokenizer.limit = config.vocab
  policy = transformer(config, dtype=dtype, remat=remat)

  def read(mesh):
    placed = mesh_lib.shardings(mesh, jax.eval_shape(weights.initial(config), jax.random.key(0)), RULES)
    return weights.read(directory, config, placed)

  return Model(policy, tokenizer, config, read)


def described(spec: str, *, dtype: str = 'float32', remat: str = 'none', rope: str = 'short') -> Model:
  """The model that `spec` names as far as programs depend on it: no weights, and bytes for a tokenizer.

  Its shape is that of a directory's config.json, or one that is known (shapes.py): no hub is asked.

  Raises:
    UserError: a spec whose shape is not known here.
  """
  config = read_config(spec, rope) if (Path(spec) / 'config.json').is_file() else shapes.shape(spec, rope)

  def read(mesh):
    raise UserError(f'{spec} was described without its weights.')

  return Model(transformer(config, dtype=dtype, remat=remat), scratch_tokenizer(spec), config, read)


def scratch_tokenizer(spec: str) -> Tokenizer:
  """Of bytes; for scratch:words and words-small also of words.txt, the words of the worlds that sweeps study."""
  if not spec.startswith('scratch:words'):
    return byte_tokenizer()
  return byte_tokenizer(words=(Path(__file__).parent / 'words.txt').read_text(encoding='utf-8').splitlines())
