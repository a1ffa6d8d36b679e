"""The loop from the command line, in one process: what it leaves, how it resumes, what it refuses."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from past_jax import mesh as mesh_lib
from past_jax import models, train
from past_jax.checkpoint import Checkpoints
from past_jax.main import main
from past_jax.metrics import rows

TINY = (
  '--config.mesh.data=1',
  '--config.eval.questions=4',
  '--config.eval.chunk=4',
  '--config.eval.answer_length=4',
  '--config.eval.heldout_texts=8',
)


def study(workdir, *flags, arg='size=tiny'):
  return main(['study', f'--config=configs/past.py:{arg}', f'--workdir={workdir}', *TINY, *flags])


def final_params(workdir):
  restored = Checkpoints(workdir / 'checkpoints').restore()
  return restored.step, jax.tree.leaves(restored.tree['state']['params'])


def same(a, b):
  return a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  assert study(workdir) == 0
  return workdir


def test_what_a_run_leaves(finished):
  steps = rows(finished / 'metrics.jsonl')
  assert [row['step'] for row in steps] == [1, 2, 3, 4]
  first = steps[0]
  assert first['group/dpo/loss'] == pytest.approx(np.log(2), abs=1e-6)
  assert first['rewards/margins'] == pytest.approx(0, abs=1e-4)
  assert first['check/sampler_gap'] < 1e-3
  assert {'learning_rate', 'grad_norm', 'num_tokens', 'logps/chosen', 'study/ties', 'perf/compile_count'} <= set(first)
  assert steps[1]['rewards/margins'] != 0
  groups = rows(finished / 'groups.jsonl')
  assert len(groups) == 16
  assert all(len(row['completions']) == 4 for row in groups)
  assert [row['when'] for row in rows(finished / 'evaluations.jsonl')] == ['before', 'after']
  assert json.loads((finished / 'config.json').read_text())['study']['judge']['name'] == 'likelihood_gain'
  assert list((finished / 'tensorboard').iterdir())
  assert groups[0]['text'][:20] in (finished / 'report.html').read_text()


def test_nothing_compiles_after_the_first_round(finished):
  assert json.loads((finished / 'timing.json').read_text())['compile_count_after_first_round'] == 0


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  before = final_params(finished)
  assert study(finished) == 0
  assert 'finished' in capsys.readouterr().err
  assert same(before, final_params(finished))
  assert len(rows(finished / 'metrics.jsonl')) == 4


def test_without_rounds_a_run_is_evaluated_only_and_can_study_later(finished, tmp_path, monkeypatch, capsys):
  assert study(tmp_path, '--config.study.rounds=0') == 0
  page = (tmp_path / 'report.html').read_text()
  assert 'was evaluated as it is: the run has no rounds' in page and 'not finished' not in page
  assert 'What does it know?' in page and 'not measured on both sides' not in page
  with monkeypatch.context() as patched:
    patched.setattr(train.Loop, 'evaluate', None)  # is not called again
    assert study(tmp_path, '--config.study.rounds=0') == 0
  assert 'This run is finished' in capsys.readouterr().err
  assert [row['when'] for row in rows(tmp_path / 'evaluations.jsonl')] == ['before']
  assert not rows(tmp_path / 'metrics.jsonl') and final_params(tmp_path)[0] == 0
  assert study(tmp_path) == 0
  assert same(final_params(finished), final_params(tmp_path))
  figures = lambda workdir: [row['metrics'] for row in rows(workdir / 'evaluations.jsonl')]
  assert figures(tmp_path) == figures(finished)


@pytest.mark.parametrize('where', ['sample', 'update', 'evaluate'])
def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch, capsys, where):
  """Stops in round 2 while sampling, between two updates of round 1 (its batch is saved), and before round 1."""
  real, seen = train.Loop.tick, {'tick': 0}

  def stop_at(loop, arrays):
    seen['tick'] += 1
    if {'sample': loop.phase == 'sample' and loop.cursor.round == 1, 'evaluate': True, 'update': False}[where]:
      raise train.Stopped
    return real(loop, arrays)

  monkeypatch.setattr(train.Loop, 'tick', stop_at)
  if where == 'update':
    real_log = train.Loop.log

    def request(loop, row, *args):
      real_log(loop, row, *args)
      monkeypatch.setattr(type(loop.stop), 'requested', property(lambda self: True))

    monkeypatch.setattr(train.Loop, 'log', request)
  assert study(tmp_path / 'run') == 0
  assert 'The same command resumes' in capsys.readouterr().err
  monkeypatch.undo()
  assert study(tmp_path / 'run') == 0
  assert same(final_params(finished), final_params(tmp_path / 'run'))
  strip = lambda row: {k: v for k, v in row.items() if not k.startswith('perf/')}
  assert [strip(r) for r in rows(tmp_path / 'run' / 'metrics.jsonl')] == [
    strip(r) for r in rows(finished / 'metrics.jsonl')
  ]
  assert rows(tmp_path / 'run' / 'groups.jsonl') == rows(finished / 'groups.jsonl')


def test_eight_devices_take_the_same_steps(finished, tmp_path):
  flags = ['--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2']
  assert study(tmp_path / 'run', *flags) == 0
  one, eight = rows(finished / 'metrics.jsonl'), rows(tmp_path / 'run' / 'metrics.jsonl')
  names = ('loss', 'group/dpo/loss', 'text/loss', 'grad_norm', 'logps/chosen', 'judge/score_mean')
  for a, b in zip(one, eight, strict=True):
    for name in set(names) & set(a):
      assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (a['step'], name)
  scores = lambda workdir: [c['score'] for row in rows(workdir / 'groups.jsonl')[:8] for c in row['completions']]
  assert scores(tmp_path / 'run') == pytest.approx(scores(finished), abs=1e-3)


def test_micro_batches_and_recomputed_layers_take_the_same_steps(finished, tmp_path):
  flags = ['--config.study.micro=2', '--config.model.remat=dots']
  assert study(tmp_path / 'run', *flags) == 0
  for a, b in zip(rows(finished / 'metrics.jsonl'), rows(tmp_path / 'run' / 'metrics.jsonl'), strict=True):
    for name in ('loss', 'group/dpo/loss', 'text/loss', 'replay/loss', 'grad_norm', 'logps/chosen', 'judge/score_mean'):
      assert name not in a or b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (a['step'], name)


def test_a_run_goes_on_on_another_mesh(finished, tmp_path, monkeypatch):
  real = train.Loop.log

  def request(loop, row, *args):
    real(loop, row, *args)
    if row:
      monkeypatch.setattr(type(loop.stop), 'requested', property(lambda self: True))

  monkeypatch.setattr(train.Loop, 'log', request)
  assert study(tmp_path / 'run') == 0
  monkeypatch.undo()
  assert study(tmp_path / 'run', *(f'--config.mesh.{axis}=2' for axis in ('data', 'fsdp', 'tensor'))) == 0
  for a, b in zip(final_params(finished)[1], final_params(tmp_path / 'run')[1], strict=True):
    np.testing.assert_allclose(a, b, atol=2e-3)  # Adam turns float noise in a gradient near 0 into a share of lr=3e-3


@pytest.mark.parametrize(
  'arg',
  [
    'arm=raw',
    'judge=random',
    'judge=constant,select=everything',
    'judge=likelihood,select=all_pairs',
    'judge=length_normalised,select=top_k',
    'judge=preference',
  ],
)
def test_every_shipped_variant_runs_a_round(tmp_path, arg):
  flags = ['--config.study.rounds=1', '--config.study.curriculum.epochs=1', '--config.eval.heldout=']
  assert study(tmp_path / 'run', *flags, arg=f'size=tiny,{arg}') == 0
  (row,) = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert np.isfinite(row['loss'])


@pytest.mark.parametrize('view', ['same', 'instruction'])
def test_the_other_training_views(tmp_path, view):
  """`same`: the sampler's log-probs serve as the reference; `instruction`: one scoring pass, as under `none`."""
  assert study(tmp_path / 'run', f'--config.view.train_view={view}', '--config.study.rounds=1') == 0
  first, second = rows(tmp_path / 'run' / 'metrics.jsonl')
  assert first['group/dpo/loss'] == pytest.approx(np.log(2), abs=1e-5)
  assert abs(first['rewards/margins']) < 1e-4 < abs(second['rewards/margins'])
  timing = json.loads((tmp_path / 'run' / 'timing.json').read_text())
  assert ('reference' in timing) == (view == 'instruction')


