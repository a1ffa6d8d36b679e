"""Losses against TRL's own code: its trainers' loss methods, run on random log-probs that a stand-in model returns.

Where TRL deviates from the formula, docs/losses.md says so. TRL 1.16 has no XPO, Nash-MD, REBEL or soft SPPO any more.
"""

from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from past_jax.losses import TABLE, add
from past_jax.types import Batch, Prompts, Selection

pytestmark = pytest.mark.slow
N, T = 6, 7
RNG = np.random.default_rng(11)
LENGTH = RNG.integers(1, T + 1, (N, 2)).astype(np.int32)
LENGTH[0], LENGTH[1] = (T, 2), (3, 3)
MASK = np.arange(T) < LENGTH[..., None]
LOGPS = np.where(MASK, -RNG.exponential(size=(N, 2, T)), 0).astype(np.float32)
REF = np.where(MASK, LOGPS + 0.5 * RNG.normal(size=(N, 2, T)), 0).astype(np.float32)
OLD = np.where(MASK, LOGPS + 0.2 * RNG.normal(size=(N, 2, T)), 0).astype(np.float32)
LOG_SUM_SQ = np.where(MASK, -RNG.exponential(size=(N, 2, T)), 0).astype(np.float32)
SCORE = RNG.normal(size=(N, 2)).astype(np.float32)
ONE = np.ones((N, 1), np.float32)


@pytest.fixture(scope='module')
def torch():
  import torch

  return torch


def ours(loss, source=((0, 0),), row=((1, 1),), ref=REF):
  """(value, metrics, gradient_Nx2xT): N pairs, the first member chosen."""
  batch = Batch(
    prompts=Prompts(np.ones((N, 1), np.int32), np.ones(N, np.int32)),
    ids_BxGxT=np.ones((N, 2, T), np.int32),
    length_BxG=LENGTH,
    ref_logps_BxGxT=ref,
    old_logps_BxGxT=OLD,
    source_BxG=np.tile(np.int32(source), (N, 1)),
    selection=Selection(
      np.zeros((N, 1), np.int32),
      np.ones((N, 1), np.int32),
      ONE,
      np.tile(np.float32(row), (N, 1)),
      SCORE,
      np.tile(np.int32([[0, 1]]), (N, 1)),
    ),
  )
  value = lambda x: loss({'logps_BxGxT': x, 'log_sum_sq_BxGxT': LOG_SUM_SQ}, batch)
  (value, metrics), grad = jax.device_get(jax.jit(jax.value_and_grad(value, has_aux=True))(LOGPS))
  return value, metrics, grad


def rows(x_Nx2xT):
  """TRL's order: all chosen, then all rejected."""
  return np.concatenate([x_Nx2xT[:, 0], x_Nx2xT[:, 1]])


def trainer(torch, cls, **fields):
  """An instance that has these fields and nothing else of a trainer."""
  same = lambda x, **_: x
  self = object.__new__(cls)
  calls = dict.fromkeys(('gather', 'gather_for_metrics', 'reduce', 'unwrap_model'), same)
  self.accelerator = SimpleNamespace(device='cpu', num_processes=1, sync_gradients=True, **calls)
  self.model = torch.nn.Module()
  self.model.is_gradient_checkpointing = False
  self.aux_loss_enabled, self._total_train_tokens, self._tp_size = False, 0, 1
  self._metrics = defaultdict(lambda: defaultdict(list))
  for name, value in fields.items():
    setattr(self, name, value)
  return self


def stand_in(torch, log_probs, log_sum_sq=None):
  """A model that returns these rows, {first id: log-probs}; as TRL's they are 0 where labels are -100."""

  def model(input_ids, labels, **_):
    x = torch.where(labels[:, 1:] == -100, 0.0, log_probs[int(input_ids[0, 0])])
    zero = torch.zeros_like(x)
    return SimpleNamespace(
      log_probs=x, log_sum_sq_probs=log_sum_sq, entropy=zero, mean_logits=zero, is_top1=zero.bool(), aux_loss=None
    )

  return model


def inputs(torch, first, mask):
  mask = torch.tensor(np.pad(mask, ((0, 0), (1, 0))).astype(np.int64))  # a prompt of one token
  return torch.full(mask.shape, first), torch.ones_like(mask), mask


