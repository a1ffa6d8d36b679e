"""`past sample --improve`: chains against single samples, scores, what is kept, that it resumes, and what it says."""

import functools
import json
import os

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from past_jax import models
from past_jax.commands import decode, rows
from past_jax.main import main
from past_jax.models import weights
from past_jax.models.config import TINY
from past_jax.progress import Progress

ROWS = [
  {'prompt': 'The cave', 'id': 7, 'response': 'is dark.'},
  {'response': '', 'prompt': 'Orrin'},
  {'prompt': '<|bos|>x', 'response': 'é{prompt}'},
  {'prompt': '', 'response': 'q' * 8},
  {'prompt': 'The cave', 'response': 'is dark.'},
]
INSTRUCTION = '{prompt}|{draft}>'
load = functools.cache(models.load)


@pytest.fixture(scope='module')
def judge(tmp_path_factory, params):
  """A directory with a judge: the tests' parameters and a random head."""
  directory = tmp_path_factory.mktemp('judges') / 'judge'
  head = np.random.default_rng(0).standard_normal((64, 1)).astype(np.float32) / 8
  weights.write(directory, params | {'score': {'kernel': head}}, TINY, load('scratch:tiny').tokenizer)
  return directory


@pytest.fixture
def past(tmp_path, monkeypatch, capsys):
  """past(*flags of sample) -> (exit code, stdout, stderr), run in a folder of its own."""
  monkeypatch.setattr(models, 'load', load)  # an equal policy finds the programs that were compiled for it
  monkeypatch.setattr(rows, 'SMALLEST', 64)  # of every program: few are compiled
  monkeypatch.chdir(tmp_path)
  write('rows.jsonl', ROWS)

  def run(*flags, prompts='rows.jsonl', out='out.jsonl'):
    capsys.readouterr()
    fixed = '--model=scratch:tiny', '--max_new_tokens=6', '--batch=4', '--mesh=1,1,1'
    code = main(['sample', *fixed, f'--prompts={prompts}', f'--out={out}', *flags])
    return code, *capsys.readouterr()

  return run


def improve(past, *flags, **names):
  return past('--improve', f'--instruction={INSTRUCTION}', '--iterations=3', *flags, **names)


def write(name, data):
  with open(name, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in data)


