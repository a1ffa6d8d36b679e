"""What each Hugging Face model type means: its config as a `ModelConfig`, and where its tensors go.

transformers reads config.json: it knows the defaults and the spellings of every version of the format.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from past_jax.models import rope
from past_jax.models.config import Kind, ModelConfig
from past_jax.types import UserError


class Row(NamedTuple):
  """One parameter and where its values are: in the tensor `name`, where `{i}` stands for the layer.

  `axes` spells the axes of their array and of ours, as in 'Hd D->DHd': V vocab, D width, H query heads, K key heads,
  d head_dim, F ffn, C context. `x` is an axis on which several parameters are laid end to end, of the sizes `parts`
  (letters, or 1); this one is number `part`. Ours may lack an `x` of size 1.
  """

  path: str
  name: str
  axes: str
  parts: str = ''
  part: int = 0


class Family(NamedTuple):
  architecture: str  # the class in transformers
  prefix: str  # of all tensors but the head; some files leave it out
  rows: tuple[Row, ...]  # those of parameters that a config does not have are not used
  shape: Callable[[Mapping[str, Any], str], dict]  # (config.json with its defaults, rope choice) -> fields
  derived: str = ''  # tensors, as a regex, that are no parameters and that old files carry

  @property
  def classifier(self) -> str:
    """The class of its judges, whose `score` reads the state of a row's last token that is no padding."""
    stem = self.architecture.removesuffix('ForCausalLM').removesuffix('LMHeadModel')
    return ('Gemma3Text' if stem == 'Gemma3' else stem) + CLASSIFIER


# --- names --------------------------------------------------------------------------------------------------------


def linear(ours: str, theirs: str, axes: str, bias: str, *fused) -> list[Row]:
  rows = ('kernel', f'{theirs}.weight', axes), ('bias', f'{theirs}.bias', bias)
  return [Row(f'layers/{ours}/{leaf}', name, spelt, *fused) for leaf, name, spelt in rows]


def fused(ours: str, theirs: str, axes: str, bias: str, parts: str) -> list[Row]:
  return [row for j, name in enumerate(ours.split()) for row in linear(name, theirs, axes, bias, parts, j)]


def norm(ours: str, theirs: str, axis: str = 'D') -> list[Row]:
  return [Row(f'{ours}/scale', f'{theirs}.weight', axis), Row(f'{ours}/bias', f'{theirs}.bias', axis)]


def outside(embedding: str, final_norm: str, head: str) -> list[Row]:
  embed = Row('embed/embedding', f'{embedding}.weight', 'V D')
  heads = Row('head/kernel', f'{head}.weight', 'V D->DV'), Row('score/kernel', 'score.weight', '1 D->D1')
  return [embed, *norm('final_norm', final_norm), *heads]


