"""Embedded data: worlds that no model can know, made by a seed. Each is a function of its keys in config.data.world.

Every world has two splits that share no entity and no wording of a question: what is tried out on 'tune' is reported
of 'final'.
"""

from past_jax.data.worlds import (
  arc,
  arithmetic,
  biographies,
  chains,
  edits,
  guidance,
  instructions,
  notes,
  passages,
  people,
  puzzles,
  reasoning,
  relations,
  reversal,
  writers,
)

TABLE = {
  'arc': arc.arc,
  'arithmetic': arithmetic.arithmetic,
  'biographies': biographies.biographies,
  'chains': chains.chains,
  'edits': edits.edits,
  'guidance': guidance.guidance,
  'instructions': instructions.instructions,
  'notes': notes.notes,
  'passages': passages.passages,
  'people': people.people,
  'preferences': instructions.preferences,
  'puzzles': puzzles.puzzles,
  'reasoning': reasoning.reasoning,
  'relations': relations.relations,
  'reversal': reversal.reversal,
  'solved': puzzles.solved,
  'writers': writers.writers,
}
