"""Edits one after the other as trainers do it: transformers and peft, adapters begun anew for each, eager torch."""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from bench_workers import torch_side


class Edits:
  """Trains an adapter on each of N rows of ids, answers its questions greedily, scores their expected answers."""

  def __init__(self, weights: Path, rank: int, steps: int, ids_NxL, prompts_NxQxP, answers_NxQxT):
    self.steps, self.trained = steps, []
    tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.long, device=torch_side.DEVICE)
    self.ids, self.prompts, self.answers = tensor(ids_NxL), tensor(prompts_NxQxP), tensor(answers_NxQxT)
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).to(torch_side.DEVICE)
    if model.num_parameters() < 10**7:
      torch.set_num_threads(1)  # models this small only lose by more
    model.generation_config.eos_token_id = None  # every answer is as long as ours
    self.length = self.answers.shape[-1]
    self.model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules='all-linear'))

  def begin(self) -> list[torch.nn.Parameter]:
    """As peft begins adapters: A drawn, B zero."""
    for module in self.model.modules():
      if isinstance(module, peft.tuners.lora.LoraLayer):
        module.reset_lora_parameters('default', True)
    return [p for p in self.model.parameters() if p.requires_grad]

  def train(self) -> None:
    self.trained = []
    self.model.train()
    for ids in self.ids:
      parameters = self.begin()
      optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
      for _ in range(self.steps):
        optimizer.zero_grad()
        self.model(input_ids=ids[None], labels=ids[None]).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
      self.trained.append([p.detach().clone() for p in parameters])
    torch_side.now()

  @torch.no_grad()
  def answer(self) -> None:
    self.model.eval()
    parameters = [p for p in self.model.parameters() if p.requires_grad]
    for learned, prompts, answers in zip(self.trained, self.prompts, self.answers):
      for p, value in zip(parameters, learned):
        p.copy_(value)
      self.model.merge_adapter()
      mask = torch.ones_like(prompts)
      options = dict(attention_mask=mask, max_new_tokens=self.length, do_sample=False, pad_token_id=0)
      made = self.model.generate(input_ids=prompts, **options)
      assert made.shape[1] == prompts.shape[1] + self.length, 'an answer ended early'
      logits = self.model(input_ids=torch.cat([prompts, answers], 1), logits_to_keep=self.length + 1).logits[:, :-1]
      torch.log_softmax(logits, -1).gather(-1, answers[..., None]).sum((1, 2)).tolist()
      self.model.unmerge_adapter()
    torch_side.now()