def trl_dpo(torch, types, weights=(1.0,), beta=0.1, **fields):
  from trl import DPOTrainer

  defaults = dict(ld_alpha=None, label_smoothing=0.0, f_divergence_type='reverse_kl', f_alpha_divergence_coef=0.5)
  args = SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
  logps = torch.tensor(rows(LOGPS), requires_grad=True)
  ref = stand_in(torch, {1: torch.tensor(rows(REF))})
  self = trainer(
    torch,
    DPOTrainer,
    **defaults
    | dict(use_weighting=False, precompute_ref_logps=False, ref_model=ref, args=args)
    | dict(loss_types=list(types), loss_weights=list(weights), beta=beta)
    | fields,
  )
  ids, attention, mask = inputs(torch, 1, rows(MASK))
  batch = {'input_ids': ids, 'attention_mask': attention, 'completion_mask': mask}
  loss = self._compute_loss(stand_in(torch, {1: logps}, torch.tensor(rows(LOG_SUM_SQ))), batch, False)
  loss.backward()
  grad = logps.grad.numpy()
  return loss.item(), {key: x[0] for key, x in self._metrics['train'].items()}, np.stack([grad[:N], grad[N:]], 1)


DPO = {  # case -> ours, TRL's loss_type, TRL's further keys
  'sigmoid': (('dpo', {}), 'sigmoid', {}),
  'beta': (('dpo', {'beta': 0.7}), 'sigmoid', {'beta': 0.7}),
  'robust': (('robust', {'label_smoothing': 0.2}), 'robust', {'label_smoothing': 0.2}),
  'hinge': (('hinge', {'beta': 0.8}), 'hinge', {'beta': 0.8}),
  'ipo': (('ipo', {}), 'ipo', {}),
  'exo_pair': (('exo_pair', {'label_smoothing': 0.01}), 'exo_pair', {'label_smoothing': 0.01}),
  'nca_pair': (('nca_pair', {}), 'nca_pair', {'beta': 0.01}),
  'bco_pair': (('bco_pair', {}), 'bco_pair', {}),
  'sppo_hard': (('sppo_hard', {'beta': 0.05}), 'sppo_hard', {'beta': 0.05}),
  'aot': (('aot', {'label_smoothing': 0.1}), 'aot', {'label_smoothing': 0.1}),
  'aot_unpaired': (('aot_unpaired', {'beta': 0.6}), 'aot_unpaired', {'beta': 0.6}),
  'apo_zero': (('apo_zero', {}), 'apo_zero', {}),
  'apo_down': (('apo_down', {}), 'apo_down', {}),
  'discopop': (('discopop', {}), 'discopop', {'beta': 0.05}),
  'sigmoid_norm': (('sigmoid_norm', {}), 'sigmoid_norm', {'beta': 2.0}),
  'sft': (('nll', {'rows': 'chosen'}), 'sft', {}),
  'forward_kl': (('dpo', {'divergence': 'forward_kl'}), 'sigmoid', {'f_divergence_type': 'forward_kl'}),
  'js': (('hinge', {'divergence': 'js'}), 'hinge', {'f_divergence_type': 'js_divergence'}),
  'alpha': (('ipo', {'divergence': 'alpha'}), 'ipo', {'f_divergence_type': 'alpha_divergence'}),
  'ld': (('dpo', {'ld_alpha': 0.4}), 'sigmoid', {'ld_alpha': 0.4}),
  'ld norm': (('sigmoid_norm', {'ld_alpha': 0.4}), 'sigmoid_norm', {'ld_alpha': 0.4, 'beta': 2.0}),
  'wpo': (('dpo', {'wpo': True}), 'sigmoid', {'use_weighting': True}),
  'wpo nca': (('nca_pair', {'wpo': True}), 'nca_pair', {'use_weighting': True, 'beta': 0.01}),
}


@pytest.mark.parametrize('case', DPO)
def test_dpo_trainer(torch, case):
  (name, keys), loss_type, fields = DPO[case]
  value, metrics, grad = ours(TABLE[name](**keys))
  expected, logged, slope = trl_dpo(torch, [loss_type], **fields)
  np.testing.assert_allclose(value, expected, rtol=2e-6)
  np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6)
  if name != 'nll':
    for key in ('chosen', 'rejected', 'margins', 'accuracies'):
      np.testing.assert_allclose(metrics[f'rewards/{key}'], logged[f'rewards/{key}'], rtol=1e-5, atol=1e-7)
    for key in ('chosen', 'rejected'):
      np.testing.assert_allclose(metrics[f'logps/{key}'], logged[f'logps/{key}'], rtol=1e-5)


def test_several_losses(torch):
  """MPO."""
  terms = [(0.8, 'dpo', {}), (0.2, 'bco_pair', {}), (1.0, 'nll', {'rows': 'chosen'})]
  value, _, grad = ours(add([(weight, name, TABLE[name](**keys)) for weight, name, keys in terms]))
  expected, _, slope = trl_dpo(torch, ['sigmoid', 'bco_pair', 'sft'], [0.8, 0.2, 1.0])
  np.testing.assert_allclose(value, expected, rtol=2e-6)
  np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6)


