"""`past sample`, `past score` and `past export`: what they write, that they resume, and what they say."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from past_jax import models
from past_jax.checkpoint import Checkpoints
from past_jax.commands import rows
from past_jax.main import main
from past_jax.models import families, weights
from past_jax.progress import Progress
from past_jax.types import TrainState

CHAT = [{'role': 'user', 'content': 'Hi'}]
PROMPTS = [
  {'prompt': 'The cave', 'id': 7, 'tags': ['a', 'é\u2028']},
  {'id': 1.5, 'prompt': 'Orrin'},
  {'prompt': '<|bos|>x', 'note': None},
  {'prompt': 'q' * 16},
  {'messages': CHAT, 'i': 0},
  {'prompt': 'The cave'},
]
SAMPLE = ['--group=2', '--max_new_tokens=6', '--batch=4', '--mesh=1,1,1']


LENGTH = 32  # of every program: few are compiled
load = functools.cache(models.load)


@pytest.fixture
def past(tmp_path, monkeypatch, capsys):
  """past(command, *flags) -> (exit code, stdout, stderr), run in a folder of its own."""
  monkeypatch.setattr(models, 'load', load)  # an equal policy finds the programs that were compiled for it
  monkeypatch.setattr(rows, 'SMALLEST', LENGTH)
  monkeypatch.chdir(tmp_path)
  write('prompts.jsonl', PROMPTS)

  def run(*argv):
    capsys.readouterr()
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err

  return run


def write(name, data):
  with open(name, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in data)


def read(name):
  with open(name, encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def sample(past, *flags, prompts='prompts.jsonl', out='out.jsonl'):
  return past('sample', '--model=scratch:tiny', f'--prompts={prompts}', f'--out={out}', *SAMPLE, *flags)


def score(past, *flags, model='scratch:tiny', data='data.jsonl', out='scores.jsonl'):
  return past('score', f'--model={model}', f'--data={data}', f'--out={out}', '--mesh=1,1,1', '--batch=4', *flags)


def ids_of(name):
  return [[c['ids'] for c in row['completions']] for row in read(name)]


def prompt_ids(tokenizer, row):
  return tokenizer.plain(row['prompt']) if 'prompt' in row else tokenizer.chat(row['messages'])


@functools.partial(jax.jit, static_argnums=0)
def row_logits(policy, params, ids_NxL, length_N):
  return policy.head(params, policy.rows(params, ids_NxL, length_N))


def log_probs(model, params, ids):
  """log p(next token) after each token of one row, [tokens, V], normalised in float64 by numpy."""
  padded = np.zeros((1, 2 * LENGTH), np.int32)
  padded[0, : len(ids)] = ids
  logits = np.asarray(row_logits(model.policy, params, padded, np.array([len(ids)]))[0, : len(ids)], np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected_logps(model, params, prompt, completion):
  """log p of every token of `completion`, but of a first one that nothing precedes."""
  ids = [*prompt, *completion]
  logps = log_probs(model, params, ids)
  return [logps[i - 1, ids[i]] for i in range(max(1, len(prompt)), len(ids))]


# --- sample -------------------------------------------------------------------------------------------------------


def test_sample_keeps_rows_and_order(past):
  assert sample(past)[:2] == (0, 'out.jsonl: 6 rows.\n')
  found, tokenizer = read('out.jsonl'), load('scratch:tiny').tokenizer
  assert [list(row.items())[:-1] for row in found] == [list(row.items()) for row in PROMPTS]
  for row in found:
    assert len(row['completions']) == 2
    for c in row['completions']:
      assert list(c) == ['text', 'ids', 'logp', 'finished']
      assert c['finished'] == (c['ids'][-1] in tokenizer.stop_ids) and len(c['ids']) <= 6
      assert c['text'] == tokenizer.decode(c['ids'][:-1] if c['finished'] else c['ids'])
  # Equal prompts in other rows are other draws.
  assert found[0]['completions'] != found[5]['completions']


def test_sampled_log_probs_are_those_of_score(past):
  sample(past, '--temperature=0.7', '--top_k=50')
  drawn = [(row, c) for row in read('out.jsonl') for c in row.pop('completions')]
  write('data.jsonl', [{**row, 'completion': c['ids']} for row, c in drawn])
  assert score(past)[0] == 0
  scored = read('scores.jsonl')
  np.testing.assert_allclose([s['logp'] for s in scored], [c['logp'] for _, c in drawn], atol=1e-4)
  assert [s['tokens'] for s in scored] == [len(c['ids']) for _, c in drawn]


@pytest.mark.parametrize(
  'flag', ['--batch=1', '--slots=3', '--mesh=-1,1,1', pytest.param('--mesh=2,2,2', marks=pytest.mark.slow)]
)
def test_batch_slots_and_mesh_change_no_token(past, flag):
  sample(past)
  assert sample(past, flag, out='other.jsonl')[0] == 0
  assert ids_of('other.jsonl') == ids_of('out.jsonl')
  logps = [[c['logp'] for row in read(name) for c in row['completions']] for name in ('out.jsonl', 'other.jsonl')]
  np.testing.assert_allclose(*logps, atol=1e-4)


def test_seed_and_temperature(past, mesh):
  sample(past)
  sample(past, '--seed=1', out='seed.jsonl')
  assert ids_of('seed.jsonl') != ids_of('out.jsonl')
  for seed in (0, 1):
    sample(past, '--temperature=0', f'--seed={seed}', out=f'greedy{seed}.jsonl')
  assert ids_of('greedy0.jsonl') == ids_of('greedy1.jsonl')
  # The likeliest first token, found without the sampler.
  model = load('scratch:tiny')
  params = model.read(mesh)
  for row, group in zip(read('prompts.jsonl'), ids_of('greedy0.jsonl')):
    prompt = prompt_ids(model.tokenizer, row)
    assert group[0] == group[1] and group[0][0] == log_probs(model, params, prompt)[len(prompt) - 1].argmax()
  # Keeping one token is greedy too; keeping more than there are is keeping all.
  sample(past, '--top_k=1', out='one.jsonl')
  assert ids_of('one.jsonl') == ids_of('greedy0.jsonl')
  sample(past, '--top_k=100000', out='all.jsonl')
  assert ids_of('all.jsonl') == ids_of('out.jsonl')


def test_stop_text_ends_a_completion(past):
  sample(past)
  stop = next(chr(i) for group in ids_of('out.jsonl') for ids in group for i in ids[1:-1] if 32 < i < 127)
  assert sample(past, f'--stop={stop}', out='stopped.jsonl')[0] == 0
  ended = [c for row in read('stopped.jsonl') for c in row['completions'] if c['ids'][-1] == ord(stop)]
  assert ended and all(c['finished'] and stop not in c['text'] for c in ended)
  code, _, err = sample(past, '--stop=two', out='x.jsonl')
  assert (code, err) == (2, "past sample: --stop='two' is 3 tokens to this model; a stop text is exactly one.\n")


def test_long_prompts_lose_their_beginning(past):
  end = '0123456789' * 3 + 'ab'
  write('long.jsonl', [{'prompt': 'x' * 40 + end}, {'prompt': end}])
  code, out, _ = sample(past, '--max_prompt_length=32', '--temperature=0', prompts='long.jsonl')
  assert (code, out) == (0, 'out.jsonl: 2 rows. 1 prompts were cut on the left to 32 tokens.\n')
  first, second = ids_of('out.jsonl')
  assert first == second
  code, _, err = sample(past, '--max_prompt_length=510', out='x.jsonl')
  assert code == 2 and 'together exceed the 512 tokens' in err
  code, _, err = sample(past, '--max_new_tokens=512', out='x.jsonl')
  assert code == 2 and 'together exceed the 512 tokens' in err


@pytest.mark.parametrize('judge', ['likelihood', 'length_normalised', 'majority'])
def test_best_of_marks_the_best(past, judge):
  model = ('--model=scratch:tiny', '--prompts=prompts.jsonl', '--max_new_tokens=6', '--mesh=1,1,1')
  call = lambda *flags: past('sample', *model, '--best_of=3', f'--judge={judge}', '--out=best.jsonl', *flags)
  assert call('--rule=line')[:2] == (0, 'best.jsonl: 6 rows.\n')
  assert past('sample', *model, '--group=3', '--out=out.jsonl')[0] == 0
  for row, plain in zip(read('best.jsonl'), read('out.jsonl'), strict=True):
    scores = [c.pop('score') for c in row['completions']]
    assert row['completions'] == plain['completions']
    lines = [[line.strip() for line in c['text'].splitlines() if line.strip()] for c in plain['completions']]
    votes = [(line[0].casefold() if line else None) for line in lines]
    expected = {
      'likelihood': [c['logp'] for c in plain['completions']],
      'length_normalised': [c['logp'] / len(c['ids']) for c in plain['completions']],
      'majority': [vote and votes.count(vote) / 3 for vote in votes],
    }[judge]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert row['best'] == int(np.nanargmax(np.array(expected, float)))
  # Resumed, it is the same file; judged otherwise, another.
  with open('best.jsonl', 'rb') as file:
    whole = file.read()
  os.truncate('best.jsonl', len(whole) // 2)
  assert call('--rule=line')[0] == 0
  with open('best.jsonl', 'rb') as file:
    assert file.read() == whole
  code, _, err = call('--rule=boxed')
  assert code == 2 and 'rule "line" -> "boxed"' in err


def test_nobody_is_best_without_an_answer(past):
  write('prompts.jsonl', PROMPTS[:1])
  flags = ['--best_of=3', '--judge=majority', '--rule=tag', '--max_new_tokens=6', '--mesh=1,1,1', '--out=out.jsonl']
  assert past('sample', '--model=scratch:tiny', '--prompts=prompts.jsonl', *flags)[0] == 0
  (row,) = read('out.jsonl')
  assert row['best'] is None and [c['score'] for c in row['completions']] == [None] * 3


def test_adaptive_draws_until_the_rule_says_stop(past):
  """The first k with 1 / max p <= k / ln(2 / delta); completions are a beginning of those that all N would be."""
  flags = ['--model=scratch:tiny', '--prompts=prompts.jsonl', '--mesh=1,1,1', '--max_new_tokens=1', '--best_of=200']
  assert past('sample', *flags, '--out=all.jsonl')[0] == 0
  whole = [[(c['ids'], np.exp(c['logp'])) for c in row['completions']] for row in read('all.jsonl')]
  used = []
  for everything in whole:
    p = [p for _, p in everything]
    used.append(next((k for k in range(1, 201) if 1 / max(p[:k]) <= k / np.log(2 / 0.9)), 200))
  assert len(set(used)) > 1 and min(used) < 200
  code, out, _ = past('sample', *flags, '--adaptive', '--delta=0.9', '--group=64', '--out=few.jsonl')
  said = f'{np.mean(used):.1f} of up to 200 completions were enough for a prompt, on average.'
  assert (code, out) == (0, f'few.jsonl: 6 rows. {said}\n')
  for row, everything, k in zip(read('few.jsonl'), whole, used, strict=True):
    assert [c['ids'] for c in row['completions']] == [ids for ids, _ in everything[:k]]
    assert row['best'] == int(np.argmax([p for _, p in everything[:k]]))


# --- resuming -----------------------------------------------------------------------------------------------------


def test_resume_gives_the_same_file(past):
  sample(past)
  with open('out.jsonl', 'rb') as file:
    whole = file.read()
  line_ends = [m.end() for m in re.finditer(b'\n', whole)]
  cuts = {0: 0, 10: 0, line_ends[0]: 1, line_ends[3]: 4, line_ends[4] + 9: 5, len(whole) - 1: 5}
  for cut, kept in cuts.items():
    os.truncate('out.jsonl', cut)
    code, out, _ = sample(past)
    now = f' ({6 - kept} of them now)' if kept else ''
    assert (code, out) == (0, f'out.jsonl: 6 rows{now}.\n')
    with open('out.jsonl', 'rb') as file:
      assert file.read() == whole
  code, out, err = sample(past)
  assert (code, out, err) == (0, 'out.jsonl is finished: 6 rows.\n', '')
  # With another batch the tokens are the same, though the last digits of a log-prob need not be.
  os.truncate('out.jsonl', line_ends[2] + 5)
  assert sample(past, '--batch=1')[0] == 0
  write('whole.jsonl', [json.loads(line) for line in whole.splitlines()])
  assert ids_of('out.jsonl') == ids_of('whole.jsonl')


def test_rows_may_be_appended_and_mended(past):
  write('prompts.jsonl', [*PROMPTS[:4], {'prompt': ''}])
  code, _, err = sample(past, '--batch=1')
  assert code == 2 and 'prompts.jsonl:5: the prompt is empty' in err
  assert len(read('out.jsonl')) == 4
  write('prompts.jsonl', PROMPTS)
  assert sample(past)[1] == 'out.jsonl: 6 rows (2 of them now).\n'
  sample(past, out='at_once.jsonl')
  assert ids_of('out.jsonl') == ids_of('at_once.jsonl')


def test_ctrl_c_between_batches(past, monkeypatch):
  sample(past, '--batch=1', out='at_once.jsonl')

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Progress, 'advance', interrupt)
    code, out, err = sample(past, '--batch=1')
  assert (code, out) == (130, '')
  message = 'past sample: interrupted; out.jsonl holds 1 of 6 rows. The same command goes on from there.'
  assert err.splitlines()[-1] == message
  assert sample(past, '--batch=1')[0] == 0
  with open('out.jsonl') as resumed, open('at_once.jsonl') as whole:
    assert resumed.read() == whole.read()


def test_other_flags_are_refused(past):
  sample(past)
  with open('out.jsonl') as file:
    before = file.read()
  code, _, err = sample(past, '--temperature=0.5', '--stop=x')
  assert code == 2 and len(err.splitlines()) == 1
  assert 'made otherwise (there -> here): temperature 1.0 -> 0.5; stop null -> ["x"]. To start over, delete' in err
  # Another command's file, and one whose origin is not known.
  code, _, err = score(past, data='prompts.jsonl', out='out.jsonl')
  assert code == 2 and 'command "sample" -> "score"' in err
  os.rename('out.jsonl.meta.json', 'elsewhere')
  code, _, err = sample(past)
  assert code == 2 and 'out.jsonl exists, and no out.jsonl.meta.json says how it was made' in err
  assert sample(past, out='prompts.jsonl')[0] == 2
  os.rename('elsewhere', 'out.jsonl.meta.json')
  # Other rows.
  write('prompts.jsonl', [*PROMPTS[:2], {'prompt': 'other'}, *PROMPTS[3:]])
  code, _, err = sample(past)
  assert code == 2 and 'out.jsonl:3 is not about the row at prompts.jsonl:3.' in err
  write('prompts.jsonl', PROMPTS[:3])
  code, _, err = sample(past)
  assert code == 2 and 'out.jsonl has more lines than prompts.jsonl has rows.' in err
  with open('out.jsonl') as file:
    assert file.read() == before


# --- score --------------------------------------------------------------------------------------------------------


def test_score(past, mesh):
  model = load('scratch:tiny')
  params = model.read(mesh)
  data = [
    {'prompt': 'The cave', 'completion': ' of Orrin', 'id': 3},
    {'prompt': '', 'completion': 'alone'},
    {'completion': '', 'messages': CHAT},
    {'prompt': 'ids', 'completion': [1, 2, 3]},
    {'prompt': '', 'completion': []},
    {'prompt': 'a pair', 'chosen': 'good', 'rejected': 'not so good'},
  ]
  write('data.jsonl', data)
  assert score(past)[:2] == (0, 'scores.jsonl: 6 rows.\n')
  assert score(past, '--noend', out='noend.jsonl')[0] == 0
  for name, end in (('scores.jsonl', [model.tokenizer.eos_id]), ('noend.jsonl', [])):
    for row, found in zip(data, read(name), strict=True):
      assert list(found.items())[: len(row)] == list(row.items())
      prompt = prompt_ids(model.tokenizer, row)
      fields = {'completion': ''} if 'completion' in row else {'chosen': '_chosen', 'rejected': '_rejected'}
      added = {f'{key}{suffix}' for suffix in fields.values() for key in ('logp', 'tokens', 'logps')}
      assert set(found) - set(row) == added
      for field, suffix in fields.items():
        completion = row[field] if isinstance(row[field], list) else model.tokenizer.encode(row[field]) + end
        wanted, logps = expected_logps(model, params, prompt, completion), found[f'logps{suffix}']
        assert len(logps) == len(completion)
        if not prompt and completion:
          assert logps.pop(0) is None
        np.testing.assert_allclose(logps, wanted, atol=1e-5)
        assert found[f'tokens{suffix}'] == len(wanted)
        assert found[f'logp{suffix}'] == pytest.approx(sum(wanted), abs=1e-4)


def test_score_cuts_to_max_length(past):
  end = '0123456789' * 2
  write('long.jsonl', [{'prompt': 'x' * 30 + end, 'completion': 'y' * 11}, {'prompt': 'ab', 'completion': 'c' * 50}])
  code, out, _ = score(past, '--max_length=32', data='long.jsonl', out='long_scores.jsonl')
  said = 'long_scores.jsonl: 2 rows. 2 prompts were cut on the left to fit 32 tokens.'
  assert (code, out) == (0, said + ' 1 completions were cut on the right to fit 32 tokens.\n')
  write('data.jsonl', [{'prompt': end, 'completion': 'y' * 11}, {'prompt': 'b', 'completion': [ord('c')] * 31}])
  score(past)
  for cut, short in zip(read('long_scores.jsonl'), read('scores.jsonl'), strict=True):
    np.testing.assert_allclose(cut['logps'], short['logps'], atol=1e-5)
  code, _, err = score(past, '--max_length=1000', out='x.jsonl')
  assert code == 2 and "exceeds the 512 tokens of the model's context" in err


# --- export -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(tmp_path, params):
  """A workdir as `past study` leaves it, with checkpoints of these steps: step -> params."""

  def make(name, *steps):
    workdir = tmp_path / name
    workdir.mkdir()
    (workdir / 'config.json').write_text(json.dumps({'model': {'spec': 'scratch:tiny', 'dtype': 'float32'}}))
    checkpoints = Checkpoints(workdir / 'checkpoints', keep=3)
    made = {step: jax.tree.map(lambda x, s=step: x * (1 + s / 16), params) for step in steps}
    for step, p in made.items():
      state = TrainState(jnp.int32(step), p, optax.adam(1e-3).init(p))
      checkpoints.save(step, {'state': state, 'batch': {'ids': jnp.arange(3)}}, {'cursor': {'step': step}})
    checkpoints.wait()
    return made

  return make


def test_export_scores_as_the_checkpoint(past, run_of):
  made = run_of('run', 3, 5)
  code, out, err = past('export', '--workdir=run', '--out=new/hf')
  assert (code, err) == (0, '')
  assert out == 'new/hf: scratch:tiny as studied in run up to step 5, in float32. Use it with --model=new/hf.\n'
  names = {'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'}
  assert set(os.listdir('new/hf')) == names | {'chat_template.jinja'}
  write('data.jsonl', [{'prompt': 'The cave', 'completion': ' of Orrin'}, {'prompt': 'a', 'completion': 'bc'}])
  assert score(past, model='new/hf')[0] == 0
  model = load('scratch:tiny')
  for row in read('scores.jsonl'):
    completion = model.tokenizer.encode(row['completion']) + [model.tokenizer.eos_id]
    wanted = expected_logps(model, made[5], model.tokenizer.plain(row['prompt']), completion)
    np.testing.assert_allclose(row['logps'], wanted, atol=1e-5)
  # Other weights in the same place are another model.
  os.utime('new/hf/model.safetensors', (1, 1))
  code, _, err = score(past, model='new/hf')
  assert code == 2 and re.search(r'weights "\d+ bytes of .*" -> "\d+ bytes of 1970-', err)


def test_export_of_a_step_in_a_dtype(past, run_of):
  made = run_of('run', 3, 5)
  for dtype in ('float32', 'bfloat16', 'float16'):
    code, out, _ = past('export', '--workdir=run', f'--out={dtype}', '--step=3', f'--dtype={dtype}')
    assert code == 0 and f'up to step 3, in {dtype}.' in out
    found = weights.read(dtype, families.read_config(dtype))
    jax.tree.map(lambda x, y, t=dtype: np.testing.assert_array_equal(x, y.astype(t).astype('float32')), found, made[3])


def test_export_passes_over_a_damaged_checkpoint(past, run_of, tmp_path):
  run_of('run', 3, 5)
  (tmp_path / 'run/checkpoints/5/host.json').write_text('{}')
  code, out, err = past('export', '--workdir=run', '--out=hf')
  assert code == 0 and 'up to step 3' in out
  assert err.startswith('past export: checkpoint 5 is damaged: ') and len(err.splitlines()) == 1
  # A checkpoint that was asked for is not replaced by another.
  code, _, err = past('export', '--workdir=run', '--out=hf5', '--step=5')
  assert code == 2 and 'checkpoint 5 is damaged' in err and not os.path.exists('hf5')


def test_export_refuses(past, run_of):
  run_of('run', 3)
  run_of('young')
  os.makedirs('full/inside')
  os.mkdir('broken')
  write('broken/config.json', ['?'])
  for flags, message in {
    ('--workdir=run', '--out=full'): '--out=full exists and is not an empty folder; name another.',
    ('--workdir=full', '--out=x'): 'full is not the workdir of a run: there is no config.json.',
    ('--workdir=broken', '--out=x'): 'broken/config.json is not the config of a run; restore the file.',
    ('--workdir=young', '--out=x'): 'young has no checkpoint yet; past study writes the first one after a round.',
    ('--workdir=run', '--out=x', '--step=4'): 'run has no checkpoint of step 4; there are 3.',
    ('--workdir=run',): '--out=... is missing; past export --help explains.',
  }.items():
    assert past('export', *flags) == (2, '', f'past export: {message}\n')
  assert not os.path.exists('x')
  os.mkdir('empty')
  assert past('export', '--workdir=run', '--out=empty')[0] == 0


# --- messages -----------------------------------------------------------------------------------------------------

SAMPLE_ROWS = [
  ('', 'rows.jsonl is empty: it holds one JSON object a line.'),
  ('\n  \n', 'rows.jsonl is empty: it holds one JSON object a line.'),
  ('{"prompt": "a"}\n\n{"prompt": \n', 'rows.jsonl:3: not a line of JSON in UTF-8: Expecting value'),
  ('{"prompt": "a", "x": NaN}', 'rows.jsonl:1: not a line of JSON in UTF-8: Out of range float'),
  ('{"prompt": "\\ud800"}', 'rows.jsonl:1: not a line of JSON in UTF-8'),
  ('["a"]', 'rows.jsonl:1: a row is a JSON object, such as {"prompt": "..."}.'),
  ('{"promt": "a", "id": 1}', 'rows.jsonl:1: a row has prompt or messages; fields present: promt, id.'),
  ('{}', 'rows.jsonl:1: a row has prompt or messages; fields present: none.'),
  ('{"prompt": "a", "messages": []}', 'rows.jsonl:1: the row has both prompt and messages'),
  ('{"prompt": ["a"]}', 'rows.jsonl:1: prompt is a string; a chat goes into messages.'),
  ('{"messages": "a"}', 'rows.jsonl:1: messages is a list of {"role": ..., "content": ...}, not empty.'),
  ('{"prompt": "a", "completions": []}', 'rows.jsonl:1: the row has a field completions already'),
]
SCORE_ROWS = [
  ('{"prompt": "a"}', 'rows.jsonl:1: a row has completion, or chosen and rejected; fields present: prompt.'),
  ('{"prompt": "a", "chosen": "b"}', 'rows.jsonl:1: a row has completion, or chosen and rejected'),
  ('{"prompt": "a", "completion": "b", "chosen": "b"}', 'rows.jsonl:1: the row has both completion and chosen'),
  ('{"prompt": "a", "completion": [true]}', 'rows.jsonl:1: completion is a string, or a list of ids.'),
  ('{"prompt": "a", "completion": "b", "logp": 1}', 'rows.jsonl:1: the row has a field logp already'),
  ('{"prompt": "a", "completion": [999]}', 'rows.jsonl:1: completion has the id 999; the model knows 264 ids.'),
]


@pytest.mark.parametrize(
  ('command', 'text', 'message'),
  [('sample', *case) for case in SAMPLE_ROWS] + [('score', *case) for case in SCORE_ROWS],
)
def test_bad_rows(past, command, text, message):
  with open('rows.jsonl', 'w', encoding='utf-8') as file:
    file.write(text)
  code, out, err = sample(past, prompts='rows.jsonl') if command == 'sample' else score(past, data='rows.jsonl')
  err = err.splitlines()
  assert (code, out) == (2, '') and err[-1].startswith(f'past {command}: {message}')
  assert sorted(os.listdir()) == ['prompts.jsonl', 'rows.jsonl']


def test_bad_flags(past):
  given = {'model': 'scratch:tiny', 'prompts': 'prompts.jsonl', 'out': 'out.jsonl'}
  for flags, message in {
    ('prompts=promts.jsonl',): 'there is no file promts.jsonl. Did you mean prompts.jsonl?',
    ('prompts=.',): '. is not a file; rows are read more than once, so a pipe will not do.',
    ('out=prompts.jsonl/out.jsonl',): '--out=prompts.jsonl/out.jsonl cannot be written: ',
    ('out=.',): '--out=. is not a file that can be continued; name a new one.',
    ('model=scratch:tiney',): "'scratch:tiney' is neither a directory nor a model spec. A spec is ",
    ('mesh=2,2',): '--mesh=2,2: give three numbers, such as -1,1,1.',
    ('mesh=64,1,1',): "--mesh = {'data': 64, 'fsdp': 1, 'tensor': 1} needs 64 devices; there are 8.",
    ('slots=13', 'group=2', 'mesh=1,1,1'): '--slots=13 must be R x C, R rows (at most the 8 prompts of a call',
    ('temprature=1',): 'there is no flag --temprature. Did you mean --temperature?',
    ('group=0',): 'flag --group=0: ',
    ('top_p=0',): 'flag --top_p=0: ',
    ('dtype=float8',): 'flag --dtype=float8: ',
    ('judge=majority',): '--judge says which of N completions is best: set --best_of=N.',
    ('best_of=8', 'group=4'): '--best_of says how many completions are drawn: leave --group out',
    ('best_of=8', 'rule=lines'): 'flag --rule=lines: ',
    ('best_of=8', 'adaptive=true', 'delta=1.9'): 'flag --delta=1.9: ',
    ('best_of=8', 'adaptive=true', 'judge=majority'): '--adaptive looks for the likeliest completion, not the best by',
    ('best_of=8', 'adaptive=true', 'temperature=0.7'): '--adaptive counts samples of the model itself: temperature 1',
    ('model=',): '--model=... is missing; past sample --help explains.',
  }.items():
    values = [f'--{k}={v}' for k, v in {**given, **dict(f.split('=', 1) for f in flags)}.items()]
    code, out, err = past('sample', *values)
    assert (code, out) == (2, '') and err.splitlines()[-1].startswith(f'past sample: {message}'), err
    assert os.listdir() == ['prompts.jsonl']


@pytest.mark.parametrize('command', ['sample', 'score', 'export'])
def test_help(past, command):
  code, out, err = past(command, '--help')
  assert (code, err) == (0, '') and out.startswith(f'past {command}: ') and '  --out  ' in out


# --- processes ----------------------------------------------------------------------------------------------------


def start(*flags, **kwargs):
  """`past sample` as a process, on enough rows to be hit while it works."""
  # A shell starts background jobs with SIGINT ignored; a person's terminal does not.
  code = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from past_jax.main import run; run()'
  command = [sys.executable, '-c', code, 'sample', '--model=scratch:tiny', '--prompts=many.jsonl']
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  command += ['--out=out.jsonl', '--batch=2', '--max_new_tokens=64', *flags]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kwargs)


def until_lines(process, count):
  while process.poll() is None:
    if os.path.exists('out.jsonl') and os.path.getsize('out.jsonl') and len(lines('out.jsonl')) >= count:
      return
    time.sleep(0.01)
  raise AssertionError(f'ended early: {process.communicate()}')


def lines(name):
  with open(name, 'rb') as file:
    return file.read().splitlines(keepends=True)


@pytest.fixture
def many(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write('many.jsonl', [{'prompt': f'row {i}'} for i in range(400)])


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_process_resumes(many, number):
  process = start()
  until_lines(process, 8)
  process.send_signal(number)
  out, err = process.communicate(timeout=60)
  if number == signal.SIGINT:
    assert (process.returncode, out) == (130, '')
    assert re.search(r'past sample: interrupted; out.jsonl holds \d+ of 400 rows.', err.splitlines()[-1])
    assert lines('out.jsonl')[-1].endswith(b'}\n')
  kept = [line for line in lines('out.jsonl') if line.endswith(b'\n')]
  assert 8 <= len(kept) < 400
  write('few.jsonl', read('many.jsonl')[: len(kept) + 4])
  os.replace('few.jsonl', 'many.jsonl')
  process = start()
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  resumed = lines('out.jsonl')
  assert resumed[: len(kept)] == kept and len(resumed) == len(kept) + 4
  os.remove('out.jsonl')
  process = start()
  process.communicate(timeout=300)
  assert lines('out.jsonl') == resumed


@pytest.mark.slow
def test_full_disk(many):
  limit = 'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); '
  limit += 'from past_jax.main import main; sys.exit(main(sys.argv[1:]))'
  flags = ['--model=scratch:tiny', '--prompts=many.jsonl', '--out=out.jsonl', '--batch=2', '--max_new_tokens=64']
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  ended = subprocess.run([sys.executable, '-c', limit, 'sample', *flags], capture_output=True, text=True, env=env)
  assert ended.returncode == 2
  message = 'past sample: out.jsonl cannot be written: File too large. Mended, the same command goes on after its last'
  assert ended.stderr.splitlines()[-1].startswith(message)
  assert lines('out.jsonl') and all(line.endswith(b'}\n') for line in lines('out.jsonl'))
