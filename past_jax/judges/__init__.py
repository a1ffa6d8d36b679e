"""Judges by name. A judge scores the completions of a group; higher is better and NaN abstains."""

from past_jax.judges.controls import constant, random
from past_jax.judges.inner_update import inner_update
from past_jax.judges.likelihood import length_normalised, likelihood
from past_jax.judges.likelihood_gain import likelihood_gain
from past_jax.judges.majority import majority
from past_jax.judges.order import order
from past_jax.judges.preference import preference
from past_jax.judges.reward import reward
from past_jax.judges.rubric import rubric
from past_jax.judges.text import text
from past_jax.judges.tool import tool

TABLE = {
  'likelihood': likelihood,
  'length_normalised': length_normalised,
  'likelihood_gain': likelihood_gain,
  'majority': majority,
  'text': text,
  'tool': tool,
  'preference': preference,
  'order': order,
  'reward': reward,
  'inner_update': inner_update,
  'rubric': rubric,
  'random': random,
  'constant': constant,
}
