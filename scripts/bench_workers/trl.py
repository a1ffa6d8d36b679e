"""TRL's side of an update: a real DPOTrainer with its defaults, but in float32 and on ids instead of texts."""

import itertools
import statistics
import tempfile

import accelerate
import datasets
import torch
import transformers
import trl

from bench_workers import torch_side
from bench_workers.protocol import serve
from bench_workers.work import BETA, LEARNING_RATE, Work


class Trainer(trl.DPOTrainer):
  def _prepare_dataset(self, dataset, *_):
    return dataset  # it has ids already


class Worker:
  """Programs: `loop`, a step with the reference pass that it makes; `step`, with precomputed references."""

  def build(self, work: dict, programs: list[str], check: bool) -> dict:
    work = Work(**work)
    vocab = transformers.AutoConfig.from_pretrained(work.weights).vocab_size
    rows = [dict(zip(('prompt_ids', 'chosen_ids', 'rejected_ids'), row)) for row in zip(*map(list, work.pairs(vocab)))]
    config = trl.DPOConfig(
      tempfile.mkdtemp(prefix='bench-trl-'),
      bf16=False,
      fp16=False,
      beta=BETA,
      learning_rate=LEARNING_RATE,
      max_length=max(1024, work.prompt + work.completion),
      per_device_train_batch_size=len(rows),
      precompute_ref_log_probs='loop' not in programs,  # then it keeps no reference model
      report_to='none',
      save_strategy='no',
      logging_strategy='no',
      disable_tqdm=True,
    )
    self.trainer = t = Trainer(work.weights, args=config, train_dataset=datasets.Dataset.from_list(rows))
    # What `Trainer.train` sets up before its first step.
    loader = t.get_train_dataloader()
    self.model, _ = t._prepare_for_training(10**6, loader, None)
    t.current_gradient_accumulation_steps = 1
    self.batch = t._prepare_inputs(next(iter(loader)))
    default = config.gradient_checkpointing
    self.checkpointing(default)
    self.grad_norm = 0.0
    if 'loop' in programs:
      chosen, rejected = t.compute_ref_log_probs(t.ref_model, self.batch)
      self.batch |= {'ref_chosen_logps': chosen, 'ref_rejected_logps': rejected}
    self.checks = {}
    self.run(programs[0])
    if check:  # members of a group alternate between chosen and rejected; the loader has shuffled the pairs
      self.checks = {'logps': self.by_row(work, vocab), 'grad_norm': self.grad_norm}
    facts = {
      'versions': {m.__name__: m.__version__ for m in (trl, transformers, accelerate, torch)},
      'device': torch_side.device(),
      'attention': self.model.config._attn_implementation,
      'gradient_checkpointing': default,
    }
    if check:  # else only memory is asked for, which is that of the default
      facts |= self.faster(default)
    for name in programs:
      self.run(name)
    return facts

  def checkpointing(self, on: bool):
    if on:
      self.model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs=self.trainer.args.gradient_checkpointing_kwargs
      )
    else:
      self.model.gradient_checkpointing_disable()

  def faster(self, default: bool) -> dict:
    """Sets gradient checkpointing as it is faster, and says what it found."""
    seconds = {}
    for on in (not default, default):
      self.checkpointing(on)
      self.run('loop')
      seconds[on] = statistics.median(self.run('loop') for _ in range(3))
    best = min(seconds, key=seconds.get)
    self.checkpointing(best)
    names = {True: 'with', False: 'without'}
    return {'gradient_checkpointing': best, 'gradient_checkpointing_default': default} | {
      f'{names[on]}_checkpointing_s': s for on, s in seconds.items()
    }

  def by_row(self, work: Work, vocab: int) -> list[float]:
    """The completions' log-probs in our order."""
    sums = zip(self.batch['ref_chosen_logps'].tolist(), self.batch['ref_rejected_logps'].tolist())
    half = len(self.batch['input_ids']) // 2
    found = dict(zip(map(tuple, self.batch['input_ids'][:half].tolist()), sums))
    prompts, chosen, _ = work.pairs(vocab)
    return list(itertools.chain.from_iterable(found[(*p, *c)] for p, c in zip(prompts.tolist(), chosen.tolist())))

  def run(self, name: str) -> float:
    """Seconds of an optimizer step."""
    t = self.trainer
    t.precompute_ref_logps = name == 'step'
    start = torch_side.now()
    t.training_step(self.model, self.batch)
    self.grad_norm = float(t.accelerator.clip_grad_norm_(self.model.parameters(), t.args.max_grad_norm))
    t.optimizer.step()
    t.lr_scheduler.step()
    self.model.zero_grad()
    return torch_side.now() - start

  def check(self) -> dict:
    return self.checks

  def peak(self) -> float:
    return torch_side.peak_mib()


if __name__ == '__main__':
  serve(Worker())
