"""Requests and answers of batch inference as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from p4lm.errors import UserError


def read_requests(path: Path) -> list[dict]:
  """Every line of a request file, checked before any long work.

  Raises:
    UserError: no such file, a line that is no JSON object, or a `custom_id`
      that is missing or repeated; the message names file and line.
  """
  requests, seen = [], {}
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except OSError as error:
    raise UserError(f'INPUT {path}: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise UserError(f'INPUT {path} is not UTF-8: {error}') from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      request = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f'{path}, line {number}: not JSON: {error}') from error
    if not isinstance(request, dict) or 'custom_id' not in request:
      raise UserError(
        f'{path}, line {number}: a request is a JSON object with a custom_id'
      )
    id_ = str(request['custom_id'])
    if id_ in seen:
      raise UserError(
        f'{path}, line {number}: custom_id {id_!r} was used in line {seen[id_]}'
      )
    seen[id_] = number
    requests.append(request)
  if not requests:
    raise UserError(f'INPUT {path} has no requests')
  return requests


class AnswerFile:
  """An append-only file of answers in the order of the requests.

  A process killed while it wrote leaves a cut line, which is removed at the
  next start.

  Raises:
    UserError: the file holds answers to other requests.
  """

  def __init__(self, path: Path, requests: list[dict]):
    self._path = path
    self.count = 0
    if not path.exists():
      return
    content = path.read_bytes()
    whole = content[: content.rfind(b'\n') + 1]
    if len(whole) < len(content):
      with path.open('r+b') as stream:
        stream.truncate(len(whole))
    for answer, request in zip(whole.splitlines(), requests):
      if json.loads(answer).get('custom_id') != request['custom_id']:
        raise UserError(
          f'{path} answers other requests than INPUT (line {self.count + 1}); '
          'choose another OUTPUT_DIR'
        )
      self.count += 1

  def append(self, answers: Iterable[Mapping[str, object]]) -> None:
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    with self._path.open('a', encoding='utf-8') as stream:
      stream.write(''.join(f'{line}\n' for line in lines))
    self.count += len(lines)
