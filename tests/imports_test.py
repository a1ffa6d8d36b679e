"""Imports point one way; the test reads them from the source."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / 'past_jax'
LEAVES = {'types', 'answers', 'functions', 'grading', 'text', 'mesh', 'lora', 'logps', 'scores', 'sampler', 'buckets'}
# module -> what of this package it may import; a name covers what is below it
MAY = {
  'types': set(),
  'hlo': set(),
  'chips': {'types'},
  'answers': {'types'},
  'functions': {'types'},
  'grading': set(),
  'inner': LEAVES | {'update'},
  'model_grader': {'types', 'logps', 'text'},
  'self_edits': LEAVES | {'inner', 'model_grader', 'render', 'data', 'training_choice', 'test_time_training'},
  'text': {'types'},
  'mesh': {'types'},
  'lora': {'types'},
  'logps': {'types', 'mesh'},
  'scores': {'types', 'logps'},
  'buckets': {'types', 'hlo'},
  'buffer': {'types'},
  'coverage': LEAVES,
  'sampler': {'types', 'mesh'},
  'heap': set(),
  'compile_cache': set(),
  'storage': {'types'},
  'stop': set(),
  'hosts': {'types', 'stop'},
  'profile': {'types', 'chips'},
  'progress': set(),
  'metrics': {'types'},
  'diversity': set(),
  'checkpoint': {'types', 'hosts', 'mesh', 'storage'},
  'report': {'types', 'metrics', 'progress'},
  'ablate': {'types', 'metrics', 'ablate'},
  'transforms': {'types', 'text'},
  'render': {'types', 'text', 'transforms'},
  'models': LEAVES | {'models'},
  'training_choice': {'types'},
  'data': {'types', 'data', 'training_choice'},
  'augmentations': {'types', 'data'},
  'test_time_training': {'types', 'data', 'augmentations', 'training_choice'},
  'evals': LEAVES | {'render', 'data', 'evals', 'writer', 'inner', 'self_edits'},
  'generators': LEAVES,
  'tools': {'types', 'answers', 'tools'},
  'judges': LEAVES | {'judges', 'answers', 'tools', 'render', 'self_edits'},
  'selects': LEAVES,
  'losses': LEAVES | {'losses'},
  'tabular': LEAVES | {'losses', 'tabular'},
  'curricula': {'types'},
  'update': LEAVES,
  'collect': LEAVES | {'hosts', 'selects'},
  'writer': LEAVES | {'generators', 'render'},
  'drafts': LEAVES | {'render', 'writer'},
  'pairs': {'types', 'data', 'render', 'writer'},
  'main': {'types', 'heap', 'compile_cache'},
}
ABOVE = {'__init__', 'settings', 'checks', 'build', 'train', 'aot', 'commands'}  # these may import all


def imports(path: Path) -> set[str]:
  out = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      out |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      out |= {f'{node.module}.{alias.name}' for alias in node.names}
  return out


def modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    yield path, path.relative_to(PACKAGE).with_suffix('').parts[0]


def test_imports_point_one_way():
  wrong = []
  for path, module in modules():
    if module in MAY:
      used = {name.split('.')[1] for name in imports(path) if name.startswith('past_jax.')}
      wrong += [f'{path.relative_to(PACKAGE)} imports {name}' for name in sorted(used - MAY[module])]
  assert not wrong


def test_every_module_is_listed():
  assert {module for _, module in modules()} - set(MAY) == ABOVE


def test_only_models_import_flax_and_nobody_imports_configs():
  for path, module in modules():
    tops = {name.split('.')[0] for name in imports(path)}
    assert 'configs' not in tops, path
    assert 'flax' not in tops or module == 'models', path


def test_nothing_but_the_command_sees_a_config_dict():
  """Components get plain arguments, so that a default hidden in a `.get` has no place to live."""
  seen = {str(path.relative_to(PACKAGE)) for path, _ in modules() if 'ml_collections' in path.read_text()}
  assert seen <= {'commands/study.py', 'build.py'}


def test_pallas_is_imported_where_a_program_needs_it():
  """It takes a second, which every command on a CPU would wait for."""
  for path, _ in modules():
    top = ast.Module(
      [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    )
    names = ' '.join(ast.unparse(node) for node in top.body)
    assert path.name == 'splash.py' or not ({'pallas', 'splash'} & set(re.findall(r'\w+', names))), path