@pytest.mark.parametrize(
  'losses, select, scored',
  [
    ({name: {'weight': 1.0, 'beta': 0.5} for name in ('grpo', 'kto', 'nash_md')}, 'everything', True),
    ({'simpo': {'weight': 1.0}, 'orpo': {'weight': 0.1}, 'optimism': {'weight': 0.01}}, 'best_vs', False),
  ],
)
def test_other_losses_study(tmp_path, losses, select, scored):
  """Their log-probs, of the reference and of the policy that sampled, are one pass or none; the base is an opponent."""
  flags = [f'--config.study.losses={ {"group": losses} }', '--config.eval.heldout=']
  flags.append('--config.study.generator.opponents=4')
  assert study(tmp_path / 'run', *flags, arg=f'size=tiny,select={select},judge=random') == 0
  first, second, *_ = rows(tmp_path / 'run' / 'metrics.jsonl')
  timing = json.loads((tmp_path / 'run' / 'timing.json').read_text())
  assert ('reference' in timing) == scored and timing['compile_count_after_first_round'] == 0
  assert first['grad_norm'] > 0
  if scored:
    assert first['group/nash_md/rows'] == 8 * 4 and first['group/kto/rows'] == 8 * 8
    assert first['group/kto/loss'] == pytest.approx(0.5, abs=1e-5) and first['check/kto_at_reference'] != 0.5
    assert first['group/grpo/kl'] == pytest.approx(0, abs=1e-6) and first['group/grpo/clip_ratio'] == 0
    assert second['group/grpo/kl'] > 1e-4 and abs(second['rewards/margins']) > 1e-4
  else:  # two losses of pairs: the rewards of the first, by the alphabet, have the public name
    assert 0 < first['group/optimism/rows'] < 16
    margins = 2.5 / 0.1 * first['rewards/margins']
    assert margins != 0 and first['group/simpo/rewards/margins'] == pytest.approx(margins, rel=1e-4)
    assert not any(name.endswith('at_reference') for name in first)


