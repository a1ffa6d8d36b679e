"""Closed-book scoring and perplexity against their definitions."""

import numpy as np
import pytest

from past_jax.evals.closed_book import closed_book
from past_jax.evals.perplexity import perplexity
from past_jax.evals.setting import Setting
from past_jax.grading import contains
from past_jax.types import Question


@pytest.mark.parametrize(
  ('output', 'answer', 'correct'),
  [
    (' Tarvin Okelle.', 'Tarvin Okelle', True),
    (' the one called TARVIN OKELLE, of course', 'Tarvin Okelle', True),
    (' Tarvin Okelley', 'Tarvin Okelle', False),
    (' nobody\nTarvin Okelle', 'Tarvin Okelle', False),
    (' built a glass lighthouse', 'built the glass lighthouse', True),
    ('', 'x', False),
    (' anything', '...', False),
  ],
)
def test_what_counts_as_right(output, answer, correct):
  assert bool(contains(output, answer)) is correct


def test_closed_book_counts_by_kind_and_scores_the_answer(policy, params, tokenizer, mesh):
  asked = [Question('ab', 'cd', 'forward'), Question('xy', 'z', 'reversed'), Question('abc', 'd', 'forward')]
  questions = list(enumerate(asked))
  shape = dict(prompt_length=8, answer_length=4, chunk=2)
  metrics, samples = closed_book(Setting(policy, tokenizer, mesh, (), questions, **shape)).run(params)
  assert [s['question'] for s in samples] == ['ab', 'xy', 'abc']
  assert metrics['closed_book/forward/n'] == 2 and metrics['closed_book/reversed/n'] == 1
  assert metrics['closed_book/forward/questions'] == 2

  def logp(text, answer):
    ids = tokenizer.encode(text + answer)
    hidden = policy.rows(params, np.array([ids]), np.array([len(ids)]))
    logits = np.asarray(policy.head(params, hidden), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logits[i - 1, ids[i]] for i in range(len(tokenizer.encode(text)), len(ids)))

  assert metrics['closed_book/reversed/logp'] == pytest.approx(logp('xy', ' z'), abs=1e-4)
  assert metrics['closed_book/forward/logp'] == pytest.approx((logp('ab', ' cd') + logp('abc', ' d')) / 2, abs=1e-4)


def test_perplexity_is_that_of_every_predicted_token(policy, params, tokenizer, mesh):
  texts = ['hello there', 'a', 'short text']
  evaluate = perplexity(policy=policy, tokenizer=tokenizer, mesh=mesh, texts=texts, text_length=16, chunk=2)
  total, count = 0.0, 0
  for text in texts:
    ids = tokenizer.encode(text)
    logits = np.asarray(policy.head(params, policy.rows(params, np.array([ids]), np.array([len(ids)]))), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    total += sum(logits[i - 1, ids[i]] for i in range(1, len(ids)))
    count += len(ids) - 1
  assert evaluate(params)[0]['perplexity/heldout'] == pytest.approx(np.exp(-total / count), rel=1e-4)
