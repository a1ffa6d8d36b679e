"""Evaluations: run(params of roles, tick, before) -> (metrics, samples for people); the names of config.eval.tasks."""

from past_jax.evals import accuracy, choices, closed_book, harness, improvement, judge, pairs, self_edits, sequential

TABLE = {
  'accuracy': accuracy.accuracy,
  'closed_book': closed_book.closed_book,
  'forced_choice': choices.forced_choice,
  'improvement': improvement.improvement,
  'judge_accuracy': judge.judge_accuracy,
  'lm_eval': harness.lm_eval,
  'multiple_choice': choices.multiple_choice,
  'pair_accuracy': pairs.pair_accuracy,
  'continued': self_edits.continued,
  'sequential': sequential.sequential,
  'self_edits': self_edits.self_edits,
}
