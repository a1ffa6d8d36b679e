"""What config.json says, as the shape that is computed; what is not computed is refused."""

import math

import numpy as np
import pytest

from past_jax.models import rope
from past_jax.models.families import model_config
from past_jax.types import UserError

SIZES = dict(
  vocab_size=64,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=128,
)
FACTORS = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)
LONGROPE = dict(rope_scaling={'type': 'longrope', **FACTORS}, original_max_position_embeddings=32)


def make(model_type, choice='short', **changes):
  return model_config({'model_type': model_type, **SIZES, 'pad_token_id': None, **changes}, choice)


@pytest.mark.parametrize(
  'model_type, changes, message',
  [
    ('bert', {}, "model_type 'bert' is not supported; supported: llama, smollm3, mistral, qwen2, qwen3, phi3"),
    ('llama', {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, "rope_type 'dynamic' is not supported"),
    ('llama', {'num_key_value_heads': 3}, 'num_key_value_heads = 3 does not divide num_attention_heads = 4'),
    ('llama', {'hidden_act': 'relu'}, "hidden_act = 'relu' is not supported; supported: silu"),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config is not supported'),
    ('mistral', {'sliding_window': -1}, 'sliding_window = -1 is not supported'),
    ('qwen3', {'layer_types': ['chunked_attention'] * 4}, 'chunked_attention'),
    ('gemma3_text', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is not supported'),
    ('phi3', {**LONGROPE, 'rope_scaling': {'type': 'longrope', **FACTORS, 'short_factor': [1.0]}}, 'short_factor'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx = True is not supported'),
  ],
)
def test_what_is_not_computed_is_refused(model_type, changes, message):
  with pytest.raises(UserError, match=message):
    make(model_type, **changes)


def test_one_choice_of_longrope_and_the_room_it_gives():
  short, long = make('phi3', 'short', **LONGROPE), make('phi3', 'long', **LONGROPE)
  assert (short.context, short.longer, long.context, long.longer) == (32, 128, 128, 0)
  assert short.kinds[0].frequencies[0] == 2 * long.kinds[0].frequencies[0]
  assert short.kinds[0].amplitude == long.kinds[0].amplitude > 1
  with pytest.raises(UserError, match="rope 'long' is a choice of longrope's factors, which this model does not have"):
    make('llama', 'long')


def test_yarn_gives_the_room_it_was_switched_on_for():
  scaling = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 128}
  assert make('qwen2', rope_scaling=scaling).context == 512


def test_layers_of_one_kind_are_one_kind():
  assert make('mistral', sliding_window=16).pattern == (0, 0, 0, 0)
  assert [kind.window for kind in make('mistral', sliding_window=128).kinds] == [0]  # never reached
  gemma = make('gemma3_text', sliding_window=16, sliding_window_pattern=2, head_dim=8)
  assert gemma.pattern == (0, 1, 0, 1) and [kind.window for kind in gemma.kinds] == [16, 0]
  smollm = make('smollm3', no_rope_layers=[1, 1, 1, 0])
  assert smollm.pattern == (0, 0, 0, 1) and smollm.kinds[1].frequencies == ()


@pytest.mark.parametrize('theta', [1e4, 1e5, 5e5, 1e6])
@pytest.mark.parametrize('dim', [24, 64, 128])
def test_frequencies_are_rounded_well_on_every_machine(theta, dim):
  """Those of torch: a power of float32 numbers to half a unit in the last place, which numpy's vectors do not keep."""
  found, _ = rope.frequencies({'rope_theta': theta}, dim, 512, 'short')
  exponents = [float(np.float32(i) / np.float32(dim)) for i in range(0, dim, 2)]
  assert found == tuple(float(1 / np.float32(math.pow(theta, e))) for e in exponents)
