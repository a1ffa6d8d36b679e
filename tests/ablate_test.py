"""Sweeps without running anything: statistics against independent sources, what is run again, verdicts, tables."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from past_jax.ablate import figures, plan, plot, results, run, stats, table
from past_jax.ablate import sweep as sweeps
from past_jax.ablate.session import Session
from past_jax.ablate.sweep import Arm, Claim, Contrast, Sweep, difference, level, trend
from past_jax.commands import ablate, study
from past_jax.main import main
from past_jax.types import UserError

ROOT = Path(__file__).parent.parent
ABLATIONS = ROOT / 'configs' / 'ablations'
SHIPPED = sorted(path for path in ABLATIONS.glob('*.py'))

# --- statistics -----------------------------------------------------------------------------------------------------


def test_t_intervals_are_those_of_the_textbook_and_of_scipy():
  half = 4.30265272975 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %; standard deviation 1
  assert stats.t_interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half), abs=1e-9)
  x = np.random.default_rng(0).normal(0.3, 1, 7)
  assert stats.t_interval(x) == pytest.approx(tuple(scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)))
  for alternative in ('two-sided', 'greater', 'less'):
    expected = scipy.stats.ttest_1samp(x, 0.2, alternative=alternative).pvalue
    assert stats.t_test(x, 0.2, alternative) == pytest.approx(expected)


def test_the_bootstrap_is_that_of_all_resamples():
  x = [0.0, 1.0, 5.0, 2.0]
  means = sorted(sum(draw) / 4 for draw in itertools.product(x, repeat=4))
  exact = np.quantile(means, [0.025, 0.975], method='inverted_cdf')
  assert stats.bootstrap(x) == pytest.approx(tuple(exact), abs=0.26)  # means lie on a grid of quarters
  assert stats.bootstrap(x) == stats.bootstrap(x)


def test_equivalence_is_a_90_percent_interval_within_the_margin():
  rng, seen = np.random.default_rng(1), set()
  for _ in range(50):
    x = rng.normal(0.05, 0.1, 5)
    low, high = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    found = stats.estimate(x, '0', margin=0.15)
    assert found.holds == (low > -0.15 and high < 0.15)
    seen.add(found.holds)
  assert seen == {True, False}


def test_signs_hold_on_their_side_only_and_of_three_seeds_at_least():
  up = [0.1, 0.2, 0.15, 0.12]
  assert stats.estimate(up, '+').holds and not stats.estimate(up, '-').holds
  assert stats.estimate([-x for x in up], '-').holds
  assert not stats.estimate([0.1, 0.1001], '+').holds
  wide = [0.1, -0.2, 0.3, 0.05]
  assert not stats.estimate(wide, '+').holds


def test_seeds_that_agree_exactly_decide():
  assert stats.estimate([1.0, 1.0, 1.0], '+')[:3] == (1.0, 1.0, 1.0)
  assert stats.estimate([1.0, 1.0, 1.0], '+').holds
  zeros = stats.estimate([0.0, 0.0, 0.0], '0', margin=0.05)
  assert zeros.holds and zeros.p == 0 and not stats.estimate([0.0] * 3, '+').holds
  assert not stats.estimate([0.05] * 3, '0', margin=0.05).holds


def test_holm():
  assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert stats.holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
  assert stats.holm([]) == []


def test_a_trend_is_the_slope_of_the_least_squares_line():
  places, heights = {'two': 1.0, 'four': 2.0, 'sixteen': 4.0}, [0.3, 0.1, 0.9]
  c = trend(places, 'after:x', '+')
  slope = np.polyfit(list(places.values()), heights, 1)[0]
  assert sum(w * y for w, y in zip(c.weights.values(), heights)) == pytest.approx(slope)


# --- sweep files ----------------------------------------------------------------------------------------------------

CONFIG = 'configs/past.py:size=tiny'
SMALL = Sweep(
  fewest=3,
  about='Two arms.',
  prepare={'base': Arm(CONFIG), 'later': Arm(CONFIG, start='base')},
  arms={'a': Arm(CONFIG, {'study.rounds': 3}, start='later'), 'b': Arm(CONFIG, {'study.rounds': 4}), 'c': Arm(CONFIG)},
  claims=(Claim('X1', (difference('a', 'b', 'after:score', '+'),), 'a beats b', 'by 3'),),
  final={'eval.questions': 4},
)


def changed(**claim) -> Sweep:
  return dataclasses.replace(SMALL, claims=(dataclasses.replace(SMALL.claims[0], **claim),))


WRONG = [
  (dataclasses.replace(SMALL, budget='token'), "budget='token'", "'tokens'"),
  (dataclasses.replace(SMALL, prepare={'a': Arm(CONFIG)}), 'a: a name is either', ''),
  (dataclasses.replace(SMALL, prepare={'base': Arm(CONFIG, start='later')}), 'no preparing run named before it', ''),
  (dataclasses.replace(SMALL, arms={'a': Arm(CONFIG, start='bass')}), "'bass'", "'base'"),
  (dataclasses.replace(SMALL, claims=SMALL.claims * 2), 'X1 stands twice', ''),
  (dataclasses.replace(SMALL, arms={'a/b': Arm(CONFIG)}), "arm 'a/b': names have letters", ''),
  (dataclasses.replace(SMALL, arms={'a': Arm(CONFIG, shift={'data.seed': 1})}), "'a' shifts data.seed", ''),
  (changed(contrasts=()), 'no contrasts', ''),
  (changed(budget='stepps'), "'stepps'", "'steps'"),
  (changed(budget='none'), 'say why in its note', ''),
  (changed(contrasts=(difference('a', 'bb', 'after:score', '+'),)), "no arm 'bb'", "'b'"),
  (changed(contrasts=(difference('a', 'b', 'after:score', '>'),)), "expect='>'", ''),
  (changed(contrasts=(difference('a', 'b', 'after:score', '0'),)), 'margin above 0', ''),
  (changed(contrasts=(difference('a', 'b', 'score', '+'),)), "'score' is not WHEN:NAME", ''),
  (changed(contrasts=(difference('a', 'b', ('after:score', 'later:x'), '+'),)), "'later:x'", ''),
]


@pytest.mark.parametrize('made, what, hint', WRONG)
def test_what_is_wrong_with_a_sweep_is_one_sentence(made, what, hint):
  assert sweeps.problems(SMALL) == []
  assert any(what in problem and hint in problem for problem in sweeps.problems(made))


FILES = [
  ('def get_sweep(:', ':1: SyntaxError'),
  ('\n\nimport nothing_of_this_name', ':3: ModuleNotFoundError'),
  ('x = 1', 'get_sweep'),
  ('def get_sweep():\n  return 3', 'returns int'),
  ('from past_jax.ablate.sweep import *\ndef get_sweep():\n  return Sweep(abuot="")', ':3: TypeError'),
]


@pytest.mark.parametrize('text, message', FILES)
def test_a_broken_sweep_file_is_one_message(text, message, tmp_path, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  assert main(['ablate', str(path), '--dry_run', f'--workdir={tmp_path}']) == 2
  error = capsys.readouterr().err
  assert message in error and str(path) in error and 'Traceback' not in error


def test_what_a_user_can_get_wrong_on_the_command_line(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  path = tmp_path / 'mine.py'
  text = 'from past_jax.ablate.sweep import *\ndef get_sweep():\n  return Sweep("", {"a": Arm("%s", %s)}, (Claim("X1", '
  text += '(level("a", "after:x", "+", 0.5),)%s),))\n'
  path.write_text(text % (CONFIG, {}, ', "what"'))
  workdir = f'--workdir={tmp_path}'
  assert main(['ablate', str(path), workdir, '--dry_run']) == 0
  assert 'a, seed 4: to run' in capsys.readouterr().out
  lines = [
    ((workdir,), 'name a sweep file'),
    ((str(path),), '--workdir=... is missing'),
    ((str(tmp_path / 'mine2.py'), workdir), f'Did you mean {path}?'),
    ((str(path), workdir, '--only=X2'), 'mine.py has X1.'),
    ((str(path), workdir, '--sedes=3'), 'Did you mean --seeds?'),
    ((f'--table={tmp_path}',), 'has no claims.toml'),
  ]
  for argv, message in lines:
    assert main(['ablate', *argv]) == 2
    assert message in capsys.readouterr().err
  for values, message in [
    ((CONFIG, {}, ''), 'X1 has no statement'),
    ((CONFIG, {'study.round': 1}, ', "what"'), 'Did you mean config.study.rounds?'),
    ((CONFIG, {'study.batch': 3}, ', "what"'), 'must be a multiple of config.study.batch=3'),
    (('configs/pasta.py', {}, ', "what"'), 'Did you mean configs/past.py?'),
  ]:
    path.write_text(text % values)
    assert main(['ablate', str(path), workdir]) == 2
    assert message in capsys.readouterr().err
  assert not (tmp_path / 'results').exists()


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_have_no_problems(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  made, told = sweeps.load(path), table.told(ABLATIONS)
  assert {claim.id for claim in made.claims} <= set(told)
  for final in (True, False):
    jobs = plan.jobs(made, [0], Path('w'), ablate.resolve, '', tuple(made.arms), final)
    assert {job.name for job in jobs} == {*made.prepare, *made.arms}
    assert len({job.config for job in jobs}) == len(jobs)  # no two arms are the same


# --- from a sweep to runs -------------------------------------------------------------------------------------------


def resolve(argv):
  """A config without configs: what the flags say."""
  values = dict(a.removeprefix('--config').lstrip('.').split('=', 1) for a in argv)
  return {'model': {'spec': 'scratch:tiny'}, **values}


def jobs_of(made=SMALL, seeds=(0, 1), arms=('a', 'b'), code='x', final=True):
  return plan.jobs(made, seeds, Path('/w'), resolve, code, arms, final)


def test_jobs_come_after_what_they_start_from_and_seed_by_seed():
  jobs = jobs_of()
  assert [(j.name, j.seed) for j in jobs] == [(n, s) for s in (0, 1) for n in ('base', 'later', 'a', 'b')]
  base, later, a, b = jobs[:4]
  assert (base.after, later.after, a.after, b.after) == (None, base, later, None)
  assert f'--config.model.spec={later.model}' in a.commands[0] and len(a.commands) == 1
  assert later.commands[1][-2:] == (f'--workdir={later.folder}', f'--out={later.model}')
  assert {j.name for j in jobs_of(arms=('b',))} == {'b'}
  assert '--config.eval.questions=4' in a.flags and '--config.eval.questions=4' in base.flags


def test_seeds_go_where_a_run_does_not_set_them_itself():
  arms = {'a': Arm(CONFIG), 'b': Arm(CONFIG, {'data.seed': 7}), 'c': Arm(CONFIG, shift={'data.seed': 100})}
  seeds = {}
  for job in jobs_of(dataclasses.replace(SMALL, arms=arms, seeded=('seed', 'data.seed')), (3,), tuple(arms)):
    seeds[job.name] = [f.partition('=')[2] for f in job.flags if f.startswith(('--config.seed', '--config.data.seed'))]
  assert seeds == {'a': ['3', '3'], 'b': ['7', '3'], 'c': ['3', '103']}


def test_a_hash_is_of_what_is_computed_and_a_folder_also_of_the_code():
  plain, other = jobs_of(), jobs_of(code='y')
  assert [j.config for j in plain] == [j.config for j in other]
  assert not {j.folder for j in plain} & {j.folder for j in other}
  assert len({j.config for j in plain}) == len({j.folder for j in plain}) == len(plain)
  tuned = {(j.name, j.seed): j for j in jobs_of(final=False)}
  assert not {j.config for j in plain} & {j.config for j in tuned.values()}
  prepared = dataclasses.replace(SMALL, prepare=SMALL.prepare | {'base': Arm(CONFIG, {'study.rounds': 9})})
  moved = {j.name: j.config != k.config for j, k in zip(jobs_of(prepared, (0,)), plain)}
  assert moved == {'base': True, 'later': True, 'a': True, 'b': False}


def test_flags_are_read_back_as_they_were_written(monkeypatch):
  monkeypatch.chdir(ROOT)
  values = {
    'optimizer.lr': 1e-05,
    'view.chat': True,
    'stages': ('study',),
    'study.losses': {'group': {'dpo': {'weight': 1.0, 'beta': 0.1}}},
    'view.instruction': "it's {text}\n",
  }
  config = study.load_config(CONFIG)
  for key, value in values.items():
    study.override(config, plan.flag(key, value))
  assert (config.optimizer.lr, config.view.chat, config.stages) == (1e-05, True, ('study',))
  assert config.study.losses.to_dict() == values['study.losses']
  assert config.view.instruction == values['view.instruction']


def test_the_hash_of_the_code_sees_what_computes_and_not_the_sweeps(tmp_path):
  for name in ('train.py', 'ablate/plan.py', 'data/general.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('1')
  hashes = [plan.code_hash(tmp_path)]
  for name in ('ablate/plan.py', 'train.py', 'data/general.txt'):
    (tmp_path / name).write_text('2')
    hashes.append(plan.code_hash(tmp_path))
  assert hashes[0] == hashes[1] and len(set(hashes)) == 3


# --- running --------------------------------------------------------------------------------------------------------


class Fake:
  """A process that ends after `looks` looks, with `error`."""

  def __init__(self, job, looks=1, error=''):
    self.job, self.looks, self.error, self.started, self.left = job, looks, error, 0.0, []
    self.stopped = False

  def poll(self):
    self.looks -= 1
    over = self.looks < 0 or self.stopped
    return run.Outcome(self.job, 'stopped' if self.stopped else self.error, 1.0) if over else None

  def stop(self):
    self.stopped = True


@pytest.fixture
def now(monkeypatch):
  """Time stands still, unless a test moves it."""
  clock = {'now': 0.0}
  monkeypatch.setattr(run.time, 'monotonic', lambda: clock['now'])
  monkeypatch.setattr(run.time, 'sleep', lambda seconds: clock.update(now=clock['now'] + 1))
  return clock


def test_jobs_share_the_slots_and_wait_for_what_they_start_from(now):
  jobs, order, alive = jobs_of(), [], []

  def launch(job):
    process = Fake(job, looks=2)
    alive.append(process)
    assert sum(p.looks >= 0 for p in alive) <= 2
    assert job.after is None or job.after in order
    return process

  assert run.run(jobs, launch, 2, 100, lambda outcome: order.append(outcome.job))
  assert set(order) == set(jobs) and len(order) == len(jobs)


def test_what_starts_from_a_failed_run_fails_and_the_rest_goes_on(now):
  ended = {}
  launch = lambda job: Fake(job, error='exit code 1' if (job.name, job.seed) == ('base', 0) else '')
  assert run.run(jobs_of(), launch, 1, 100, lambda o: ended.update({(o.job.name, o.job.seed): o.error}))
  assert ended['later', 0] == 'base, seed 0 failed, from which it starts'
  assert 'later, seed 0' in ended['a', 0] and ended['b', 0] == ''
  assert {error for (_, seed), error in ended.items() if seed == 1} == {''}


def test_a_run_that_takes_too_long_is_stopped(now):
  ended = []
  jobs = jobs_of(arms=('b',), seeds=(0,))
  assert run.run(jobs, lambda job: Fake(job, looks=10_000), 1, 60, ended.append)
  assert 'took longer than 1 minutes' in ended[0].error and now['now'] < 70


def test_a_signal_or_an_error_leaves_no_process(now):
  for stop, done in ((lambda: now['now'] > 3, lambda o: None), (lambda: False, lambda o: 1 / 0)):
    started, now['now'] = [], 0.0

    def launch(job, started=started):
      started.append(Fake(job, looks=1 if not started else 10_000))
      return started[-1]

    try:
      assert not run.run(jobs_of(arms=('b', 'c')), launch, 2, 1000, done, stop)
    except ZeroDivisionError:
      assert not stop()
    assert len(started) >= 2 and all(process.stopped or process.looks < 0 for process in started)


# --- what is on file ------------------------------------------------------------------------------------------------


def finish(job, score, tokens=100, steps=4, when=('before', 'after')):
  """What a run leaves in its workdir."""
  job.folder.mkdir(parents=True)
  rows = [{'step': i + 1, 'num_tokens': tokens / steps, 'loss': float(i)} for i in range(steps)]
  (job.folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  evaluations = [{'when': w, 'step': 0, 'metrics': {'score': score * (w == 'after')}, 'samples': []} for w in when]
  (job.folder / 'evaluations.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in evaluations))
  (job.folder / 'timing.json').write_text('{"total": 12.34}')


def session(tmp_path, made=SMALL):
  path = tmp_path / 'mine.json'
  return Session(Path('mine.py'), made, {}, tmp_path / 'w', path, 'past ablate', 'abc', resolve)


def complete(s, score=lambda job: 0.5 + 0.1 * job.seed * (job.name == 'a') + 0.3 * (job.name == 'a'), seeds=range(3)):
  """Runs what is missing; returns it."""
  missing = s.missing(s.jobs(seeds, ('a', 'b')))
  for job in missing:
    if job.prepares:
      job.model.mkdir(parents=True)
      (job.model / 'config.json').write_text('{}')
    else:
      finish(job, score(job))
    assert s.done(run.Outcome(job, '', 2.0)) == ''
  return [(job.name, job.seed) for job in missing]


def test_a_sweep_goes_on_from_its_results_where_it_was_killed(tmp_path):
  first = session(tmp_path)
  jobs = first.missing(first.jobs(range(2), ('a', 'b')))
  assert [(job.name, job.seed) for job in jobs] == [(n, s) for s in (0, 1) for n in ('base', 'later', 'a', 'b')]
  finish(jobs[3], 0.5)
  first.done(run.Outcome(jobs[3], '', 1.0))  # and then it is killed; elsewhere, where there are no workdirs:
  again = session(tmp_path)
  again.workdir = tmp_path / 'elsewhere'
  assert [(j.name, j.seed) for j in again.missing(again.jobs(range(1), ('a', 'b')))] == [
    ('base', 0),
    ('later', 0),
    ('a', 0),
  ]
  assert complete(again, seeds=range(2))[-1] == ('b', 1)
  third = session(tmp_path)
  assert third.missing(third.jobs(range(2), ('a', 'b'))) == []
  assert third.jobs([2], ('a',)) == third.missing(third.jobs([2], ('a',)))


def test_only_what_changed_is_run_again_and_what_failed(tmp_path):
  complete(session(tmp_path))
  arms = SMALL.arms | {'b': Arm(CONFIG, {'study.rounds': 5})}
  s = session(tmp_path, dataclasses.replace(SMALL, arms=arms))
  assert {job.name for job in s.missing(s.jobs(range(3), ('a', 'b')))} == {'b'}
  s = session(tmp_path)
  (job,) = (j for j in s.jobs([1], ('b',)))
  assert s.done(run.Outcome(job, 'exit code 1: no space', 1.0))
  assert json.loads(s.path.read_text())['claims']['X1']['seeds'] == 2
  again = session(tmp_path)
  assert again.missing(again.jobs(range(3), ('a', 'b'))) == [job]
  assert 'Failed: b, seed 1: exit code 1: no space' in table.arms(json.loads(s.path.read_text()))


def test_a_claim_that_reads_more_of_the_runs_has_them_read_again(tmp_path):
  complete(session(tmp_path))
  wider = changed(contrasts=(difference('a', 'b', 'tail:loss', '+'),))
  s = session(tmp_path, wider)
  missing = s.missing(s.jobs(range(3), ('a', 'b')))
  assert [job.finished for job in missing] == [True] * 6  # no preparing run: there is nothing to compute
  for job in missing:
    s.done(run.Outcome(job, '', 0.0))
  assert s.save()['claims']['X1']['contrasts'][0]['values'] == {'0': 0.0, '1': 0.0, '2': 0.0}


def test_a_metric_that_no_run_writes_ends_the_sweep_and_one_that_is_not_finite_the_run(tmp_path):
  s = session(tmp_path, changed(contrasts=(difference('a', 'b', 'after:scor', '+'),)))
  (job,) = s.jobs([0], ('b',))
  finish(job, 0.5)
  with pytest.raises(figures.NoSuchMetric, match=r"mine.py, arm 'b': .*'after:scor'.*Did you mean 'after:score'"):
    s.done(run.Outcome(job, '', 1.0))
  s = session(tmp_path / '2')
  (job,) = s.jobs([0], ('b',))
  finish(job, 0.5)
  text = (job.folder / 'evaluations.jsonl').read_text().replace('0.5', 'null')
  (job.folder / 'evaluations.jsonl').write_text(text)
  assert 'not finite' in s.done(run.Outcome(job, '', 1.0))
  assert s.missing([job]) == [job]


def test_figures_of_steps(tmp_path):
  (job,) = session(tmp_path).jobs([0], ('b',))
  finish(job, 0.5, tokens=1600, steps=16)
  names = ('first:loss', 'tail:loss', 'rise:loss', 'mean:loss', 'sum:loss', 'change:score')
  record = figures.read(job.folder, names)
  assert (record['steps'], record['tokens'], record['seconds']) == (16, 1600, 12.3)
  assert [figures.value(record, name) for name in names] == [0, 14.5, 14.5, 7.5, 120, 0.5]
  with pytest.raises(UserError, match='metrics.jsonl'):
    figures.read(job.folder, ['mean:lss'])
  found = figures.read(job.folder, (), ['sum:loss', 'mean:lss'])['figures']  # of a control: what it has
  assert found['sum:loss'] == 120 and 'mean:lss' not in found


# --- verdicts -------------------------------------------------------------------------------------------------------


def records(scores, tokens=None, steps=None):
  """{arm: score per seed} -> runs."""
  return [
    {
      **{'arm': arm, 'seed': seed, 'config': 'c', 'code': 'x', 'commit': 'abc', 'error': '', 'seconds': 1.0},
      **{'steps': (steps or {}).get(arm, 4), 'tokens': (tokens or {}).get(arm, 100), 'figures': {'after:score': y}},
    }
    for arm, values in scores.items()
    for seed, y in enumerate(values)
  ]


CLEAR = {'a': [0.8, 0.9, 0.85], 'b': [0.5, 0.55, 0.6]}


def verdict(runs, **claim):
  return results.assess(changed(**claim), runs, {}, 'past ablate')['X1']


def test_a_seed_is_paired_within_one_code(tmp_path):
  runs = records(CLEAR)
  runs[0]['code'] = 'older'
  assert verdict(runs)['seeds'] == 2
  s = session(tmp_path)
  complete(s)
  of = lambda: sorted((job.name, job.seed) for job in s.missing(s.jobs(range(3), ('a', 'b'))) if not job.prepares)
  s.records['a', 1]['code'] = 'older'
  assert of() == [('a', 1)]
  s.records['b', 1]['code'] = 'older'
  assert of() == []
  del s.records['b', 1]
  assert of() == [('a', 1), ('b', 1)]


def test_verdicts():
  clear = verdict(records(CLEAR))
  assert (clear['verdict'], clear['seeds'], clear['published']) == (results.REPRODUCED, 3, 'by 3')
  low, high = scipy.stats.ttest_1samp([0.3, 0.35, 0.25], 0).confidence_interval(0.95)
  assert clear['interval'] == f'[{low:+.3g}, {high:+.3g}]' and clear['ours'].startswith('+0.3 (a minus b')
  down = (difference('a', 'b', 'after:score', '-'),)
  assert verdict(records(CLEAR), contrasts=down)['verdict'] == results.NOT_REPRODUCED
  both = (*SMALL.claims[0].contrasts, level('a', 'after:score', '+', 0.9))
  assert verdict(records(CLEAR), contrasts=both)['verdict'] == results.NOT_REPRODUCED
  assert verdict(records({arm: y[:2] for arm, y in CLEAR.items()}))['verdict'] == results.NOT_RUN
  assert verdict([])['verdict'] == results.NOT_RUN


def test_seeds_are_paired_and_one_without_its_partner_does_not_count():
  runs = [r for r in records(CLEAR) if (r['arm'], r['seed']) != ('b', 1)]
  found = verdict(runs)
  assert list(found['contrasts'][0]['values']) == ['0', '2'] and found['verdict'] == results.NOT_RUN


def test_arms_that_cost_differently_have_no_verdict_unless_the_claim_says_why():
  runs = records(CLEAR, tokens={'a': 120}, steps={'a': 5})
  for budget, text in (('steps', 'steps differ, a 5, b 4'), ('tokens', 'tokens differ, a 120, b 100')):
    found = verdict(runs, budget=budget)
    assert found['verdict'] == results.NOT_RUN and text in found['note']
  assert verdict(records(CLEAR, tokens={'a': 109}), budget='tokens')['verdict'] == results.REPRODUCED
  free = verdict(runs, budget='none', note='a is longer on purpose')
  assert (free['verdict'], free['note']) == (results.REPRODUCED, 'a is longer on purpose')


def test_a_constant_is_part_of_what_a_contrast_is_called():
  assert level('a', 'after:score', '+', 0.5).text == 'a minus 0.5'
  assert Contrast('a', {'a': 1.0}, 'after:score', '+', against=-0.02).text == 'a plus 0.02'
  assert level('a', 'change:score', '+', 0.0).text == 'a'


def test_several_metrics_are_averaged_and_constants_taken_off():
  runs = records(CLEAR)
  for r in runs:
    r['figures']['after:other'] = 0.1
  both = Contrast('a', {'a': 1.0}, ('after:score', 'after:other'), '+', against=0.2)
  found = verdict(runs, contrasts=(both,))['contrasts'][0]
  assert found['values'] == pytest.approx({'0': 0.25, '1': 0.3, '2': 0.275})
  assert found['metric'] == 'after:{score,other}'
  assert figures.named(['after:a/x', 'after:a/xy', 'after:a/z']) == 'after:a/{x,xy,z}'


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  """A folder of sweeps with two known claims, of which one has been answered."""
  claims = '[X0]\nstatement = "first"\npublished = "p"\ncommand = ""\n'
  claims += '[X1]\nstatement = "a | b"\npublished = "q"\ncommand = "c"\n'
  (tmp_path / table.CLAIMS).write_text(claims)
  (tmp_path / table.NOTES).write_text('## Notes\n\nkept\n')
  made = changed(statement='', published='')
  content = results.content('mine', made, records(CLEAR), table.told(tmp_path), 'past ablate mine.py')
  results.write(tmp_path / 'results' / 'mine.json', content)
  return tmp_path


def test_the_table_has_a_row_per_claim_in_its_order(folder, monkeypatch):
  text = table.document(folder, folder)
  rows = [line for line in text.splitlines() if line.startswith('| X')]
  assert rows[0] == '| X0 | first | - | - | 0 | p | not run |  |'
  assert rows[1].startswith('| X1 | a \\| b | +0.3 (a minus b, after:score) | [+0.176, +0.424] | 3 | q | reproduced |')
  assert rows[1].endswith('`past ablate mine.py --only=X1` |')
  assert '| X1 | a minus b, after:score, is above 0 | 3 | +0.3 |' in text
  assert '| a | 3 | 0.85 [0.726, 0.974] | 4 | 100 | 1 |' in text
  assert text.endswith('## Notes\n\nkept\n')
  monkeypatch.chdir(folder)
  assert main(['ablate', '--table=.', '--results=out.md']) == 0
  assert Path('out.md').read_text() == text


def test_a_file_of_another_maker_needs_the_verdict_only(folder):
  claim = {'ours': '24', 'interval': '[20, 30]', 'seeds': 5, 'verdict': 'reproduced'}
  results.write(folder / 'results' / 'theory.json', {'claims': {'X0': claim}})
  assert '| X0 | first | 24 | [20, 30] | 5 | p | reproduced |  |' in table.document(folder, folder)
  results.write(folder / 'results' / 'theory.json', {'claims': {'X1': claim}})
  with pytest.raises(UserError, match='claim X1 stands in'):
    table.document(folder, folder)
  results.write(folder / 'results' / 'theory.json', {'claims': {'X0': claim | {'verdict': 'yes'}}})
  with pytest.raises(UserError, match="verdict 'yes'"):
    table.document(folder, folder)


def test_broken_files_are_one_message(folder):
  (folder / 'results' / 'mine.json').write_text('{')
  with pytest.raises(UserError, match='mine.json is not JSON'):
    table.document(folder, folder)
  (folder / table.CLAIMS).write_text('[X0]\nstatement = "x"\n')
  with pytest.raises(UserError, match='claim X0 lacks command, published'):
    table.told(folder)
  (folder / table.CLAIMS).write_text('[X0')
  with pytest.raises(UserError, match='is not TOML'):
    table.told(folder)


def test_results_md_is_what_its_files_say():
  rewrite = 'past ablate --table=configs/ablations writes it'
  assert (ROOT / 'RESULTS.md').read_text() == table.document(ABLATIONS, ROOT), rewrite


def test_the_figure_is_the_same_for_the_same_results(folder):
  content = results.read(folder / 'results' / 'mine.json')
  path = folder / 'results' / 'mine.svg'
  plot.draw(content, path)
  first = path.read_bytes()
  plot.draw(content, path)
  assert path.read_bytes() == first
  assert b'after:score' in first and b'<svg' in first and first.count(b'id="axes_') == 1
  assert '![Arms of mine](results/mine.svg)' in table.document(folder, folder)


def test_figures_with_two_numbers_make_a_matrix(folder):
  content = results.read(folder / 'results' / 'mine.json')
  path = folder / 'results' / 'mine.matrices.svg'
  plot.draw_matrices(content, path)
  assert not path.exists()
  cells = {f'after:kept/plain/{i}/{j}': 0.1 * (10 * i + j) / 12 for i in range(2) for j in range(3)}
  for k, run_ in enumerate(content['runs'][:2]):
    run_ |= {'arm': 'one', 'figures': {name: value + k * 0.2 for name, value in cells.items()}}
  ((name, matrix),) = plot.matrices(content | {'runs': content['runs'][:2]}).items()
  assert name == 'one, after:kept/plain'
  np.testing.assert_allclose(matrix, 0.1 + np.array([[0, 1, 2], [10, 11, 12]]) / 120)
  content['runs'][0]['figures'] |= {'after:2024/0/1': 0.5, 'after:kept/kl/0/0': None}  # no matrices
  plot.draw_matrices(content, path)
  assert path.read_text().count('id="axes_') == 2  # the matrix and its scale
  assert '![Matrices of mine](results/mine.matrices.svg)' in table.document(folder, folder)
