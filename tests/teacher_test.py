"""The role `teacher`: a model of its own, of another shape; or what the policy was when a stage began."""

import jax
import numpy as np
import pytest
from small import assert_same, llama, random_params

from past_jax import train
from past_jax.checkpoint import Checkpoints
from past_jax.main import main
from past_jax.metrics import rows
from past_jax.models import weights
from past_jax.text import byte_tokenizer
from past_jax.transforms import words

BRIEF = (
  '--config.mesh.data=1',
  '--config.eval.heldout=',
  '--config.eval.questions=2',
  '--config.eval.chunk=2',
  '--config.eval.answer_length=2',
  '--config.study.rounds=1',
  '--config.study.curriculum.epochs=1',
)
TEACHER = llama(max_position_embeddings=512)


def study(workdir, *flags, arg='size=tiny'):
  return main(['study', f'--config=configs/past.py:{arg}', f'--workdir={workdir}', *BRIEF, *flags])


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  directory = tmp_path_factory.mktemp('models') / 'teacher'
  weights.write(directory, random_params(TEACHER), TEACHER, byte_tokenizer())
  return directory


@pytest.mark.slow
def test_a_teacher_of_another_shape_samples_and_judges(teacher, tmp_path):
  flags = [f'--config.teacher.spec={teacher}', '--config.study.generator.role=teacher']
  judge = "--config.study.judge={'name': 'length_normalised', 'role': 'teacher'}"
  assert study(tmp_path / 'run', *flags, judge) == 0
  (step,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert step['check/sampler_gap'] < 1e-3  # the teacher's sampler against the teacher's own scoring
  assert step['group/dpo/loss'] == pytest.approx(np.log(2), abs=1e-6)  # against the policy, which is the reference
  scores = [c['score'] for row in rows(tmp_path / 'run' / 'groups.jsonl') for c in row['completions']]
  # Samples of a model have, in its own eyes, about minus its entropy as their mean log-prob: above uniform.
  assert np.mean([s for s in scores if s is not None]) > -np.log(280)


@pytest.mark.parametrize(
  'flags, parts',
  [
    (['generator.role=teacher'], ["config.study uses the role 'teacher': set config.teacher.spec"]),
    (["judge={'name': 'likelihood', 'role': 'teacher'}"], ["config.study uses the role 'teacher'"]),
  ],
)
def test_a_role_without_a_model_is_refused(tmp_path, capsys, flags, parts):
  assert study(tmp_path / 'run', *(f'--config.study.{flag}' for flag in flags)) == 2
  error = capsys.readouterr().err
  assert [part for part in parts if part not in error] == []


def test_members_of_one_group_have_one_architecture(teacher, tmp_path, capsys):
  flags = ('--config.study.generator.opponent=teacher', '--config.study.generator.opponents=1')
  assert study(tmp_path / 'run', f'--config.teacher.spec={teacher}', *flags) == 2
  assert 'config.study.generator has the roles policy and teacher' in capsys.readouterr().err


def test_a_teacher_that_reads_other_ids_is_refused(tmp_path, capsys):
  directory = tmp_path / 'other'
  weights.write(directory, random_params(TEACHER), TEACHER, byte_tokenizer())
  path = directory / 'tokenizer.json'
  path.write_text(path.read_text().replace('<|im_start|>', '<|im_begin|>'))
  flags = (f'--config.teacher.spec={directory}', '--config.study.generator.role=teacher')
  assert study(tmp_path / 'run', *flags) == 2
  error = capsys.readouterr().err
  assert 'has another tokenizer (added_tokens) than scratch:tiny' in error and 'config.data.recorded' in error


# --- generations --------------------------------------------------------------------------------------------------


def generations(workdir, *flags):
  """Two generations: the second learns what the first's student wrote."""
  config = workdir.with_suffix('.py')
  config.write_text(
    'from configs import past\n'
    'def get_config(arg):\n'
    "  c = past.get_config('size=tiny,' + arg)\n"
    "  c.teacher.spec = 'policy'\n"
    "  c.study.generator.role = 'teacher'\n"
    "  c.stages = ('study', 'again')\n"
    '  c.again = c.study\n'
    '  return c\n'
  )
  brief = [flag.replace('study', 'again') for flag in BRIEF if 'study' in flag]
  return main(['study', f'--config={config}:arm=unjudged', f'--workdir={workdir}', *BRIEF, *brief, *flags])


@pytest.mark.slow
def test_the_student_becomes_the_teacher_and_a_new_one_begins_at_the_base(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend('.')
  assert generations(tmp_path / 'on') == 0
  assert generations(tmp_path / 'new', '--config.teacher.restart=true', '--config.eval.every=1') == 0
  first, second = (rows(tmp_path / name / 'metrics.jsonl') for name in ('on', 'new'))
  assert first[0]['loss'] == second[0]['loss']  # the first generation is the same
  texts = lambda name: [c['text'] for row in rows(tmp_path / name / 'groups.jsonl') for c in row['completions']]
  assert texts('on') == texts('new')  # so the teachers of the second generation are, too
  # The student that goes on has learned the passages in its first generation; the new one begins at the base's loss.
  assert first[1]['text/nll/loss'] < first[0]['text/nll/loss'] - 0.01
  assert second[1]['text/nll/loss'] == pytest.approx(second[0]['text/nll/loss'], abs=0.01)
  # The teacher that both runs end with is the first generation's student, which neither run's policy is any more.
  on, new = (state(tmp_path / name) for name in ('on', 'new'))
  assert_same(on['teacher'], new['teacher'])
  for run in (on, new):
    assert not np.array_equal(*(jax.tree.leaves(tree)[0] for tree in (run['teacher'], run['state']['params'])))
  # With evaluations there is one between two generations.
  assert [row['when'] for row in rows(tmp_path / 'new' / 'evaluations.jsonl')] == ['before', 'stage again', 'after']
  assert 0 < first[0]['study/distinct_2'] <= 1 and first[0]['study/compression'] > 0

  # A run that is stopped while the second generation's notes are sampled goes on with the same teacher.
  real = train.Loop.tick

  def stop(loop, arrays):
    if loop.phase == 'sample' and loop.cursor.stage == 1:
      raise train.Stopped
    return real(loop, arrays)

  monkeypatch.setattr(train.Loop, 'tick', stop)
  assert generations(tmp_path / 'stopped') == 0
  monkeypatch.setattr(train.Loop, 'tick', real)
  assert len(rows(tmp_path / 'stopped' / 'metrics.jsonl')) == 1
  assert generations(tmp_path / 'stopped') == 0
  assert_same(state(tmp_path / 'stopped'), on)


def state(workdir):
  return Checkpoints(workdir / 'checkpoints').restore().tree


def test_a_restart_without_a_copy_is_refused(tmp_path, capsys):
  assert study(tmp_path / 'run', '--config.teacher.restart=true') == 2
  assert "config.teacher.restart needs config.teacher.spec='policy'" in capsys.readouterr().err


# --- pools --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_original_and_a_rewrite_are_candidates_beside_the_samples(tmp_path):
  arg = 'size=tiny,pool=original+rewrite,judge=constant,select=everything'
  assert study(tmp_path / 'run', arg=arg) == 0
  (step,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  groups = rows(tmp_path / 'run' / 'groups.jsonl')
  for row in groups:
    assert [c['source'] for c in row['completions']] == [-1, 0, 0, 0, 0, 1]  # of equals what is given is chosen
    original = row['completions'][0]
    assert row['text'].startswith(original['text']) and original['tokens'] == 32  # cut to the samples' length
  kept = [c for row in groups for c in row['completions'] if c['tokens']]
  share = np.mean([c['source'] >= 0 for c in kept])
  assert step['study/chosen_from_policy'] == pytest.approx(share, abs=1e-6) and 0.5 < share < 1


# --- configs/study.py ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_transformed_text_is_learned_without_any_sampling(tmp_path):
  arg = 'size=tiny,arm=segment_reversal,notes=3,filter=distinct'
  command = ['study', f'--config=configs/study.py:{arg}', f'--workdir={tmp_path}/run', *BRIEF]
  assert main([*command, '--config.optimizer.lr=1e-4']) == 0
  (step,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert 'study/distinct_2' not in step  # nothing was sampled
  learned = 0
  for row in rows(tmp_path / 'run' / 'groups.jsonl'):
    for completion in row['completions']:
      assert completion['source'] == -1
      assert sorted(words(completion['text'])) == sorted(words(row['text'])) != words(completion['text'])
      learned += (completion['tokens'] - 1) * completion['chosen']  # without a BOS nothing predicts a first token
  assert step['group/nll/tokens'] == learned > 0
