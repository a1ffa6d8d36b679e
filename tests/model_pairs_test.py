"""Pairs of two models' answers, from files that compare each with a third."""

import importlib.util
import json
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location('model_pairs', Path(__file__).parents[1] / 'scripts' / 'model_pairs.py')
model_pairs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_pairs)


def write(path, preferences, text):
  rows = [
    {'instruction': f'Task {i}', 'output_1': 'same', 'output_2': text * (i + 1), 'preference': p}
    for i, p in enumerate(preferences)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_the_larger_preference_is_the_better_and_no_instruction_is_in_both(tmp_path, capsys):
  a = write(tmp_path / 'a.jsonl', [1.9] * 30 + [1.5], 'aa')
  b = write(tmp_path / 'b.jsonl', [1.2] * 20 + [2.0] * 10 + [1.4], 'b')
  model_pairs.main([f'--out={tmp_path / "out"}', str(a), str(b)])
  read = lambda name: [json.loads(line) for line in (tmp_path / 'out' / f'{name}.jsonl').read_text().splitlines()]
  parts = [read(name) for name in ('train', 'heldout')]
  rows = sum(parts, [])
  assert not {r['prompt'] for r in parts[0]} & {r['prompt'] for r in parts[1]} and all(parts)
  # 1.9 against 2.0 and 1.5 against 1.4 are too near.
  assert sorted(r['prompt'] for r in rows) == sorted(f'Task {i}' for i in range(20))
  assert all(r['better'] == 'a' and set(r['chosen']) == {'a'} and set(r['rejected']) == {'b'} for r in rows)
  assert 'the longer is better in 1.000, the better model in 1.000' in capsys.readouterr().out


def test_baselines():
  rows = [{'chosen': 'xx', 'rejected': 'y', 'better': 'a', 'worse': 'b'}] * 3
  rows += [{'chosen': 'x', 'rejected': 'yy', 'better': 'b', 'worse': 'a'}]
  rows += [{'chosen': 'x', 'rejected': 'y', 'better': 'c', 'worse': 'a'}]
  assert model_pairs.baselines(rows) == '5 pairs, the longer is better in 0.700, the better model in 0.800'


@pytest.mark.parametrize('line', ['{', '{"instruction": "x"}', '[1]'])
def test_a_bad_row_is_named(tmp_path, line):
  path = tmp_path / 'a.jsonl'
  path.write_text(line + '\n')
  with pytest.raises(SystemExit, match='a.jsonl:1: a row has instruction'):
    model_pairs.read(path)
