"""Texts from prompts: as an independent loop over a table writes them, whatever the chunk, at any temperature."""

from collections import Counter

import jax
import numpy as np
import pytest
from table_model import POLICY, TOKENIZER, TABLE_VxV, V

from past_jax import mesh as mesh_lib
from past_jax.metrics import CompileCounter
from past_jax.text import byte_tokenizer
from past_jax.types import UserError
from past_jax.writer import writer

PROMPTS = ['a', 'to be', 'xyz', 'q', 'what now?', 'b']
KEY = jax.random.key(7)


def make(mesh, chunk=4, policy=POLICY, tokenizer=TOKENIZER, **changes):
  shape = dict(prompt_length=8, length=6, chunk=chunk)
  return writer(policy=policy, tokenizer=tokenizer, mesh=mesh, **shape | changes)


def rows(texts=PROMPTS):
  return [TOKENIZER.plain(text) for text in texts]


def test_greedy_text_is_that_of_a_loop(mesh):
  expected = []
  for row in rows():
    ids = [row[-1]]
    while len(ids) <= 6 and ids[-1] not in TOKENIZER.stop_ids:
      ids.append(int(TABLE_VxV[ids[-1]].argmax()))
    expected.append(TOKENIZER.decode([i for i in ids[1:] if i not in TOKENIZER.stop_ids]))
  assert make(mesh)(TABLE_VxV, KEY, rows(), 0.0) == expected


def test_samples_follow_the_table_and_neither_the_chunk_nor_the_company(mesh):
  table = np.full((V, V), -60, np.float32)
  table[ord('a'), [ord('b'), ord('c')]] = np.log([0.8, 0.2])
  table[[ord('b'), ord('c')], TOKENIZER.eos_id] = 0
  write = make(mesh, chunk=50)
  texts = write(table, KEY, rows(['a']) * 200, 1.0)
  assert set(texts) == {'b', 'c'}  # the end token is not text
  assert texts.count('b') == pytest.approx(160, abs=25)
  assert make(mesh, chunk=7)(table, KEY, rows(['a']) * 200, 1.0) == texts
  assert write(table, KEY, rows(['a']) * 3, 1.0) == texts[:3]
  assert write(table, jax.random.key(8), rows(['a']) * 200, 1.0) != texts
  sharp = Counter(write(table, KEY, rows(['a']) * 200, 0.5))  # 0.8^2 / (0.8^2 + 0.2^2) = 16/17
  assert sharp['b'] == pytest.approx(188, abs=12)


def test_four_devices_write_the_same(mesh):
  four = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 1})
  with jax.set_mesh(four):
    shared = make(four)(TABLE_VxV, KEY, rows(), 1.0)
  assert shared == make(mesh)(TABLE_VxV, KEY, rows(), 1.0)


def test_one_program_for_all_temperatures_and_numbers_of_rows(mesh):
  write = make(mesh)
  write(TABLE_VxV, KEY, rows(), 0.0)
  counter, ticks = CompileCounter(), []
  for count, temperature in ((6, 0.7), (1, 1.0), (5, 0.0)):
    assert len(write(TABLE_VxV, KEY, rows()[:count], temperature, lambda x: ticks.append(1) or x)) == count
  assert counter.count == 0 and len(ticks) == 2 + 1 + 2
  assert write(TABLE_VxV, KEY, [], 1.0) == []


def test_a_stop_text_ends_a_completion_and_is_no_part_of_it(mesh):
  line = b'one\nt'
  table = np.full((V, V), -30, np.float32)
  for a, b in zip(b':' + line, line):
    table[a, b] = 30
  assert make(mesh, stop=('\n',))(table, KEY, rows(['say:']), 0.0) == ['one']
  assert make(mesh)(table, KEY, rows(['say:']), 0.0)[0].startswith('one\nt')
  with pytest.raises(UserError, match="'ab' is 2 tokens"):
    make(mesh, stop=('ab',))


def test_long_prompts_lose_their_beginning_but_not_the_bos(mesh, policy, params):
  tokenizer = byte_tokenizer(adds_bos=True)
  write = make(mesh, policy=policy, tokenizer=tokenizer)
  long, short, other = (tokenizer.plain(text) for text in ('of which the end', 'the end', 'THE END'))
  assert len(short) == 8
  written = write(params, KEY, [long, short, other], 0.0)
  assert written[0] == written[1] != written[2]


def test_an_empty_prompt_is_refused(mesh):
  with pytest.raises(UserError, match='empty'):
    make(mesh)(TABLE_VxV, KEY, [*rows(), []], 0.0)