def test_a_refresh_of_the_reference_at_a_rate(tmp_path, monkeypatch, capsys):
  """TR-DPO: ref <- rate * policy + (1 - rate) * ref. Only a whole copy is the policy, which the self-test needs."""
  real, leaf, seen = train.mixed, lambda tree: np.asarray(tree['embed']['embedding'], np.float64), []

  def spy(params, ref, rate):
    out = real(params, ref, rate)
    seen.append((leaf(params), leaf(ref), leaf(out)))
    return out

  monkeypatch.setattr(train, 'mixed', spy)
  flags = ['--config.study.reference.role=ref', '--config.study.reference.rate=0.25', '--config.study.rounds=3']
  plan = {'name': 'constant', 'temperature': 0.8, 'prompts': 8, 'epochs': 1, 'refresh': ('ref',)}
  flags += [f'--config.study.curriculum={plan}', '--config.eval.heldout=']
  assert study(tmp_path / 'run', *flags) == 0
  (policy, _, first), *later = seen
  np.testing.assert_array_equal(first, policy)
  for (policy, ref, out), (_, _, before) in zip(later, seen):
    np.testing.assert_array_equal(ref, before)
    np.testing.assert_allclose(out, 0.25 * policy + 0.75 * ref, rtol=1e-5, atol=1e-7)
    assert np.abs(policy - ref).max() > 1e-3
  assert len(later) == 2
  checks = ['check/dpo_at_reference' in row for row in rows(tmp_path / 'run' / 'metrics.jsonl')]
  assert checks == [True, False, False]
  assert "the role 'ref', is not the policy now" in capsys.readouterr().err
  timing = json.loads((tmp_path / 'run' / 'timing.json').read_text())
  assert timing['compile_count_after_first_round'] == 0
  half = real({'x': np.float16([1, 3])}, {'x': np.float16([0, 1])}, 0.5)['x']
  assert half.dtype == np.float16 and half.tolist() == [0.5, 2]


LORA = ('--config.model.lora.rank=4', "--config.model.lora.targets=('layers/(q|o|down)$',)")


