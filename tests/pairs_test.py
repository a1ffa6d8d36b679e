"""Pairs and triples of names: what is read off a completion, what is made of it, and a run from the command line."""

import json

import jax
import numpy as np
import pytest
from small import llama, random_params

from past_jax import pairs
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.models.transformer import transformer
from past_jax.types import Example, Question, UserError

TEXT = 'Osk Brannel of Tarm met Mira in Lisk, near Tarm.'


def test_only_names_that_stand_in_the_text_count_and_each_once():
  assert pairs.mentioned(TEXT, ' Lisk, Tarm,Mira , Tarm, Paris, Osk Brannel.\n') == (
    'Osk Brannel',
    'Tarm',
    'Mira',
    'Lisk',
  )
  assert pairs.mentioned(TEXT, ', ,') == ()


def test_every_combination_is_one_prompt():
  question = (Question('Who?', 'Osk'),)
  examples = [Example(text=TEXT, questions=question, where='a'), Example(text='No names.', where='b')]
  made = pairs.combined(examples, [['Osk Brannel', 'Tarm', 'Lisk'], []], size=2, most=9)
  assert [e.prompt for e in made] == ['Osk Brannel, Tarm', 'Osk Brannel, Lisk', 'Tarm, Lisk']
  assert {(e.text, e.where, e.questions) for e in made} == {(TEXT, 'a', question)}
  (triple,) = pairs.combined(examples, [['Osk Brannel', 'Tarm', 'Lisk'], []], size=3, most=9)
  assert triple.prompt == 'Osk Brannel, Tarm, Lisk'


def test_the_most_is_a_choice_in_the_order_of_the_text():
  names = [[f'n{i}' for i in range(9)]] * 2
  first, second = (pairs.combined([Example(text='t')] * 2, names, 2, 5)[i : i + 5] for i in (0, 5))
  order = [f'n{i}, n{j}' for i in range(9) for j in range(i + 1, 9)]
  for part in (first, second):
    places = [order.index(e.prompt) for e in part]
    assert places == sorted(set(places))
  assert [e.prompt for e in first] != [e.prompt for e in second]


def test_no_names_at_all_is_told():
  with pytest.raises(UserError, match=r'fewer than that in each of 1 passages, 1 at most. Its first: \[.Tarm.\]'):
    pairs.combined([Example(text=TEXT)], [['Tarm']], 2, 9)


def test_the_finder_reads_what_the_model_writes(tokenizer, mesh):
  """A head that gives, whatever comes before, the byte after the last one in a fixed line: greedy text is that line."""
  line = b'Tarm,Lisk\n'
  config = llama(vocab_size=264, max_position_embeddings=96)
  policy = transformer(config)
  follow = np.full((264, 264), -30.0, np.float32)
  for a, b in zip(b':' + line, line):  # each byte occurs once, so that it tells the next
    follow[a, b] = 30.0
  # The policy's own machinery, with the last token's id as its state.
  table = jax.numpy.asarray(follow)
  real = policy

  def head(params, hidden):
    return table[jax.numpy.clip(jax.numpy.round(hidden[..., 0]), 0, 263).astype(int)]

  def decode(params, prompt_cache, cache, ids, age):
    hidden, cache = real.decode(params, prompt_cache, cache, ids, age)
    return hidden.at[..., 0].set(ids), cache

  def prefill(params, prompts):
    hidden, cache = real.prefill(params, prompts)
    return hidden.at[..., 0].set(prompts.ids_BxP[:, -1]), cache

  policy = policy._replace(head=head, decode=decode, prefill=prefill)
  shape = dict(instruction='{text}:', prompt_length=64, length=16, chunk=2)
  find = pairs.finder(policy=policy, tokenizer=tokenizer, mesh=mesh, **shape)
  with jax.set_mesh(mesh):
    found = find(random_params(config), [Example(text=TEXT), Example(text='Lisk'), Example(text='x')])
  assert found == [('Tarm', 'Lisk'), ('Lisk',), ()]


@pytest.mark.slow
def test_a_run_studies_pairs_and_remembers_the_names(tmp_path, monkeypatch, capsys):
  """A random model names nothing; the names are put in its place, and stay when the run goes on."""
  from past_jax import build

  asked = []
  two = lambda config, model, examples: asked.append(len(examples)) or [e.text.split()[:2] for e in examples]
  monkeypatch.setattr(build, 'find_names', two)
  flags = [
    '--config.pairs.size=2',
    '--config.view.instruction={prompt} | {text}\nNote:',
    '--config.view.prompt_length=160',
    '--config.mesh.data=1',
    '--config.eval.heldout=',
    '--config.eval.questions=2',
    '--config.eval.chunk=2',
    '--config.eval.answer_length=2',
    '--config.study.curriculum.epochs=1',
  ]
  command = ['study', '--config=configs/past.py:size=tiny,judge=random', f'--workdir={tmp_path}/run', *flags]
  assert main([*command, '--config.study.rounds=1']) == 0
  assert '8 combinations of names in 8 passages' in capsys.readouterr().err
  groups = rows(tmp_path / 'run' / 'groups.jsonl')
  assert all(row['prompt'].startswith(', '.join(row['text'].split()[:2]) + ' | ') for row in groups)
  assert json.loads((tmp_path / 'run' / 'names.json').read_text())[0] == groups_names(groups)
  assert main([*command, '--config.study.rounds=2']) == 0
  assert asked == [8]


def groups_names(groups):
  """The names of the world's first passage, wherever the round's order has put it."""
  from past_jax.data.worlds import TABLE

  first = TABLE['people'](count=8, seed=0).examples[0].text
  (row,) = (row for row in groups if row['text'] == first)
  return row['prompt'].split(' | ')[0].split(', ')
