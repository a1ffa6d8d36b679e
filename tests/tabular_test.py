"""Closed forms against enumeration, fits against linear algebra, and what every instance is there to show."""

import functools
import itertools
import json
import math

import jax
import numpy as np
import pytest
import theory

from past_jax.tabular import explore, fit, instances, laws


def random_p(*shape, seed=0):
  return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.7), shape[:-1])


# --- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('n', [1, 2, 4])
@pytest.mark.parametrize('reward', [None, [0.0, 2.0, 2.0, -1.0, 2.0]])
def test_best_of_n_is_what_enumeration_says(n, reward):
  p = np.array([0.1, 0.25, 0.25, 0.3, 0.1])
  value = p if reward is None else np.array(reward)
  law = np.zeros(5)
  for drawn in itertools.product(range(5), repeat=n):
    winner = max(drawn, key=lambda y: value[y])  # of equal ones the first
    law[winner] += np.prod(p[list(drawn)])
  np.testing.assert_allclose(laws.best_of_n(p, n, reward), law, rtol=1e-12)


def test_best_of_n_is_a_law_of_every_prompt():
  p = random_p(7, 3, 20)
  law = laws.best_of_n(p, 5)
  np.testing.assert_allclose(law.sum(-1), 1, rtol=1e-12)
  np.testing.assert_allclose(law[4, 2], laws.best_of_n(p[4, 2], 5), rtol=1e-12)
  with pytest.raises(ValueError, match='at least 1'):
    laws.best_of_n(p, 0)


def test_tilt_is_the_best_compromise_of_reward_and_divergence():
  p, reward, beta = random_p(6), np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.0]), 0.7
  value = lambda q: q @ reward - beta * (q @ np.log(q / p))
  best = laws.tilt(p, beta, reward)
  assert value(best) == pytest.approx(beta * math.log(p @ np.exp(reward / beta)))  # Donsker and Varadhan
  assert all(value(best) > value(q) for q in random_p(200, 6, seed=1))
  power = p ** (1 + 1 / 0.3)
  np.testing.assert_allclose(laws.tilt(p, 0.3), power / power.sum(), rtol=1e-12)
  np.testing.assert_array_equal(laws.tilt([0.5, 0.5, 0.0], 0.1), [0.5, 0.5, 0.0])