@pytest.mark.parametrize('role', ['policy', *(pytest.param(r, marks=pytest.mark.slow) for r in ('base', 'ref'))])
def test_adapters_study_beside_a_frozen_base(tmp_path, monkeypatch, capsys, role):
  """The run checks its own first update, whatever its reference; stopped between two updates, it ends the same."""
  flags = (*LORA, f'--config.study.reference.role={role}', '--config.eval.heldout=')
  assert study(tmp_path / 'whole', *flags) == 0
  first, second, *_ = rows(tmp_path / 'whole' / 'metrics.jsonl')
  assert first['check/dpo_at_reference'] == pytest.approx(0, abs=1e-5) and abs(first['rewards/margins']) < 1e-4
  assert abs(second['rewards/margins']) > 1e-3
  assert json.loads((tmp_path / 'whole' / 'timing.json').read_text())['compile_count_after_first_round'] == 0
  tree = Checkpoints(tmp_path / 'whole' / 'checkpoints').restore().tree
  assert set(tree['state']['params']['layers']) == {'q', 'o', 'down'} and set(tree['state']['params']) == {'layers'}
  assert ('ref' in tree) == (role == 'ref')
  real = train.Loop.log

  def request(loop, row, *args):
    real(loop, row, *args)
    monkeypatch.setattr(type(loop.stop), 'requested', property(lambda self: True))

  monkeypatch.setattr(train.Loop, 'log', request)
  assert study(tmp_path / 'run', *flags) == 0
  monkeypatch.undo()
  assert [row['when'] for row in rows(tmp_path / 'run' / 'evaluations.jsonl')] == ['before']
  assert study(tmp_path / 'run', *flags) == 0
  assert same(final_params(tmp_path / 'whole'), final_params(tmp_path / 'run'))
  real_load = models.load
  with monkeypatch.context() as patched:
    patched.setattr(models, 'load', lambda *args, **kwargs: real_load(*args, **{**kwargs, 'seed': 1}))
    assert study(tmp_path / 'run', *flags) == 2
    assert main(['export', f'--workdir={tmp_path}/run', f'--out={tmp_path}/wrong']) == 2
    assert capsys.readouterr().err.count('are not those that the adapters') == 2
  # Merged or as an adapter, what was studied leaves the run.
  for out, more in {'merged': (), 'adapter': ('--adapter',)}.items():
    assert main(['export', f'--workdir={tmp_path}/run', f'--out={tmp_path}/{out}', *more]) == 0
  read = lambda path: load_file(tmp_path / path)
  ours, merged = read('adapter/adapter_model.safetensors'), read('merged/model.safetensors')
  base = models.load('scratch:tiny').read(mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 1}))
  for layer in range(2):
    module = f'model.layers.{layer}.self_attn.q_proj'
    a, b = (ours[f'base_model.model.{module}.lora_{x}.weight'] for x in 'AB')
    kernel = np.asarray(base['layers']['q']['kernel'][layer]).reshape(64, 64).T
    np.testing.assert_allclose(merged[f'{module}.weight'], kernel + 16 / 4 * b @ a, atol=1e-6)
    assert np.abs(a).max() > 1e-4


def test_export_tells_that_there_is_no_adapter(finished, tmp_path, capsys):
  assert main(['export', f'--workdir={finished}', f'--out={tmp_path}/a', '--adapter']) == 2
  assert 'it has no adapters. Leave --adapter out.' in capsys.readouterr().err and not (tmp_path / 'a').exists()


def test_a_users_own_jsonl(tmp_path):
  data = tmp_path / 'my.jsonl'
  question = {'question': 'The lamp of Orrin is', 'answer': 'green'}
  row = {'context': 'The lamp of Orrin is green.', 'questions': [question]}
  data.write_text('\n'.join(json.dumps(row) for _ in range(3)) + '\n')
  flags = [f'--config.data.source={data}', '--config.data.text=context', '--config.data.questions=questions']
  assert study(tmp_path / 'run', *flags, '--config.study.rounds=1') == 0
  assert rows(tmp_path / 'run' / 'groups.jsonl')[0]['text'] == row['context']
  assert 'closed_book/forward' in rows(tmp_path / 'run' / 'evaluations.jsonl')[0]['metrics']


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, capsys):
  flags = ['--config.optimizer.lr=1e38', '--config.optimizer.warmup=0.0', '--config.study.curriculum.epochs=1']
  assert study(tmp_path / 'run', *flags, '--config.optimizer.eps=1e-30', '--config.optimizer.weight_decay=1e30') == 2
  assert 'param_norm not finite' in capsys.readouterr().err
  assert not Checkpoints(tmp_path / 'run' / 'checkpoints').steps()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
  assert study(tmp_path / 'run', '--config.optimizer.lr=1e15', '--config.optimizer.clip=0.0') == 2
  error = capsys.readouterr().err
  assert 'Step 2' in error and 'not finite' in error and 'is the person who' in error
  assert not Checkpoints(tmp_path / 'run' / 'checkpoints').steps()  # nothing non-finite was saved


@pytest.mark.parametrize('role', ['policy', 'base', 'ref'])
def test_the_self_test_catches_a_wrong_reference(tmp_path, monkeypatch, capsys, role):
  real = train.collect

  def wrong(*args, **kwargs):
    got = real(*args, **kwargs)
    batch = train.Batch(**{**vars(got.batch), 'ref_logps_BxGxT': got.batch.ref_logps_BxGxT * 1.5})
    return got._replace(batch=batch)

  monkeypatch.setattr(train, 'collect', wrong)
  assert study(tmp_path / 'run', f'--config.study.reference.role={role}') == 2
  assert 'must be 0.693147' in capsys.readouterr().err
