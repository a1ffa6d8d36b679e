"""Tools by name: they check answers by computing. tool(completions, targets, rule, limits) -> list of bool."""

from past_jax.tools.algebra import algebra
from past_jax.tools.code import code

TABLE = {'algebra': algebra, 'code': code}
