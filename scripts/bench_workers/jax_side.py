"""What the workers on JAX share."""

import jax

from bench_workers.protocol import resident_mib


def device() -> str:
  return jax.devices()[0].device_kind


def peak_mib() -> float:
  """Of the device, or of this process where the device is the host."""
  stats = jax.devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] / 2**20 if stats else resident_mib()