def test_trl_ignores_label_smoothing_in_sigmoid(torch):
  """Ours does not: it is cDPO."""
  assert trl_dpo(torch, ['sigmoid'], label_smoothing=0.3)[0] == trl_dpo(torch, ['sigmoid'])[0]
  assert ours(TABLE['dpo'](label_smoothing=0.3))[0] != ours(TABLE['dpo']())[0]


@pytest.mark.parametrize('sign', [1, -1])
def test_kto_trainer(torch, sign):
  """The second member is of another prompt. With the other sign the drift is negative, and cut off."""
  from trl import KTOTrainer

  logps, ref = (LOGPS, REF) if sign > 0 else (LOGPS, 2 * LOGPS - REF)
  row = torch.tensor(logps[:, 0], requires_grad=True)
  args = SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
  models = [{1: a, 2: torch.tensor(x[:, 1])} for a, x in ((row, logps), (torch.tensor(ref[:, 0]), ref))]
  keys = dict(beta=0.3, desirable_weight=0.7, undesirable_weight=1.3)
  self = trainer(
    torch,
    KTOTrainer,
    **keys,
    **dict(
      calculate_KL=True, precompute_ref_logps=False, loss_type='kto', args=args, ref_model=stand_in(torch, models[1])
    ),
  )
  ids, attention, mask = inputs(torch, 1, MASK[:, 0])
  kl_ids, kl_attention, kl_mask = inputs(torch, 2, MASK[:, 1])
  batch = {'input_ids': ids, 'attention_mask': attention, 'completion_mask': mask}
  batch |= {'KL_input_ids': kl_ids, 'KL_attention_mask': kl_attention, 'KL_completion_mask': kl_mask}
  batch['label'] = torch.tensor(SCORE[:, 0] > 0)
  expected = self._compute_loss(stand_in(torch, models[0]), batch, False)
  expected.backward()
  loss = TABLE['kto'](beta=0.3, desirable=0.7, undesirable=1.3)
  value, metrics, grad = ours(loss, source=[[0, -2]], row=[[1, 0]], ref=ref)
  np.testing.assert_allclose(value, expected.item(), rtol=2e-6)
  np.testing.assert_allclose(grad[:, 0], row.grad.numpy(), rtol=1e-4, atol=1e-7)
  logged = {key: x[0] for key, x in self._metrics['train'].items()}
  for key in ('kl', 'rewards/chosen', 'rewards/rejected', 'rewards/margins', 'logps/chosen', 'logps/rejected'):
    np.testing.assert_allclose(metrics[key], logged[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  'name, keys, loss_type, fields',
  [
    ('simpo', {'gamma': 0.9}, 'simpo', {'beta': 2.5, 'simpo_gamma': 0.9}),
    # Without a margin: with one, TRL's wrong labels have it on the other side.
    ('simpo', {'gamma': 0.0, 'label_smoothing': 0.1}, 'simpo', {'beta': 2.5, 'simpo_gamma': 0, 'label_smoothing': 0.1}),
    ('cpo', {'nll': 0.0}, 'sigmoid', {'beta': 0.1}),
    ('cpo', {'nll': 0.0, 'label_smoothing': 0.1}, 'sigmoid', {'beta': 0.1, 'label_smoothing': 0.1}),
  ],
)
def test_cpo_trainer(torch, name, keys, loss_type, fields):
  from trl.experimental.cpo import CPOTrainer

  self = trainer(torch, CPOTrainer, **{'label_smoothing': 0.0, 'alpha': 0.0, 'loss_type': loss_type} | fields)
  count = MASK.sum(-1) if name == 'simpo' else np.ones_like(LENGTH)
  sides = torch.tensor(LOGPS.sum(-1) / count, dtype=torch.float32, requires_grad=True)
  losses, *rewards = self.cpo_loss(*sides.T)
  losses.mean().backward()
  value, metrics, grad = ours(TABLE[name](**keys))
  np.testing.assert_allclose(value, losses.mean().item(), rtol=2e-6)
  np.testing.assert_allclose(grad, (sides.grad.numpy() / count)[..., None] * MASK, rtol=1e-4, atol=1e-7)
  for key, x in zip(('chosen', 'rejected'), rewards):
    np.testing.assert_allclose(metrics[f'rewards/{key}'], x.mean().item(), rtol=1e-5)


def test_orpo_trainer(torch):
  from trl.experimental.orpo import ORPOTrainer

  sides = torch.tensor(LOGPS.sum(-1) / MASK.sum(-1), dtype=torch.float32, requires_grad=True)
  losses, *rewards, _, _ = trainer(torch, ORPOTrainer, beta=0.4).odds_ratio_loss(*sides.T)
  (-losses.mean()).backward()
  value, metrics, grad = ours(TABLE['orpo'](beta=0.4, nll=0.0))
  np.testing.assert_allclose(value, -losses.mean().item(), rtol=1e-5)
  np.testing.assert_allclose(grad, (sides.grad.numpy() / MASK.sum(-1))[..., None] * MASK, rtol=1e-4, atol=1e-7)
  for key, x in zip(('chosen', 'rejected'), rewards):
    np.testing.assert_allclose(metrics[f'rewards/{key}'], x.mean().item(), rtol=1e-5)


def flat(x):
  return x.reshape(2 * N, *x.shape[2:])


def trl_rows(torch):
  ids = torch.ones((2 * N, 1), dtype=torch.int64)
  mask = torch.tensor(flat(MASK).astype(np.int64))
  return dict(prompt_ids=ids, prompt_mask=ids, completion_ids=torch.ones_like(mask), completion_mask=mask)


@pytest.mark.parametrize(
  'keys, loss_type, beta, clip_high',
  [
    ({'per': 'token'}, 'dapo', 0.0, 0.2),
    ({'per': 'sequence', 'beta': 0.1}, 'grpo', 0.1, 0.2),
    ({'per': 'constant', 'length': 9, 'scale': 'none'}, 'dr_grpo', 0.0, 0.2),
    ({'per': 'token', 'scale': 'batch', 'clip_high': 0.05}, 'bnpo', 0.0, 0.05),
  ],
)
def test_grpo_trainer(torch, keys, loss_type, beta, clip_high):
  from trl import GRPOTrainer
  from trl.trainer.utils import nanstd

  logps = torch.tensor(flat(LOGPS), requires_grad=True)
  reward = torch.tensor(SCORE)
  advantage = reward - reward.mean(1, keepdim=True)
  scale = keys.get('scale', 'group')
  if scale != 'none':
    advantage /= (nanstd(reward, dim=1)[:, None] if scale == 'group' else nanstd(reward)) + 1e-4
  args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
  self = trainer(
    torch,
    GRPOTrainer,
    **dict(top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level='token', use_vllm=False),
    **dict(
      args=args, epsilon_low=0.2, epsilon_high=clip_high, beta=beta, loss_type=loss_type, _entropy_bonus_enabled=False
    ),
    **dict(current_gradient_accumulation_steps=1, max_completion_length=9),
    _get_per_token_logps_and_entropies=lambda *args, **keys: (logps, torch.zeros_like(logps), None),
  )
  batch = trl_rows(torch) | {'advantages': advantage.reshape(-1), 'old_per_token_logps': torch.tensor(flat(OLD))}
  batch |= {'ref_per_token_logps': torch.tensor(flat(REF)), 'num_items_in_batch': torch.tensor(MASK.sum())}
  expected = self._compute_loss(None, batch)
  expected.backward()
  value, metrics, grad = ours(TABLE['grpo'](**keys))
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(flat(grad), logps.grad.numpy(), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics['clip_ratio'], self._metrics['train']['clip_ratio/region_mean'][0], rtol=1e-6)
  assert metrics['clip_ratio'] > 0
  if beta:
    np.testing.assert_allclose(metrics['kl'], self._metrics['train']['kl'][0], rtol=1e-5)


def test_rloo_trainer(torch):
  from trl import RLOOTrainer

  logps = torch.tensor(flat(LOGPS), requires_grad=True)
  reward = SCORE - 0.3 * (OLD - REF).sum(-1)  # of two, the other one is the baseline
  advantage = torch.tensor(np.stack([reward[:, 0] - reward[:, 1], reward[:, 1] - reward[:, 0]], 1))
  self = trainer(
    torch,
    RLOOTrainer,
    **dict(epsilon_low=0.2, epsilon_high=0.2),
    _get_per_token_logps_and_entropies=lambda *args, **keys: (logps, torch.zeros_like(logps), None),
  )
  batch = trl_rows(torch) | {'advantages': advantage.reshape(-1), 'old_logps': torch.tensor(flat(OLD).sum(-1))}
  expected = self._compute_loss(None, batch)
  expected.backward()
  value, metrics, grad = ours(TABLE['rloo'](beta=0.3, clip=0.2))
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  np.testing.assert_allclose(flat(grad), logps.grad.numpy(), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics['clip_ratio'], self._metrics['train']['clip_ratio/region_mean'][0], rtol=1e-6)
