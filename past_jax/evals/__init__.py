"""Evaluations: evaluate(params, tick) -> (metrics, samples for people)."""