def test_coverage_margin_and_mass_with_two_best_responses():
  p = np.array([[0.4, 0.4, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
  np.testing.assert_allclose(laws.mass_on_best(p, p), [0.8, 0.4, 1.0])
  assert laws.coverage(p) == pytest.approx((1 / 0.8 + 1 / 0.4 + 1) / 3)
  np.testing.assert_allclose(laws.margin(p), [1.0, 1 / 3, np.inf])


@pytest.mark.parametrize('mass', [0.003, 0.2, 0.9, 1.0])
def test_samples_needed_is_the_least_that_suffices(mass):
  n = laws.samples_needed(mass, 0.05)
  assert (1 - mass) ** n <= 0.05 and (n == 1 or (1 - mass) ** (n - 1) > 0.05)


@pytest.mark.parametrize('mu', [0.3, 1.0, 2.2])
@pytest.mark.parametrize('p', [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.25, 0.25, 0.26, 0.24]])
def test_adaptive_best_is_what_enumeration_says(p, mu):
  def go(k, top):  # after k samples, the likeliest of mass `top`: (chance to end with the best, samples from here on)
    if k * top >= mu:
      return float(top == max(p)), 0.0
    ends = [go(k + 1, max(top, q)) for q in p]
    return sum(q * hit for q, (hit, _) in zip(p, ends)), 1 + sum(q * more for q, (_, more) in zip(p, ends))

  np.testing.assert_allclose(laws.adaptive_best(p, mu), go(0, 0.0), rtol=1e-12)


def test_greedy_finds_a_best_response_of_more_than_half_and_may_miss_one_of_less():
  rng = np.random.default_rng(0)
  first, second = rng.dirichlet(np.full(3, 0.5), 400), rng.dirichlet(np.full(3, 0.5), (400, 3))
  found, best = laws.greedy(first, second)
  for a, b, f, m in zip(first, second, found, best):
    assert f == a[a.argmax()] * b[a.argmax()].max() and m == max(a[i] * b[i, j] for i in range(3) for j in range(3))
  assert (best > 0.5).sum() > 50 and (found == best)[best > 0.5].all() and not (found == best).all()
  for gap in (0.1, 1e-9):
    found, best = laws.greedy(*instances.nearly_half(gap))
    assert found < best == pytest.approx(0.5 - gap)


# --- fits ---------------------------------------------------------------------------------------------------------


def test_squared_reward_differences_in_all_tables_end_at_the_tilt():
  p, beta = random_p(2, 5), 0.5
  pairs = np.array(list(itertools.combinations(range(5), 2)) * 2)
  prompt = np.repeat([[0, 0], [1, 1]], 10, axis=0)
  logp = np.log(p[prompt, pairs])
  step, batch = fit.regression(fit.tables, beta), fit.batch(logp[..., None], logp)
  theta = fit.minimise(step, np.zeros_like(p), (np.log(p), prompt, pairs), batch)
  np.testing.assert_allclose(laws.tilt(p, 1.0, theta), laws.tilt(p, beta), atol=2e-5)


@pytest.mark.parametrize('pairs', [3, 12])
def test_squared_reward_differences_in_a_linear_class_are_least_squares(pairs):
  """Normalisers cancel in pairs: the solution nearest to the reference solves (y - y') . (theta - ref) = dr / beta."""
  rng, beta, F = np.random.default_rng(0), 0.2, 6
  ref = rng.normal(size=F) * 0.3
  y = rng.choice([-1.0, 1.0], (pairs, 2, F))
  base = -np.log1p(np.exp(-2 * ref * y))
  reward = base.sum(-1)
  expected = ref + np.linalg.lstsq(y[:, 0] - y[:, 1], (reward[:, 0] - reward[:, 1]) / beta)[0]
  step = fit.regression(fit.product, beta)
  found = fit.minimise(step, ref, y.astype(np.float32), fit.batch(base, reward), scale=1 / beta)
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_rows_of_weight_0_change_no_fit():
  rng = np.random.default_rng(0)
  y = rng.choice([-1.0, 1.0], (8, 2, 3)).astype(np.float32)
  base = -np.log1p(np.exp(-0.4 * y))
  step = fit.regression(fit.product, 0.3)
  some = fit.minimise(step, np.full(3, 0.2), y, fit.batch(base, base.sum(-1), np.arange(8) < 5))
  alone = fit.minimise(step, np.full(3, 0.2), y[:5], fit.batch(base[:5], base[:5].sum(-1)))
  np.testing.assert_allclose(some, alone, atol=1e-4)


def test_maximum_likelihood_in_the_product_class_has_the_means_of_the_signs():
  y = np.random.default_rng(0).choice([-1.0, 1.0], (40, 1, 4), p=[0.3, 0.7]).astype(np.float32)
  step = fit.imitation(fit.product)
  found = fit.minimise(step, np.zeros(4), y, fit.batch(np.zeros_like(y), np.zeros((40, 1))))
  np.testing.assert_allclose(found, np.arctanh(y.mean((0, 1))), atol=1e-3)


def test_a_stepwise_class_is_a_product_of_softmaxes():
  rng = np.random.default_rng(0)
  first, second, theta = rng.normal(size=(3, 2)), rng.normal(size=(3, 3, 2)), rng.normal(size=2)
  y = np.array(list(itertools.product(range(3), range(3))))
  found = np.asarray(jax.jit(fit.stepwise((first, second)))(theta.astype(np.float32), y[None]))[0]
  normed = lambda x: np.exp(x) / np.exp(x).sum()
  expected = [(normed(first @ theta)[a], normed(second[a] @ theta)[b]) for a, b in y]
  np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)


# --- instances ----------------------------------------------------------------------------------------------------


def test_best_of_n_sharpens_whatever_the_margin_is_and_the_tilt_does_not():
  out = instances.curves(np.random.default_rng(0), prompts=200, responses=32)
  errors = np.sqrt(out['best_of_n'] * (1 - out['best_of_n']) / 200)
  assert (np.abs(out['sampled'] - out['best_of_n']) <= 4 * errors + 1e-9).all()
  assert (np.diff(out['best_of_n']) > 0).all() and out['best_of_n'][-1] > 0.99
  assert out['tilt'][0] > out['best_of_n'][0] and out['tilt'][-1] < out['best_of_n'][-1]


def test_regression_needs_a_margin_and_imitation_does_not():
  out = instances.margins(np.random.default_rng(0), gammas=(0.01, 1.0), prompts=20)
  np.testing.assert_allclose(out['rlhf'], out['tilt'], atol=1e-3)
  assert out['rlhf'][1] > 0.99 and out['rlhf'][0] == pytest.approx(1 / (1 + 1.01**-21), abs=0.01)
  np.testing.assert_allclose(out['best_of_n'], 1 - 0.8**16, rtol=1e-12)
  assert (np.abs(out['sft'] - out['best_of_n']) < 0.08).all()


def test_fixed_n_costs_coverage_over_eps_and_the_stopping_rule_does_not():
  rng = np.random.default_rng(0)
  out = instances.adaptive_against_fixed(rng, eps=(0.2, 0.05), prompts=200, responses=256)
  np.testing.assert_allclose(out['adaptive'], out['exact'], rtol=0.1)
  assert out['fixed'].tolist() == [math.ceil(math.log(0.1) / math.log1p(-e / 4)) for e in (0.2, 0.05)]
  assert (out['success'] >= 0.9).all() and abs(out['exact'][0] / out['exact'][1] - 1) < 0.1
  cost = instances.cost_of_coverage(rng, coverages=(4, 16), prompts=300, responses=64)['samples']
  assert 3 < cost[1] / cost[0] < 5.3
  with pytest.raises(ValueError, match='more than 8 responses'):
    instances.hard_prompts(rng, 0.05, 4, 10, 8)
  with pytest.raises(ValueError, match='had not stopped after 2'):
    instances.adaptive_run(rng, random_p(3, 4), 3.0, most=2)


def test_structure_spares_regression_the_coverage_and_not_imitation():
  F, size = 6, 0.15
  mass = instances.flips(F, size)
  q = 1 / (1 + math.exp(-0.3))
  assert mass.sum() == pytest.approx(1) and mass[0] == pytest.approx(q**F)
  rng = np.random.default_rng(0)
  sampled = instances.sft_in_product(rng, F, size, N=8, n=400, runs=20)
  assert sampled == pytest.approx(instances.sft_limit(F, size, 8), abs=0.01)
  winner = instances.sft_in_product(rng, F, size, N=8, n=1, runs=4000)  # one winner is repeated for ever
  assert winner == pytest.approx(1 - (1 - q**F) ** 8, abs=0.03)
  out = instances.structure(rng, F=F, pairs=(4, 12), ns=(2, 40, 160), winners=(1, 16), runs=4)
  assert out['samples_rlhf'] == 24 < out['floor'] <= out['samples_sft'] == 160
  with pytest.raises(ValueError, match='pairs: none of them reaches'):
    instances.structure(rng, F=F, pairs=(1,), ns=(160,), winners=(1,), runs=1)


def test_optimism_raises_what_no_pair_has_shown():
  rng = np.random.default_rng(0)
  arms = explore.arms(100, 3, 1.5, 10, best=2)
  assert arms.p_K.sum() == pytest.approx(1) and arms.p_K[2] == pytest.approx(0.01) and arms.best == 2
  index = np.array([[0, 0], [1, 0]])
  log_base = np.log(arms.p_K)[None]
  batch = fit.batch(log_base[0, index][..., None], arms.reward_K[index])
  for alpha in (0.0, 0.1):
    step, responses = fit.regression(fit.tables, 0.05, alpha), (log_base, np.zeros_like(index), index)
    gradient = np.asarray(step(np.zeros((1, 4), np.float32), responses, batch)[1])[0]
    np.testing.assert_allclose(gradient[2:], -alpha * arms.p_K[2:], atol=1e-7)
    assert gradient[1] < 0  # it is likelier than the bulk
    # Nowhere within the bound is the loss below what the fit ends at that begins with these logits at the bound.
    fitted = lambda start: fit.minimise(step, start, responses, batch, scale=20, bound=5.0)  # noqa: B023
    best = fitted(np.array([[0.0, 0.0, 100.0, 100.0]]))
    least = float(step(best.astype(np.float32), responses, batch)[0])
    others = [rng.uniform(-100, 100, (1, 4)) for _ in range(5)]
    for theta in [fitted(np.zeros((1, 4))), *others, *map(fitted, others)]:
      assert float(step(theta.astype(np.float32), responses, batch)[0]) >= least - 1e-6
    assert not alpha or (best[0, 2:] == 100).all()


def test_exploration_finds_what_the_base_hardly_shows():
  costs = {}
  for alpha in (0.0, 1e-3):
    out = instances.exploration(np.random.default_rng(3), coverages=(60,), alphas=(alpha,), singles=4, runs=2)
    costs[alpha] = out['samples'].item()
  assert costs[1e-3] <= 12 and costs[0.0] > 2 * costs[1e-3]


def test_a_run_without_success_ends():
  arms = explore.arms(50, 4, 1.5, 10, best=1)
  found = explore.samples_until_sharp(arms, 0.0, 0.05, 1.1, 20, np.random.default_rng(0))
  assert found == math.inf


def test_no_member_of_the_two_step_class_gives_its_best_response_more_than_half():
  members = instances.all_members([-30.0, -1.0, 0.0, 1.0, 30.0])
  assert (np.diff(members) > 0).all() and members[-1] == pytest.approx(0.5) and (members <= 0.5).all()
  out = instances.two_steps(np.random.default_rng(0), betas=(0.5, 0.02), ns=(2, 50), samples=256)
  assert out['base'].argmax() == 2 and laws.margin(out['base']) > 0.4
  assert out['tilt'][-1] > 0.99 and out['best_of_n'][-1] > 0.99
  assert max(out['rlhf'][-1], out['sft'][-1]) == pytest.approx(0.5, abs=1e-4)


# --- the script ---------------------------------------------------------------------------------------------------

SMALL = {
  'curves': dict(prompts=20, responses=16),
  'decoding': dict(tables=500),
  'cost_of_coverage': dict(coverages=(4, 16), prompts=200, responses=64),
  'adaptive_against_fixed': dict(eps=(0.2, 0.05), prompts=40, responses=256),
  'margins': dict(gammas=(0.01, 1.0), prompts=4, samples=32),
  'structure': dict(F=4, pairs=(16,), ns=(2, 40), winners=(1,), runs=2),
  'exploration': dict(coverages=(20, 40), singles=3),
  'optimism': dict(coverages=(20,), alphas=(1e-3,), singles=3),
  'two_steps': dict(betas=(0.5,), ns=(2,), samples=32),
}


@pytest.mark.slow
def test_the_script_writes_claims_and_plots(tmp_path, monkeypatch, capsys):

  def small(name, instance):
    run = functools.cache(lambda: instance.run(np.random.default_rng(0), **SMALL[name]))
    own = functools.partial(instance.run, **SMALL[name])
    return instance._replace(run=own if instance.claim in ('', 'E6') else lambda rng: run())  # fits cost more

  small = {name: small(name, instance) for name, instance in theory.INSTANCES.items()}
  monkeypatch.setattr(theory, 'INSTANCES', small)
  flags = ['--seeds=3', f'--results={tmp_path}/results', f'--plots={tmp_path}']
  theory.main(flags)
  said = capsys.readouterr().out
  assert {path.stem for path in tmp_path.glob('*.svg')} == set(SMALL)
  for name, claim in theory.CLAIMS.items():
    content = json.loads((tmp_path / f'results/{name}.json').read_text())
    row = content['claims'][name]
    assert content['seeds'] == [10, 11, 12] and row['seeds'] == 3 and f'{name}: {row["verdict"]}' in said
    assert len(row['expected']) == len(row['contrasts']) == len(claim.contrasts)
    assert {key for key, small in theory.INSTANCES.items() if small.claim == name} == set(content['figures'])
    for contrast in row['contrasts']:
      values = list(contrast['values'].values())
      assert contrast['mean'] == pytest.approx(np.mean(values), abs=1e-5)
      assert contrast['low'] <= contrast['mean'] <= contrast['high']
  before = (tmp_path / 'cost_of_coverage.svg').read_bytes()
  theory.main([*flags, '--only=E6'])
  assert (tmp_path / 'cost_of_coverage.svg').read_bytes() == before
  with pytest.raises(SystemExit):
    theory.main(['--seeds=2'])
  assert 'fewer than 3' in capsys.readouterr().err
