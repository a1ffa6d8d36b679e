"""Names of slices, and what libtpu makes of them."""

import importlib.util
import math

import pytest

from past_jax import chips
from past_jax.chips import CHIPS, topology
from past_jax.types import UserError


@pytest.mark.parametrize(
  ('name', 'found', 'devices'),
  [
    ('v5p:4x4x4', 'v5p:4x4x4', 64),
    ('v5litepod-16', 'v5e:4x4', 16),
    ('v5e-16', 'v5e:4x4', 16),
    ('v5e-1', 'v5e:1x1', 1),
    ('v6e-8', 'v6e:2x4', 8),
    ('v5p-128', 'v5p:4x4x4', 64),  # cores
    ('v4-8', 'v4:2x2x1', 4),
    ('v4-32', 'v4:2x2x4', 16),
    ('v3-8', 'v3:2x2', 8),  # a device is a core
    ('v2-512', 'v2:16x16', 512),
    ('tpu7x-128', 'tpu7x:4x4x4', 128),
    ('V5E:8x8x1', 'v5e:8x8', 64),
    ('v5p:4x4x12', 'v5p:4x4x12', 192),
  ],
)
def test_names(name, found, devices):
  assert str(topology(name)) == found
  assert topology(name).size == devices


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('v5x:2x2', 'the generations are v2, v3, v4, v5e, v5p, v6e, tpu7x'),
    ('v5', 'the generations are'),
    ('v5e', 'has no shape. There are v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4'),
    ('v5e-12', 'no slice of v5e has 12 chips. There are v5e:1x1, v5e:2x2'),
    ('v4-9', 'no slice of v4 has 9 cores. There are v4:2x2x1, v4:2x2x2'),
    ('v5p:4x4', 'v5p slices are AxBxC'),
    ('v6e:32x32', 'of at most 256 chips'),
    ('v6e:0x4', 'of at most 256 chips'),
    ('', 'the generations are'),
  ],
)
def test_wrong_names_list_the_right_ones(name, says):
  with pytest.raises(UserError, match='--topology') as error:
    topology(name)
  assert says in str(error.value)


def test_a_device_has_its_share_of_a_chip():
  assert CHIPS['v5p'].device_flops == 459e12
  assert CHIPS['tpu7x'].device_flops == 2307e12 / 2
  assert topology('v5e:1x1').device_link_rate == math.inf
  assert topology('v5e:2x2').device_link_rate == 2 * 50e9
  assert topology('v5p:4x4x4').device_link_rate == 6 * 100e9
  assert topology('tpu7x:2x2x1').device_link_rate == 2 * 100e9 / 2


def test_a_machine_without_libtpu_is_told_what_to_install(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'libtpu' else find(name))
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  with pytest.raises(UserError, match=r"--topology=v5e:2x2 needs libtpu.*pip install 'past-jax\[tpu\]'"):
    topology('v5e:2x2').devices()


@pytest.mark.slow
@pytest.mark.parametrize('chip', CHIPS.values(), ids=CHIPS)
def test_libtpu_knows_every_name(chip):
  for name in chips.names(chip)[:6]:
    devices = topology(name).devices()
    # Megacore: one device per chip where there are two cores.
    assert {device.num_cores for device in devices} == {2 if chip.name in ('v4', 'v5p') else 1}
    assert len({tuple(device.coords) for device in devices}) * chip.devices == len(devices)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5e:1x1', 'v6e:2x1', 'v5e:3x5', 'v4:1x1x1', 'v5p:2x2x3'])
def test_parts_of_a_host(name):
  assert len(topology(name).devices()) == topology(name).size