def read(name='out.jsonl'):
  with open(name, encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def texts(name='out.jsonl'):
  return [[entry['text'] for entry in row['chain']] for row in read(name)]


def scores(name='out.jsonl'):
  return [[entry['score'] for entry in row['chain']] for row in read(name)]


def bytes_of(name):
  with open(name, 'rb') as file:
    return file.read()


def sampled(past, found, i, *flags):
  """Completion i - 1 of past sample for each row, where the prompt is the instruction filled by hand."""
  asked = [f'{row["prompt"]}|{row["chain"][i - 1]["text"]}>' for row in found]
  chat = lambda text: {'messages': [{'role': 'user', 'content': text}]}
  write('asked.jsonl', [chat(text) if '--chat' in flags else {'prompt': text} for text in asked])
  sampling = [flag for flag in flags if flag != '--chat']
  assert past(*sampling, '--group=3', prompts='asked.jsonl', out=f'{i}.jsonl')[0] == 0
  return [row['completions'][i - 1] for row in read(f'{i}.jsonl')]


# --- chains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('flags', [(), ('--temperature=0', '--chat')])
def test_each_response_is_a_sample_after_the_one_before(past, flags):
  assert improve(past, *flags)[:2] == (0, 'out.jsonl: 5 rows.\n')
  found = read()
  for row, given in zip(found, ROWS, strict=True):
    assert list(row.items())[:-2] == list(given.items())
    assert [list(entry) for entry in row['chain']] == [['text', 'logp']] * 4
    assert row['chain'][0] == {'text': given['response'], 'logp': None}
    assert row['improved'] == row['chain'][3]['text']
  for i in (1, 2, 3):
    expected = sampled(past, found, i, *flags)
    assert [row['chain'][i]['text'] for row in found] == [c['text'] for c in expected]
    logps = [row['chain'][i]['logp'] for row in found]
    np.testing.assert_allclose(logps, [c['logp'] for c in expected], atol=1e-4)
  assert texts()[0] != texts()[4] or '--temperature=0' in flags  # equal rows, other noise
  assert texts()[0] == texts()[4] or '--temperature=0' not in flags


@pytest.mark.parametrize('reads', ['draft', 'prompt'])
def test_scores_are_those_of_the_judge(past, judge, mesh, reads):
  assert improve(past, f'--judge_model={judge}', f'--judge_reads={reads}', '--iterations=2')[0] == 0
  model = load(str(judge), judge=True)
  params, tokenizer = model.read(mesh), model.tokenizer
  states = jax.jit(model.policy.rows)

  def alone(prompt, completion):
    ids = [*tokenizer.plain(prompt), *completion]
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(ids)] = ids
    hidden = np.asarray(states(params, padded, np.array([len(ids)])))[0, len(ids) - 1]
    return float(hidden.astype(np.float64) @ np.asarray(params['score']['kernel'], np.float64)[:, 0])

  found = read()
  assert [[list(entry) for entry in row['chain']] for row in found] == [[['text', 'score', 'logp']] * 3] * 5
  if reads == 'draft':
    assert [row['chain'][0]['score'] for row in found] == [None] * 5
  for i in range(reads == 'draft', 3):
    given = [[*tokenizer.encode(row['response']), tokenizer.eos_id] for row in ROWS]
    completions = [c['ids'] for c in sampled(past, found, i)] if i else given
    for row, completion in zip(found, completions, strict=True):
      prompt = f'{row["prompt"]}|{row["chain"][i - 1]["text"]}>' if reads == 'draft' else row['prompt']
      wanted = alone(prompt, completion)
      if reads == 'draft':  # a gain is measured from what the draft has over itself
        wanted -= alone(prompt, [*tokenizer.encode(row['chain'][i - 1]['text']), tokenizer.eos_id])
      assert row['chain'][i]['score'] == pytest.approx(wanted, abs=1e-4)
  assert np.std([x for chain in scores() for x in chain[1:]]) > 0.1


def test_a_longer_chain_begins_as_a_shorter_one(past):
  improve(past)
  improve(past, '--iterations=1', out='short.jsonl')
  assert texts('short.jsonl') == [chain[:2] for chain in texts()]
  improve(past, '--seed=1', out='seed.jsonl')
  assert texts('seed.jsonl') != texts()


JUDGED = ('--judge_reads=draft', '--until_no_gain', '--keep=best')