ATTENTION = (
  *norm('layers/attention_norm', 'layers.{i}.input_layernorm'),
  *linear('q', 'layers.{i}.self_attn.q_proj', 'Hd D->DHd', 'Hd'),
  *linear('k', 'layers.{i}.self_attn.k_proj', 'Kd D->DKd', 'Kd'),
  *linear('v', 'layers.{i}.self_attn.v_proj', 'Kd D->DKd', 'Kd'),
  *linear('o', 'layers.{i}.self_attn.o_proj', 'D Hd->HdD', 'D'),
  *norm('layers/q_norm', 'layers.{i}.self_attn.q_norm', 'd'),
  *norm('layers/k_norm', 'layers.{i}.self_attn.k_norm', 'd'),
)
MLP = (
  *linear('gate', 'layers.{i}.mlp.gate_proj', 'F D->DF', 'F'),
  *linear('up', 'layers.{i}.mlp.up_proj', 'F D->DF', 'F'),
  *linear('down', 'layers.{i}.mlp.down_proj', 'D F->FD', 'D'),
)
LLAMA = (
  *outside('embed_tokens', 'norm', 'lm_head'),
  *ATTENTION,
  *norm('layers/mlp_norm', 'layers.{i}.post_attention_layernorm'),
  *MLP,
)
GEMMA = (
  *outside('embed_tokens', 'norm', 'lm_head'),
  *ATTENTION,
  *norm('layers/attention_post_norm', 'layers.{i}.post_attention_layernorm'),
  *norm('layers/mlp_norm', 'layers.{i}.pre_feedforward_layernorm'),
  *MLP,
  *norm('layers/mlp_post_norm', 'layers.{i}.post_feedforward_layernorm'),
)
PHI3 = (
  *outside('embed_tokens', 'norm', 'lm_head'),
  *norm('layers/attention_norm', 'layers.{i}.input_layernorm'),
  *fused('q k v', 'layers.{i}.self_attn.qkv_proj', 'xd D->Dxd', 'xd', parts='HKK'),
  *linear('o', 'layers.{i}.self_attn.o_proj', 'D Hd->HdD', 'D'),
  *norm('layers/mlp_norm', 'layers.{i}.post_attention_layernorm'),
  *fused('gate up', 'layers.{i}.mlp.gate_up_proj', 'x D->Dx', 'x', parts='FF'),
  *linear('down', 'layers.{i}.mlp.down_proj', 'D F->FD', 'D'),
)
GPT2 = (  # stores [in, out]
  *outside('wte', 'ln_f', 'lm_head'),
  Row('positions/embedding', 'wpe.weight', 'C D'),
  *norm('layers/attention_norm', 'h.{i}.ln_1'),
  *fused('q k v', 'h.{i}.attn.c_attn', 'D xHd->DHd', 'xHd->Hd', parts='111'),
  *linear('o', 'h.{i}.attn.c_proj', 'Hd D', 'D'),
  *norm('layers/mlp_norm', 'h.{i}.ln_2'),
  *linear('up', 'h.{i}.mlp.c_fc', 'D F', 'F'),
  *linear('down', 'h.{i}.mlp.c_proj', 'F D', 'D'),
)
GPT_NEOX = (
  *outside('embed_in', 'final_layer_norm', 'embed_out'),
  *norm('layers/attention_norm', 'layers.{i}.input_layernorm'),
  *fused('q k v', 'layers.{i}.attention.query_key_value', 'Hxd D->DHd', 'Hxd->Hd', parts='111'),
  *linear('o', 'layers.{i}.attention.dense', 'D Hd->HdD', 'D'),
  *norm('layers/mlp_norm', 'layers.{i}.post_attention_layernorm'),
  *linear('up', 'layers.{i}.mlp.dense_h_to_4h', 'F D->DF', 'F'),
  *linear('down', 'layers.{i}.mlp.dense_4h_to_h', 'D F->FD', 'D'),
)


# --- shapes -------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}
QKV, MLP_LAYERS = ('q', 'k', 'v'), ('gate', 'up', 'down')
NO_CHOICE = "rope 'long' is a choice of longrope's factors, which this model does not have: leave it 'short'."
SLIDING, FULL = 'sliding_attention', 'full_attention'
CLASSIFIER = 'ForSequenceClassification'  # how the names of such classes end


def activation(c: Mapping, key: str = 'hidden_act') -> str:
  if c[key] not in ACTIVATIONS:
    raise UserError(f'{key} = {c[key]!r} is not supported; supported: {", ".join(ACTIVATIONS)}.')
  return ACTIVATIONS[c[key]]


def kinds(head_dim: int, context: int, choice: str, layers: list[tuple[int, Mapping | None]]) -> dict:
  """`kinds`, `pattern` and `context` of layers given as (window, rope parameters or None)."""
  longropes = [p for _, p in layers if p and p.get('rope_type') == 'longrope']
  if choice == 'long' and not longropes:
    raise UserError(NO_CHOICE)
  for _, p in layers:
    if p and p.get('rope_type') == 'yarn':  # Qwen's files keep the length from before
      context = max(context, int(p['factor'] * p['original_max_position_embeddings']))

  def kind(window, parameters):
    if window is not None and window < 1:
      raise UserError(f'sliding_window = {window} is not supported; it is a number of tokens, or null.')
    rotation = ((), 1.0) if parameters is None else rope.frequencies(parameters, head_dim, context, choice)
    return Kind(0 if window is None or window >= context else window, *rotation)

  each = [kind(*layer) for layer in layers]
  distinct = tuple(dict.fromkeys(each))
  originals = [p['original_max_position_embeddings'] for p in longropes]
  room = min([context, *originals]) if choice == 'short' else context
  longer = context if room < context else 0
  return {'kinds': distinct, 'pattern': tuple(map(distinct.index, each)), 'context': room, 'longer': longer}


