"""transformers' side of sampling: generate with num_return_sequences."""

import torch
import transformers

from bench_workers import torch_side
from bench_workers.protocol import serve
from bench_workers.work import GREEDY, Work


class Worker:
  def build(self, work: dict, programs: list[str], check: bool) -> dict:
    self.work = work = Work(**work)
    device = torch_side.DEVICE
    self.model = transformers.AutoModelForCausalLM.from_pretrained(work.weights, dtype=torch.float32).to(device).eval()
    self.model.generation_config.eos_token_id = None  # nothing stops a completion, and no id is barred
    prompt_BxP, _ = work.ids(self.model.config.vocab_size)
    self.ids = torch.tensor(prompt_BxP, dtype=torch.long, device=device)
    self.checks = {'greedy': self.generate(GREEDY, do_sample=False).tolist()} if check else {}
    for name in programs:
      self.run(name)
    return {
      'versions': {m.__name__: m.__version__ for m in (transformers, torch)},
      'device': torch_side.device(),
      'attention': self.model.config._attn_implementation,
    }

  def generate(self, length: int, **options):
    out = self.model.generate(
      self.ids,
      attention_mask=torch.ones_like(self.ids),
      max_new_tokens=length,
      pad_token_id=0,
      **options,
    )
    return out[:, self.ids.shape[1] :]

  def run(self, name: str) -> float:
    """Seconds. Without top-k, which is on by default: ours draws from the whole distribution."""
    start = torch_side.now()
    ids = self.generate(self.work.completion, do_sample=True, top_k=0, num_return_sequences=self.work.group)
    seconds = torch_side.now() - start
    assert ids.shape == (self.work.prompts * self.work.group, self.work.completion), ids.shape
    return seconds

  def check(self) -> dict:
    return self.checks

  def peak(self) -> float:
    return torch_side.peak_mib()


if __name__ == '__main__':
  serve(Worker())