@pytest.mark.parametrize('flag', ['--batch=1', '--slots=2', '--mesh=-1,1,1'])
def test_batch_slots_and_mesh_change_no_text(past, judge, flag):
  improve(past, f'--judge_model={judge}', *JUDGED)
  assert improve(past, f'--judge_model={judge}', *JUDGED, flag, out='other.jsonl')[0] == 0
  assert texts('other.jsonl') == texts()
  assert [row['improved'] for row in read('other.jsonl')] == [row['improved'] for row in read()]
  for ours, theirs in zip(scores('other.jsonl'), scores()):
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-4)


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('reads', ['draft', 'prompt'])
def test_best_last_and_until_no_gain(past, judge, monkeypatch, reads):
  judged = f'--judge_model={judge}', f'--judge_reads={reads}', '--iterations=4'
  write('many.jsonl', [{**row, 'n': n} for n in range(3) for row in ROWS])
  call = lambda *flags, out: improve(past, *judged, *flags, prompts='many.jsonl', out=out)
  assert call(out='last.jsonl')[0] == call('--keep=best', out='best.jsonl')[0] == 0
  gained, kept_best, stopped = [], [], []
  for last, best in zip(read('last.jsonl'), read('best.jsonl'), strict=True):
    chain = last['chain']
    assert best['chain'] == chain and last['improved'] == chain[4]['text']
    found = [entry['score'] for entry in chain]
    worth = [0, *np.cumsum(found[1:])] if reads == 'draft' else found
    kept_best.append(int(np.argmax(worth)))
    assert best['improved'] == chain[kept_best[-1]]['text']
    gains = found[1:] if reads == 'draft' else np.diff(found)
    gained.append(next((i for i, gain in enumerate(gains) if gain <= 0), 4))  # how often before it ends
    stopped.append(chain[: gained[-1] + 2])
  assert len(set(gained)) > 2 and len(set(kept_best)) > 2

  counted, real = [], decode.program

  def program(*args, **kwargs):
    counted.append(int(np.asarray(args[5]).sum()))
    return real(*args, **kwargs)

  monkeypatch.setattr(decode, 'program', program)
  code, out, _ = call('--until_no_gain', out='until.jsonl')
  used = sum(len(chain) - 1 for chain in stopped)
  assert sum(counted) == used  # rows that have ended are not written on
  said = f'{sum(n < 4 for n in gained)} rows ended without a gain, after {used / 15:.1f} of up to 4 responses for a row'
  assert (code, out) == (0, f'until.jsonl: 15 rows. {said} on average.\n')
  for row, chain, n in zip(read('until.jsonl'), stopped, gained, strict=True):
    assert [entry['text'] for entry in row['chain']] == [entry['text'] for entry in chain]
    assert row['improved'] == chain[n]['text']
  # What has only gained so far is also the best so far.
  assert call('--until_no_gain', '--keep=best', out='both.jsonl')[0] == 0
  assert [row['improved'] for row in read('both.jsonl')] == [row['improved'] for row in read('until.jsonl')]


# --- resuming -----------------------------------------------------------------------------------------------------


def test_resume_gives_the_same_file(past, judge, monkeypatch):
  call = lambda *flags, **names: improve(past, f'--judge_model={judge}', *JUDGED, *flags, **names)
  call()
  whole = bytes_of('out.jsonl')
  for cut in (10, whole.index(b'\n') + 1, len(whole) - 1):
    os.truncate('out.jsonl', cut)
    assert call()[0] == 0
    assert bytes_of('out.jsonl') == whole
  assert call()[1] == 'out.jsonl is finished: 5 rows.\n'

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Progress, 'advance', interrupt)
    code, _, err = call(out='new.jsonl')
  said = 'past sample: interrupted; new.jsonl holds 4 of 5 rows. The same command goes on from there.'
  assert (code, err.splitlines()[-1]) == (130, said)
  assert call(out='new.jsonl')[0] == 0
  assert bytes_of('new.jsonl') == whole
  # Other flags, or another judge in its place, are other results.
  code, _, err = call('--keep=last', '--iterations=2')
  assert code == 2 and 'made otherwise (there -> here): ' in err
  assert 'iterations 3 -> 2' in err and 'keep "best" -> "last"' in err
  before = (judge / 'model.safetensors').stat()
  os.utime(judge / 'model.safetensors', (1, 1))
  code, _, err = call()
  os.utime(judge / 'model.safetensors', (before.st_atime, before.st_mtime))
  assert code == 2 and 'judge_weights "' in err
  assert past('--group=1')[0] == 2


# --- messages -----------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut_and_counted(past, judge):
  end = 'z' * 20
  write('long.jsonl', [{'prompt': 'x' * 40, 'response': 'y' * 600 + end}, {'prompt': '', 'response': end}])
  flags = ('--temperature=0', '--max_prompt_length=21', '--iterations=1', f'--judge_model={judge}')
  code, out, _ = improve(past, *flags, '--judge_reads=prompt', prompts='long.jsonl')
  cut = ' 2 prompts were cut on the left to 21 tokens. 1 prompts were cut to fit the 512 tokens of the judge.'
  assert (code, out) == (0, f'out.jsonl: 2 rows.{cut} 1 responses were cut to fit the 512 tokens of the judge.\n')
  first, second = texts()
  assert first[1] == second[1]  # both read the end alone


