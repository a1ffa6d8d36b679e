"""Programs that a model wrote, checked by what they print."""

import re
from collections.abc import Sequence

from past_jax import answers
from past_jax.tools.sandbox import Limits, run

FENCED = re.compile(r'```(?:python|py)?[ \t]*\n(.*?)```', re.DOTALL)


def program(completion: str) -> str:
  """The last fenced block of a completion, or all of it where there is none."""
  return (FENCED.findall(completion) or [completion])[-1]


def code(completions: Sequence[str], targets: Sequence[str], rule: str, limits: Limits) -> list[bool]:
  """Whether each completion's program ends well and what it prints, or the answer in that, is its target.

  What is expected never enters the sandbox, so no program can find it there.

  Args:
    rule: of `answers.RULES`, for the output; '': the output itself is compared, up to white space at the ends of lines.

  Raises:
    UserError: this system has no sandbox.
  """

  def printed(completion: str, target: str) -> bool:
    outcome = run(program(completion), limits=limits)
    if outcome.code:
      return False
    if rule:
      return answers.same(answers.extract(outcome.output, rule), target)
    lines = lambda text: [line.rstrip() for line in text.rstrip().splitlines()]
    return lines(outcome.output) == lines(target)

  return [bool(c.strip()) and printed(c, t) for c, t in zip(completions, targets, strict=True)]
