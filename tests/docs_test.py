"""Commands that the pages give for TPUs: what they create can run what they run."""

import re
from pathlib import Path

import pytest

from past_jax import checks
from past_jax.chips import topology
from past_jax.commands import study

ROOT = Path(__file__).parent.parent


def runs(page: str):
  """(type, flags of the config) of every study on a TPU that the page has created before."""
  kind = ''
  for line in (ROOT / page).read_text().replace('\\\n', ' ').splitlines():
    if found := re.search(r'--(?:tpu-)?type=(\S+)', line):
      kind = found[1]
    if kind and (found := re.search(r'\bstudy (--config=.*)', line)):
      yield kind, [word.strip('"') for word in found[1].split() if word.startswith('--config')]


@pytest.mark.parametrize('page', ['README.md', 'docs/tpu.md'])
def test_what_is_run_on_a_tpu_fits_its_devices(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = list(runs(page))
  assert found
  for kind, (config, *overrides) in found:
    loaded = study.load_config(config.removeprefix('--config='))
    for flag in overrides:
      study.override(loaded, flag)
    assert checks.check(loaded, topology(kind).size) == [], f'{kind}: {config}'