def test_bad_flags(past, judge, tmp_path):
  given = {'improve': 'true', 'instruction': INSTRUCTION}
  judged = {'judge_model': str(judge), 'judge_reads': 'draft'}
  instruction = '--improve needs --instruction, a template over {prompt} and {draft}: what the model reads'
  for flags, message in [
    ({'iterations': '2'}, '--iterations is for responses that are improved: set --improve.'),
    ({'chat': 'true'}, '--chat is for responses that are improved: set --improve.'),
    ({'improve': 'true'}, instruction),
    ({**given, 'instruction': '{prompt} {drft}'}, '--improve needs {draft} in --instruction: '),
    ({**given, 'instruction': '{text} {draft}'}, '--instruction has {text}, and rows have {prompt} and {draft} only.'),
    ({**given, 'group': '2'}, '--improve writes one response at a time: leave --group out.'),
    ({**given, 'best_of': '2'}, '--improve writes one response at a time: leave --best_of out.'),
    ({**given, 'until_no_gain': 'true'}, '--until_no_gain needs a judge: set --judge_model.'),
    ({**given, 'keep': 'best'}, '--keep=best needs a judge: set --judge_model.'),
    ({**given, 'judge_reads': 'draft'}, '--judge_reads needs a judge: set --judge_model.'),
    ({**given, 'judge_model': str(judge)}, '--judge_model needs --judge_reads: draft for a judge of gaps, prompt'),
    ({**given, 'keep': 'bst'}, 'flag --keep=bst: '),
    ({**given, 'iterations': '0'}, 'flag --iterations=0: '),
    ({**given, 'iteration': '2'}, 'there is no flag --iteration. Did you mean --iterations?'),
    ({**given, 'until_no_gains': '1'}, 'there is no flag --until_no_gains. Did you mean --until_no_gain?'),
    ({**given, **judged, 'judge_model': 'scratch:tiny'}, '--judge_model: scratch:tiny is no judge: it has no scalar'),
    ({**given, **judged, 'judge_model': 'nowhere'}, "--judge_model: 'nowhere' is neither a directory nor a model spec"),
    ({'model': str(judge), **given}, f'{judge} is a judge: it has a scalar head, and no output head'),
  ]:
    code, out, err = past(*(f'--{name}={value}' for name, value in flags.items()))
    assert (code, out) == (2, '') and err.splitlines()[-1].startswith(f'past sample: {message}'), err
    assert os.listdir() == ['rows.jsonl']
  # A judge of another tokenizer reads other texts.
  other = tmp_path / 'other'
  model = load(str(judge), judge=True)
  weights.write(other, weights.read(judge, model.config), model.config, model.tokenizer)
  backend = Backend.from_file(str(other / 'tokenizer.json'))
  backend.add_special_tokens(['<|new|>'])
  backend.save(str(other / 'tokenizer.json'))
  code, _, err = improve(past, f'--judge_model={other}', '--judge_reads=draft')
  said = f'past sample: --judge_model={other} has another tokenizer than --model (added_tokens).'
  assert code == 2 and err.splitlines()[-1] == said


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'prompt': 'a', 'x': 1}, 'a row has response, the text to improve; without --improve past sample writes'),
    ({'response': 'a'}, 'a row has prompt or messages; fields present: response.'),
    ({'prompt': 'a', 'response': ['b']}, 'response is a string.'),
    ({'messages': [{'role': 'user', 'content': 'a'}], 'response': 'b'}, '--improve puts the prompt into its instruct'),
    ({'prompt': 'a', 'response': 'b', 'chain': []}, 'the row has a field chain already, which past sample --improve'),
  ],
)
def test_bad_rows(past, row, message):
  write('rows.jsonl', [ROWS[0], row])
  code, out, err = improve(past)
  assert (code, out) == (2, '') and err.splitlines()[-1].startswith(f'past sample: rows.jsonl:2: {message}'), err
  assert os.listdir() == ['rows.jsonl']


def test_help_says_how(past):
  code, out, err = past('--help')
  assert (code, err) == (0, '') and '  --improve  improve the response of each row instead' in out
