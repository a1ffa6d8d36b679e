"""The notebooks run, and show what they say."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).parent.parent / 'notebooks'


def run(name: str) -> dict:
  """The names that a notebook's code cells leave behind."""
  matplotlib.use('Agg')
  space = {'__name__': '__main__'}
  for number, cell in enumerate(json.loads((NOTEBOOKS / name).read_text())['cells']):
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), f'{name}, cell {number}', 'exec'), space)
  return space


@pytest.mark.slow
def test_the_sharpening_figure_goes_from_samples_to_its_closed_form():
  found = run('sharpening_figure.ipynb')
  np.testing.assert_allclose(found['p_BxY'].sum(1), 1, atol=1e-4)
  exact, sampled, error = (np.array(found[name]) for name in ('exact', 'sampled', 'error'))
  assert (np.abs(sampled - exact) < 4 * error).all() and exact[0] < 0.1 and exact[-1] > 0.99
  own = np.take_along_axis(found['logp_BxY'], found['response_BxG'], 1)
  np.testing.assert_allclose(found['reward_BxG'], own, atol=1e-3)
  drawn = [line.get_ydata() for line in found['left'].get_lines()]
  assert any(np.array_equal(y, exact) for y in drawn) and any(np.array_equal(y, sampled) for y in drawn)