def llama(c: Mapping, choice: str, layers=None, **more) -> dict:
  """The fields that most families share. `layers`: (window, rope parameters) each; None: all the same, unwindowed."""
  heads, width = c['num_attention_heads'], c['hidden_size']
  kv_heads, head_dim = c.get('num_key_value_heads') or heads, c.get('head_dim') or width // heads
  if heads % kv_heads:
    raise UserError(f'num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}.')
  layers = layers or [(None, c['rope_parameters'])] * c['num_hidden_layers']
  attention_bias, mlp_bias = c.get('attention_bias', False), c.get('mlp_bias', False)
  fields = dict(
    vocab=c['vocab_size'],
    width=width,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    ffn=c['intermediate_size'],
    scale=head_dim**-0.5,
    norm_eps=c['rms_norm_eps'],
    activation=activation(c) if 'hidden_act' in c else 'silu',
    biased=((*QKV, 'o') if attention_bias else ()) + (MLP_LAYERS if mlp_bias else ()),
    tied=c['tie_word_embeddings'],
  )
  return fields | kinds(head_dim, c['max_position_embeddings'], choice, layers) | more


def windows(c: Mapping) -> list[int | None]:
  """By `layer_types`."""
  if odd := sorted({*c['layer_types']} - {SLIDING, FULL}):
    raise UserError(f'layer_types {odd} are not supported; supported: {FULL}, {SLIDING}.')
  return [c['sliding_window'] if kind == SLIDING else None for kind in c['layer_types']]


def smollm3(c: Mapping, choice: str) -> dict:
  layers = [(w, c['rope_parameters'] if on else None) for w, on in zip(windows(c), c['no_rope_layers'], strict=True)]
  return llama(c, choice, layers)


def windowed(c: Mapping, choice: str, **more) -> dict:
  """One window for all layers: Mistral, Phi-3."""
  return llama(c, choice, [(c['sliding_window'], c['rope_parameters'])] * c['num_hidden_layers'], **more)


def qwen(c: Mapping, choice: str, **more) -> dict:
  return llama(c, choice, [(w, c['rope_parameters']) for w in windows(c)], **more)


def gemma(c: Mapping, choice: str, **more) -> dict:
  if c.get('use_bidirectional_attention'):
    raise UserError('use_bidirectional_attention is not supported: a language model looks back only.')
  by_kind = lambda kind: c['rope_parameters'].get(kind, c['rope_parameters'])
  return llama(
    c,
    choice,
    [(w, by_kind(kind)) for w, kind in zip(windows(c), c['layer_types'], strict=True)],
    norm='rms_plus_one',
    activation=activation(c, 'hidden_activation'),
    scale=c['query_pre_attn_scalar'] ** -0.5,
    post_norms=True,
    attention_cap=c['attn_logit_softcapping'] or 0.0,
    logit_cap=c['final_logit_softcapping'] or 0.0,
    embed_scale=c['hidden_size'] ** 0.5,
    **more,
  )


