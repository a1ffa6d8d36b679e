"""What the workers are asked to do. Needs numpy alone: peers import it, too."""

import dataclasses

import numpy as np

LEARNING_RATE = 1e-6
BETA = 0.1


@dataclasses.dataclass(frozen=True)
class Work:
  """B prompts of P tokens with G completions of T tokens each: random ids without padding, all from the seed."""

  prompts: int  # B
  prompt: int  # P
  group: int  # G
  completion: int  # T
  model: str  # a spec for past_jax.models.load
  weights: str = ''  # the same model as a Hugging Face directory, for peers
  seed: int = 0

  def ids(self, vocab: int):
    """(prompt_BxP, completion_BxGxT), int32; without the lowest ids, among which pads and ends are."""
    rng = np.random.default_rng(self.seed)
    draw = lambda *shape: rng.integers(32, vocab, shape, dtype=np.int32)
    return draw(self.prompts, self.prompt), draw(self.prompts, self.group, self.completion)
