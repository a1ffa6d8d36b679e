"""The command line: one command, `past`, with subcommands. Short on purpose: everything else can be imported."""

import difflib
import importlib
import sys

from past_jax import compile_cache, heap

COMMANDS = {  # name -> (module with run(argv) -> exit code, one line of help)
  'study': ('past_jax.commands.study', 'run a config; the same command again resumes'),
  'sample': ('past_jax.commands.sample', 'completions for the prompts of a JSONL file'),
  'score': ('past_jax.commands.score', 'log-probs of given completions'),
  'export': ('past_jax.commands.export', 'a run as a Hugging Face directory (safetensors, config, tokenizer)'),
  'ablate': ('past_jax.commands.ablate', 'a sweep file to runs, intervals and verdicts on claims; resumes'),
  'report': ('past_jax.commands.report', 'write report.html of a run'),
  'compile': ('past_jax.commands.compile', 'what the programs of a config take and cost on a TPU slice, without one'),
}

USAGE = 'past: language models that study\n\n' + '\n'.join(f'  past {n:<8} {h}' for n, (_, h) in COMMANDS.items())
USAGE += '\n\n  past COMMAND --help lists its flags.'


def main(argv: list[str]) -> int:
  """Runs `past` with these arguments (without the program's name) and returns the exit code."""
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(USAGE)
    return 0
  name, *rest = argv
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f" Did you mean 'past {near[0]}'?" if near else ''
    print(f'past: there is no command {name!r}.{hint} Commands: {", ".join(COMMANDS)}.', file=sys.stderr)
    return 2
  try:
    from past_jax.types import UserError  # here, for it imports JAX: help and typos need not wait

    try:
      return importlib.import_module(COMMANDS[name][0]).run(rest)
    except UserError as error:
      print(f'past {name}: {error}', file=sys.stderr)
      return 2
  except KeyboardInterrupt:
    print(f'past {name}: interrupted', file=sys.stderr)
    return 130


def run() -> None:
  if heap.cpu_only():
    heap.keep()
  compile_cache.use()
  sys.exit(main(sys.argv[1:]))


if __name__ == '__main__':
  run()
