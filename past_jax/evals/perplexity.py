"""Held-out perplexity: what studying cost on text that was not studied."""

from collections.abc import Sequence

import jax
import numpy as np

from past_jax.evals.setting import padded
from past_jax.logps import group_logps, token_mask
from past_jax.mesh import host, put_batch
from past_jax.render import text_batch
from past_jax.text import Tokenizer
from past_jax.types import Policy


def perplexity(
  *, policy: Policy, tokenizer: Tokenizer, mesh, texts: Sequence[str], text_length: int = 96, chunk: int = 16
):
  """Returns evaluate(params, tick) -> ({'perplexity/heldout': exp(mean NLL per token)}, []).

  Texts are cut to `text_length` tokens. Of the text's own tokens only: learning to end would look like knowing
  the text. The first one is not predicted by a tokenizer without BOS.
  """

  @jax.jit
  def score(params, batch):
    T = batch.ids_BxGxT.shape[2]
    logps = group_logps(policy, params, batch.prompts, batch.ids_BxGxT, batch.length_BxG)
    return logps.sum(axis=(1, 2)), token_mask(batch.prompts, batch.length_BxG, T).sum(axis=(1, 2))

  def evaluate(params, tick=lambda x: x):
    total = np.zeros(2)
    for i, part in enumerate(padded(texts, chunk)):
      batch, _ = text_batch(tokenizer, part, text_length, end=False)
      sums = np.array(host(tick(score(params, put_batch(mesh, batch)))), np.float64)
      total += sums[:, : len(texts) - i * chunk].sum(axis=1)
    return {'perplexity/heldout': float(np.exp(-total[0] / total[1]))}, []

  return evaluate
