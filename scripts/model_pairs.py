"""Preference pairs of two models' answers to one instruction, from files in which each was compared with a third's.

  python scripts/model_pairs.py --out=data/pairs MODEL_A.jsonl MODEL_B.jsonl ...

Rows of a file, as AlpacaEval has them: instruction, output_1 (in all files the same text), output_2 (this model's), and
preference, from 1 (for output_1) to 2. To learn from output_1 against output_2 is to learn who wrote what. Two models'
output_2 are compared through their preferences: the larger is the better, where they differ by --margin or more.
OUT/train.jsonl and OUT/heldout.jsonl have prompt, chosen, rejected, better and worse (the files' names), and no
instruction is in both. What is printed are baselines on each: how often the longer is the better, and the model that
wins more often of each two.
"""

import argparse
import itertools
import json
import sys
import zlib
from collections import Counter
from pathlib import Path


def read(path: Path) -> dict[str, dict]:
  """{instruction: row}"""
  rows = {}
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
    try:
      row = json.loads(line)
      row['output_2'], float(row['preference'])
      rows[row['instruction']] = row
    except (ValueError, KeyError, TypeError) as error:
      sys.exit(f'{path}:{number}: a row has instruction, output_2 and preference, from 1 to 2: {error!r}.')
  return rows


def pairs(files: dict[str, dict[str, dict]], margin: float) -> list[dict]:
  """In the order of files and rows."""
  out = []
  for a, b in itertools.combinations(files, 2):
    for prompt in (p for p in files[a] if p in files[b]):
      by = files[a][prompt]['preference'] - files[b][prompt]['preference']
      if abs(by) >= margin and files[a][prompt]['output_2'] != files[b][prompt]['output_2']:
        better, worse = (a, b) if by > 0 else (b, a)
        said = {key: files[name][prompt]['output_2'] for key, name in (('chosen', better), ('rejected', worse))}
        out.append({'prompt': prompt, **said, 'better': better, 'worse': worse})
  return out


def held_out(prompt: str, share: float) -> bool:
  """The same for an instruction whatever else is in the files."""
  return zlib.crc32(prompt.encode()) / 2**32 < share


def baselines(rows: list[dict]) -> str:
  longer = sum((len(r['chosen']) > len(r['rejected'])) + (len(r['chosen']) == len(r['rejected'])) / 2 for r in rows)
  won = Counter((r['better'], r['worse']) for r in rows)
  best = sum(max(won[a, b], won[b, a]) for a, b in {tuple(sorted(two)) for two in won})
  return (
    f'{len(rows)} pairs, the longer is better in {longer / len(rows):.3f}, the better model in {best / len(rows):.3f}'
  )


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('files', nargs='+', type=Path, help='two or more')
  parser.add_argument('--out', required=True, type=Path, help='folder to make')
  parser.add_argument('--margin', default=0.2, type=float, help='least difference of preferences')
  parser.add_argument('--heldout', default=0.3, type=float, help='share of the instructions')
  options = parser.parse_args(argv)
  if missing := [str(path) for path in options.files if not path.is_file()]:
    sys.exit(f'there is no file {missing[0]}.')
  found = pairs({path.stem: read(path) for path in options.files}, options.margin)
  parts = {True: [], False: []}
  for row in found:
    parts[held_out(row['prompt'], options.heldout)].append(row)
  if not all(parts.values()):
    sys.exit(f'{len(found)} pairs differ by {options.margin} or more: too few to hold some out. Lower --margin.')
  options.out.mkdir(parents=True, exist_ok=True)
  for name, rows in (('train', parts[False]), ('heldout', parts[True])):
    path = options.out / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8')
    print(f'{path}: {baselines(rows)}')


if __name__ == '__main__':
  main(sys.argv[1:])