def gpt2(c: Mapping, choice: str) -> dict:
  for key, plain in {'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False}.items():
    if c[key] != plain:
      raise UserError(f'{key} = {c[key]} is not supported; supported: {plain}.')
  width, heads = c['n_embd'], c['n_head']
  return dict(
    vocab=c['vocab_size'],
    width=width,
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    ffn=c['n_inner'] or 4 * width,
    scale=(width // heads) ** -0.5,
    norm='layer',
    norm_eps=c['layer_norm_epsilon'],
    activation=activation(c, 'activation_function'),
    gated=False,
    biased=(*QKV, 'o', 'up', 'down'),
    learned_positions=True,
    tied=c['tie_word_embeddings'],
    **kinds(0, c['n_positions'], choice, [(None, None)] * c['n_layer']),
  )


def gpt_neox(c: Mapping, choice: str) -> dict:
  return llama(
    c | {'rms_norm_eps': c['layer_norm_eps']},
    choice,
    norm='layer',
    gated=False,
    biased=(*((*QKV, 'o') if c['attention_bias'] else ()), 'up', 'down'),
    parallel=c['use_parallel_residual'],
  )


FAMILIES = {
  'llama': Family('LlamaForCausalLM', 'model.', LLAMA, llama),
  'smollm3': Family('SmolLM3ForCausalLM', 'model.', LLAMA, smollm3),
  'mistral': Family('MistralForCausalLM', 'model.', LLAMA, windowed),
  'qwen2': Family('Qwen2ForCausalLM', 'model.', LLAMA, lambda c, choice: qwen(c, choice, biased=QKV)),
  'qwen3': Family('Qwen3ForCausalLM', 'model.', LLAMA, lambda c, choice: qwen(c, choice, qk_norm=True)),
  'phi3': Family('Phi3ForCausalLM', 'model.', PHI3, windowed),
  'gemma2': Family('Gemma2ForCausalLM', 'model.', GEMMA, gemma),
  'gemma3_text': Family('Gemma3ForCausalLM', 'model.', GEMMA, lambda c, choice: gemma(c, choice, qk_norm=True)),
  'gpt2': Family('GPT2LMHeadModel', 'transformer.', GPT2, gpt2, r'|attn\.(masked_)?bias$'),
  'gpt_neox': Family('GPTNeoXForCausalLM', 'gpt_neox.', GPT_NEOX, gpt_neox, r'|attention\.(masked_)?bias$'),
}


def read_config(directory: str | Path, choice: str = 'short') -> ModelConfig:
  """Reads config.json.

  Raises:
    UserError: the file is missing or malformed, or asks for what is not computed here.
  """
  path = Path(directory) / 'config.json'
  if not path.exists() and (path.parent / 'adapter_config.json').exists():
    raise UserError(f'{path.parent} is a LoRA adapter (adapter_config.json); a model is needed: merge the two first.')
  source = read_json(path)
  if source is None:
    raise UserError(f'{path} does not exist; a model directory has config.json, *.safetensors, tokenizer.json.')
  try:
    config = model_config(source, choice)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error.__cause__
  return dataclasses.replace(config, generation=read_json(path.parent / 'generation_config.json') or {})


def read_json(path: Path) -> dict | None:
  """The object in a file; None if there is no file."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}') from error
  if not isinstance(value, dict):
    raise UserError(f'{path} is not a JSON object.')
  return value


def model_config(source: Mapping[str, Any], choice: str = 'short') -> ModelConfig:
  """The shape that the contents of a config.json describe.

  Args:
    choice: 'short' or 'long', of longrope's two lists of factors; see `rope.frequencies`.

  Raises:
    UserError: another model type, or a feature of one, that is not computed here.
  """
  model_type = source.get('model_type')
  if model_type not in FAMILIES:
    raise UserError(f'model_type {model_type!r} is not supported; supported: {", ".join(FAMILIES)}.')
  if source.get('quantization_config') is not None:
    raise UserError('quantization_config is not supported; load the model unquantized and save it again.')
  # Without PyTorch transformers says so at import, which is no news to anybody here.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  from transformers import CONFIG_MAPPING  # takes a second or two: not at start, for those who never read one

  try:
    full = CONFIG_MAPPING[model_type].from_dict(dict(source))
    fields = FAMILIES[model_type].shape(full.to_dict(), choice)
  except UserError:
    raise
  except Exception as error:  # its checks raise various classes
    raise UserError(f'not a config of a {model_type} model: {" ".join(str(error).split())}') from error
  if any(name.endswith(CLASSIFIER) for name in source.get('architectures') or ()):
    if full.num_labels != 1:
      raise UserError(f'a classifier of {full.num_labels} labels is not supported; a judge has one, its score.')
    fields |= {'tied': True, 'scored': True}  # transformers keeps no output head beside a score
  return ModelConfig(family=model_type, source=source, **fields)
