"""An inner run against torch: transformers and peft, its AdamW and its clipping, row after row without padding."""

import jax
import numpy as np
import pytest

from past_jax import lora, models
from past_jax.inner import Asked, Job, Recipe, Row, order_of, runner
from past_jax.models import peft as export
from past_jax.models.transformer import INPUT_AXES

torch = pytest.importorskip('torch', reason="the extra `torch`: pip install 'past-jax[torch]'")
peft = pytest.importorskip('peft', reason="the extra `torch`: pip install 'past-jax[torch]'")
import families  # noqa: E402

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing` is deprecated:FutureWarning'),
]
RANK, ALPHA, EPOCHS, BATCH, LR, CLIP = 4, 6.0, 4, 2, 5e-3, 0.7


def mean_nll(model, rows):
  total, count = torch.zeros(()), 0
  for ids in rows:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    total = total - torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum()
    count += len(ids) - 1
  return total / count


@torch.no_grad()
def greedy(model, ids, n):
  ids = list(ids)
  for _ in range(n):
    ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
  return ids[-n:]


@torch.no_grad()
def logp_of(model, prompt, answer):
  logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
  picked = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor([*prompt, *answer][1:])[:, None])[:, 0]
  return float(picked[-len(answer) :].sum())


@pytest.mark.parametrize('rank', [RANK, 0])
@pytest.mark.parametrize('name', ['llama', 'qwen3'])
def test_torch_trains_the_same(tmp_path, mesh, name, rank):
  families.make(name, tmp_path / 'base')
  model = models.load(str(tmp_path / 'base'))
  params = model.read(mesh)
  rng, seed, T = np.random.default_rng(0), 3, 5
  draw = lambda n: tuple(int(i) for i in rng.integers(1, 250, n))
  rows = [draw(n) for n in (9, 14, 12)]
  asked = [Asked(draw(6), draw(3)), Asked(draw(4), draw(4))]
  shape = dict(rows=4, length=16, questions=2, prompt_length=8, answer_length=T, chunk=2)
  recipe = Recipe(rank=rank, alpha=ALPHA, lr=LR if rank else LR / 5, epochs=EPOCHS, batch=BATCH, clip=CLIP, **shape)
  make = dict(policy=model.policy, tokenizer=model.tokenizer, mesh=mesh, input_axes=INPUT_AXES)
  found = runner(**make, recipe=recipe).run(params, [Job([Row(r) for r in rows], asked, seed), Job()])[0]

  if rank:
    adapters = lora.init(jax.random.key(seed), params, targets=(), rank=RANK, input_axes=INPUT_AXES)
    keys = dict(base='base', rank=RANK, alpha=ALPHA, dtype=np.float32)
    export.write(tmp_path / 'a', adapters, model.config, **keys)
    theirs = peft.PeftModel.from_pretrained(families.oracle(tmp_path / 'base'), str(tmp_path / 'a'), is_trainable=True)
  else:
    theirs = families.oracle(tmp_path / 'base')
    theirs.requires_grad_(True)
  trained = [p for p in theirs.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
  losses = []
  for step in order_of(len(rows), BATCH, EPOCHS, seed):
    optimizer.zero_grad()
    loss = mean_nll(theirs, [list(rows[i]) for i in step if i >= 0])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    losses.append(float(loss.detach()))
  np.testing.assert_allclose(found.losses, losses, rtol=2e-4)
  np.testing.assert_allclose(found.logps, [logp_of(theirs, *q) for q in asked], rtol=2e-3)
  ends = {*model.tokenizer.stop_ids, *model.tokenizer.encode('\n')}
  for q, answer in zip(asked, found.answers):
    said = greedy(theirs, q.prompt, T)
    assert answer == said[: next((i for i, id_ in enumerate(said) if id_ in ends), T)]
  assert losses[-1] < 0.8 * losses[0]
