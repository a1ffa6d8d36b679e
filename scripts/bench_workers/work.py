"""What the workers are asked to do, and how many FLOPs that is. Needs numpy alone: peers import it, too."""

import dataclasses

import numpy as np

LEARNING_RATE = 1e-6
BETA = 0.1
GREEDY = 16  # tokens that both sides decode greedily, to be compared


@dataclasses.dataclass(frozen=True)
class Work:
  """B prompts of P tokens with G completions of T tokens each: random ids without padding, all from the seed."""

  prompts: int  # B
  prompt: int  # P
  group: int  # G
  completion: int  # T
  model: str  # a spec for past_jax.models.load
  weights: str  # the same model as a Hugging Face directory, for peers
  seed: int = 0
  slots: int = 0  # rows that decode at once; 0: all
  remat: str = 'none'  # of our model, as in configs
  micro: int = 0  # prompts per micro-batch of our update; 0: all
  skew: bool = False  # 1/8 of the completions have T tokens and the others T/16

  def ids(self, vocab: int):
    """(prompt_BxP, completion_BxGxT), int32; without the lowest ids, among which pads and ends are."""
    rng = np.random.default_rng(self.seed)
    draw = lambda *shape: rng.integers(32, vocab, shape, dtype=np.int32)
    return draw(self.prompts, self.prompt), draw(self.prompts, self.group, self.completion)

  def pairs(self, vocab: int):
    """(prompt_NxP, chosen_NxT, rejected_NxT): members (0, 1), (2, 3), ... of every group, as peers see them."""
    prompt_BxP, ids_BxGxT = self.ids(vocab)
    return np.repeat(prompt_BxP, self.group // 2, axis=0), *(
      ids_BxGxT[:, i::2].reshape(-1, self.completion) for i in (0, 1)
    )

  def limits(self):
    """limit_BxG: how many tokens each completion may have."""
    B, G, T = self.prompts, self.group, self.completion
    limits = np.full(B * G, T, np.int32)
    if self.skew:
      limits[B * G // 8 :] = max(1, T // 16)
      limits = np.random.default_rng(self.seed).permutation(limits)
    return limits.reshape(B, G)


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs of a model's parts, forward: 2 per weight of a matrix, and attention by the area of its mask."""

  token: int  # all layers, for one token
  pair: int  # all layers' attention, for one query that sees one key
  head: int  # logits of one token

  def forward(self, tokens: int, area: int, heads: int) -> int:
    return self.token * tokens + self.pair * area + self.head * heads


def cost(
  *, width: int, heads: int, kv_heads: int, head_dim: int, ffn: int, gated: bool, layers: int, vocab: int
) -> Cost:
  attention = 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim  # q and o, k and v
  mlp = (3 if gated else 2) * width * ffn
  return Cost(2 * layers * (attention + mlp), 4 * layers * heads * head_dim, 2 * width * vocab)


def flops(what: str, cost: Cost, work: Work) -> int:
  """Model FLOPs of our side's work: the prompt once per group, no recomputation, backward at twice the forward."""
  B, P, lengths = work.prompts, work.prompt, work.limits().astype(int)
  written = int(lengths.sum())
  prompt_area = B * P * (P + 1) // 2
  if what == 'prefill':
    return cost.forward(B * P, prompt_area, 0)
  completion_area = int((lengths * P + lengths * (lengths + 1) // 2).sum())
  if what == 'update':
    return 3 * cost.forward(B * P + written, prompt_area + completion_area, written)
  # A completion's last token is never read, and its first one is drawn from the logits that end its prompt.
  read, area = lengths - 1, int(((lengths - 1) * P + (lengths - 1) * lengths // 2).sum())
  return cost.forward(B * P + int(read.sum()), prompt_area + area, B + int(read.sum()))
