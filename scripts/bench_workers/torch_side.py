"""What the workers on PyTorch share: the same on a GPU and without one."""

import os
import time

import torch

from bench_workers.protocol import resident_mib

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes


def now() -> float:
  """Seconds, once the device has done what it was asked for."""
  if DEVICE == 'cuda':
    torch.cuda.synchronize()
  return time.perf_counter()


def device() -> str:
  return torch.cuda.get_device_name() if DEVICE == 'cuda' else f'cpu, {torch.get_num_threads()} threads'


def peak_mib() -> float:
  return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == 'cuda' else resident_mib()
