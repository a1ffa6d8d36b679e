"""A bucket of Google Cloud Storage on this machine: an emulator that gcsfs and TensorStore talk to over HTTP."""

import contextlib
import http.server
import json
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

NAME = 'bucket'
_lock = threading.Lock()


def download(request, response, storage, *_, whole=objects.download):
  """With the object's generation in the header, as of the real service; TensorStore insists on it."""
  whole(request, response, storage)
  if response.status < 400:
    found = storage.get_file_obj(request.params['bucket_name'], request.params['object_id'])
    response['x-goog-generation'] = found['generation']


def handle(router, method, *, whole=server.Router.handle):
  with _lock:
    whole(router, method)


class Server(http.server.ThreadingHTTPServer):
  """Connections that clients open ahead of need do not keep others waiting; what is done is done in turn."""

  request_queue_size = 128

  def handle_error(self, *_):
    pass  # a client that hung up


@contextlib.contextmanager
def serving() -> Iterator[str]:
  """The address of a service with an empty bucket; while it lasts the environment points there, for processes, too."""
  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  address = f'http://localhost:{port}'
  changed = {
    'STORAGE_EMULATOR_HOST': address,
    'TENSORSTORE_GCS_HTTP_URL': address,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    'NO_GCE_CHECK': 'true',
    'EPATH_USE_TF': 'false',
  }
  before = dict(os.environ)
  objects.download, server.Router.handle, server.server.HTTPServer = download, handle, Server
  os.environ |= changed
  try:
    with server.create_server('localhost', port, in_memory=True, default_bucket=NAME):
      yield address
  finally:
    for name in changed:
      os.environ.pop(name)
      os.environ.update({name: before[name]} if name in before else {})


# Read and written past gcsfs, TensorStore and everything of ours.


def _url(address: str, name: str) -> str:
  return f'{address}/storage/v1/b/{NAME}/o/{urllib.parse.quote(name, safe="")}'


def get(address: str, name: str) -> bytes:
  with urllib.request.urlopen(_url(address, name) + '?alt=media') as answer:
    return answer.read()


def put(address: str, name: str, content: bytes) -> None:
  query = urllib.parse.urlencode({'uploadType': 'media', 'name': name})
  request = urllib.request.Request(f'{address}/upload/storage/v1/b/{NAME}/o?{query}', content, method='POST')
  urllib.request.urlopen(request).close()


def delete(address: str, name: str) -> None:
  urllib.request.urlopen(urllib.request.Request(_url(address, name), method='DELETE')).close()


def listed(address: str, prefix: str) -> dict[str, str]:
  """{name: generation, which is new with every write}."""
  with urllib.request.urlopen(f'{address}/storage/v1/b/{NAME}/o?prefix={urllib.parse.quote(prefix)}') as answer:
    found = json.load(answer)
  return {item['name']: item['generation'] for item in found['items']} if 'items' in found else {}
