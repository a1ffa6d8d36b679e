"""Offline DPO against TRL's DPOTrainer: the same checkpoint, rows, order and optimizer give the same twenty steps.

What had to be set for that, and what TRL does otherwise by default:

- order: TRL shuffles; here a `SequentialSampler`, and `data.shuffle=false`.
- learning rate: constant. A schedule of transformers over `total` updates reaches its end one update after the last.
- weight decay 0: transformers decays no biases and norms, optax everything.
- clipping: torch scales by max / (norm + 1e-6), optax by max / norm: a millionth apart at a norm of 1.
- bfloat16 and gradient checkpointing are on by default in TRL; here float32.
- truncation: TRL cuts prompt + completion to `max_length` on the right, which may leave no completion; past_jax cuts
  prompts on the left and completions on the right. Nothing is cut here.
- end: TRL appends the end token's text to strings and nothing to chats. past_jax gives every completion one end token:
  the template's, if it is one of those that the checkpoint says end a completion.
- boundary: TRL tokenizes prompt + completion as one text; past_jax joins ids. The same for this tokenizer, of bytes.
"""

import json

import numpy as np
import pytest

from past_jax.main import main
from past_jax.metrics import rows
from past_jax.text import byte_tokenizer

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore:.*gradient_checkpointing.* is deprecated:FutureWarning'),  # TRL's use of them
]
ROWS, BATCH, BETA = 40, 2, 0.1
OPTIMIZER = dict(lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, clip=1.0)
WORDS = 'a lamp of green glass hangs over the old bridge and nobody knows who lit it'.split()  # noqa: SIM905


def message(role: str, content: str) -> dict:
  return {'role': role, 'content': content}


def table(form: str) -> list[dict]:
  """Rows of unequal lengths."""
  rng = np.random.default_rng(0)
  say = lambda most: ' '.join(rng.choice(WORDS, rng.integers(1, most)))
  strings = [{'prompt': say(8), 'chosen': ' ' + say(9), 'rejected': ' ' + say(9)} for _ in range(ROWS)]
  if form == 'strings':
    return strings
  chat = lambda row, side: [message('user', row['prompt']), message('assistant', row[side])]
  return [{side: chat(row, side) for side in ('chosen', 'rejected')} for row in strings]


def trl_steps(directory, data, output) -> list[dict]:
  import datasets
  import torch
  import transformers
  import trl

  class InOrder(trl.DPOTrainer):
    def _get_train_sampler(self, dataset=None):
      return torch.utils.data.SequentialSampler(self.train_dataset)

  args = trl.DPOConfig(
    output_dir=str(output),
    per_device_train_batch_size=BATCH,
    num_train_epochs=1,
    beta=BETA,
    learning_rate=OPTIMIZER['lr'],
    adam_beta1=OPTIMIZER['b1'],
    adam_beta2=OPTIMIZER['b2'],
    adam_epsilon=OPTIMIZER['eps'],
    max_grad_norm=OPTIMIZER['clip'],
    weight_decay=0.0,
    lr_scheduler_type='constant',
    max_length=None,
    logging_steps=1,
    logging_nan_inf_filter=False,
    save_strategy='no',
    report_to='none',
    disable_tqdm=True,
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation='eager')
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  trainer = InOrder(model=model, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer)
  trainer.train()
  return [row for row in trainer.state.log_history if 'loss' in row]


@pytest.mark.parametrize('form', ['strings', 'chats'])
def test_twenty_steps_follow_trl(form, tmp_path):
  import families

  data = table(form)
  directory = families.make('llama', tmp_path / 'model', adds_bos=True)
  # Chat models say in this file that the end of a turn ends a completion.
  ends = list(byte_tokenizer().stop_ids)
  (directory / 'generation_config.json').write_text(json.dumps({'eos_token_id': ends}))
  (tmp_path / 'prefs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in data))
  flags = {
    'model.spec': directory,
    'mesh.data': 1,
    'data.source': tmp_path / 'prefs.jsonl',
    'data.shuffle': 'false',
    'data.prompt': 'prompt' if form == 'strings' else '',
    'view.prompt_length': 96,
    'view.text_length': 80,
    'dpo.batch': BATCH,
    'dpo.losses.group.dpo.beta': BETA,
    'optimizer.warmup': 0.0,
    'optimizer.end': 1.0,  # of the learning rate: it is constant
    **{f'optimizer.{key}': value for key, value in OPTIMIZER.items()},
    'eval.heldout': '',
  }
  command = ['study', '--config=configs/dpo.py', f'--workdir={tmp_path / "run"}']
  assert main(command + [f'--config.{key}={value}' for key, value in flags.items()]) == 0
  ours, theirs = rows(tmp_path / 'run' / 'metrics.jsonl'), trl_steps(directory, data, tmp_path / 'trl')
  assert len(ours) == len(theirs) == 20
  assert 'study/trimmed_prompts' in ours[0] and not any(ours[0][f'study/trimmed_{x}'] for x in ('prompts', 'anchors'))
  bounds = {  # metric: absolute error, relative error
    'loss': (1e-4, 0),
    'grad_norm': (0, 1e-3),
    'rewards/margins': (1e-3, 0),
    'logps/chosen': (1e-2, 0),
    'learning_rate': (0, 1e-6),
  }
  for name, (absolute, relative) in bounds.items():
    a, b = (np.array([row[name] for row in steps]) for steps in (theirs, ours))
    print(f'{name}: within {np.abs(a - b).max():.1e}, of at most {np.abs(a).max():.3g}')
    np.testing.assert_allclose(b, a, rtol=relative, atol=absolute, err_msg=name)
  # Not of the first step: its margins are 0 up to rounding, since another program scored the reference.
  assert [row['rewards/accuracies'] for row in ours[1:]] == [row['rewards/accuracies'] for row in theirs[1:]]
  assert np.abs([row['loss'] - np.log(2) for row in ours]).max() > 0.05  # it went somewhere
