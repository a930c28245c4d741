"""From gin files and overrides to one call of one job function.

A job is a plain function `p4lm.jobs.JOB:JOB`; gin binds its parameters
through macros (DATA_DIR, OUTPUT_DIR, STEPS...) that have the same name in every
run file. Names are checked before any work starts: an override that nothing
reads is an error that offers the nearest valid names, and so is a macro
without a value.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
from p4lm import gin_files, output_directory, value_types
from p4lm.errors import UserError

_MACRO_USE = re.compile(r'%([A-Za-z_]\w*)')
_MACRO_DEFINITION = re.compile(r'^([A-Za-z_]\w*)[ \t]*=(.*)$', re.M)
_INCLUDE = re.compile(r'^include[ \t]+[\'"]([^\'"]+)[\'"]', re.M)


def run(
  job: str,
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str] = (),
) -> None:
  """Resolves the configuration of `job`, claims its OUTPUT_DIR, runs it.

  Args:
    job: name of a module and function in `p4lm.jobs`.
    files: gin files in reading order; none means `runs/JOB.gin`.
    bindings: overrides 'NAME=VALUE' from the command line.
    search_paths: directories searched before the shipped gin files.
  Raises:
    UserError: a file, name or value is wrong, or the job found bad input.
  """
  function = resolve(job, files, bindings, search_paths)
  output_dir = _macro_value('OUTPUT_DIR')
  text = gin.config_str(max_line_length=76)
  if output_dir is not None:
    output_directory.check(output_dir, job, text)
  # Gin's own wrapper would add its frames and words to every error message.
  arguments = gin.get_bindings(function)
  if 'planned' in inspect.signature(function).parameters:
    arguments['planned'] = _bindings_of_other_jobs(job)
  with output_directory.configured(job, text):
    function(**arguments)
  if output_dir is not None:
    output_directory.record(output_dir, job, text)


def resolve(job, files, bindings, search_paths=()):
  """Parses everything and checks every name; returns the job's function."""
  gin.clear_config()
  gin.enter_interactive_mode()
  roots = _search(search_paths)
  function = _job_function(job)
  texts = _read(_run_files(function, job, files), roots)
  quoted = [_quote(binding) for binding in bindings]
  texts += _model_text(texts, quoted, roots)
  _check_macros(job, texts, quoted)
  for name, text in texts:
    try:
      gin.parse_config(_without_includes(text), skip_unknown=False)
    except (
      ValueError,
      SyntaxError,
      ImportError,
      AttributeError,
      NameError,
      RuntimeError,
      TypeError,
    ) as error:
      raise UserError(f'{name}: {_first_line(error)}') from error
  for binding in quoted:
    _parse_binding(binding, function)
  _check_types(job, output_directory.bindings_of(gin.config_str()))
  return function


def describe(job, files, search_paths=()) -> str:
  """Help of one job: what it does, its gin files, its macros with defaults."""
  roots = _search(search_paths)
  function = _job_function(job)
  texts = _read(_run_files(function, job, files), roots)
  defaults = _definitions(texts)
  macros = sorted(set(_uses(texts)) | set(defaults))
  lines = [f'p4lm {job}: {inspect.getdoc(function).splitlines()[0]}', '']
  lines.append('Configuration: ' + ', '.join(name for name, _ in texts))
  lines.append('Macros (override with --gin.NAME=VALUE):')
  for name in macros:
    value = defaults.get(name, '(required)')
    lines.append(f'  {name:<22}{value}')
  lines.append('Parameters (override with --gin.' + job + '.NAME=VALUE):')
  for name, parameter in inspect.signature(function).parameters.items():
    empty = parameter.default is inspect.Parameter.empty
    shown = 'bound by gin' if empty else repr(parameter.default)
    lines.append(f'  {name:<22}{shown}')
  return '\n'.join(lines)


def _run_files(function, job: str, files: Sequence[str]) -> list[str]:
  """The files to read: the job's own where none are given.

  A job with a parameter `planned` is about other jobs, whose run files are
  given; its own is read before them.
  """
  own = f'runs/{job}.gin'
  if 'planned' in inspect.signature(function).parameters:
    return [own, *files]
  return list(files) or [own]


def _bindings_of_other_jobs(job: str) -> dict[str, dict]:
  """{job: its arguments} of every other job that the gin files bind."""
  found = {}
  for name in _jobs():
    try:
      bound = gin.get_bindings(f'{name}.{name}')
    except ValueError:
      continue  # No gin file speaks of it.
    if name != job and bound:
      found[name] = bound
  return found


def _jobs() -> list[str]:
  return sorted(
    path.stem for path in Path(__file__).with_name('jobs').glob('[!_]*.py')
  )


def _job_function(job: str):
  return getattr(importlib.import_module(f'p4lm.jobs.{job}'), job)


def _search(search_paths: Sequence[str]) -> list[Path]:
  return [Path(p) for p in search_paths] + [Path('.'), *gin_files.gin_roots()]


def _read(files: Sequence[str], roots: Sequence[Path], seen=None):
  """(name, text) of each file after those that it includes, each once."""
  seen = set() if seen is None else seen
  texts = []
  for name in files:
    path = _find(name, roots)
    if path in seen:
      continue
    seen.add(path)
    try:
      text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'gin file {path}: {error}') from error
    texts += _read(_INCLUDE.findall(text), roots, seen)
    texts.append((str(name), text))
  return texts


def _find(name: str, roots: Sequence[Path]) -> Path:
  for root in roots:
    path = Path(name) if Path(name).is_absolute() else root / name
    if path.is_file():
      return path.resolve()
  shipped = [
    str(path.relative_to(root))
    for root in roots
    if root != Path('.')
    for path in sorted(root.rglob('*.gin'))
  ]
  near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5)
  hint = f'; did you mean {" or ".join(near)}?' if near else ''
  looked = ', '.join(str(root) for root in roots)
  raise UserError(f'no gin file {name!r}{hint} (looked in: {looked})')


def _without_includes(text: str) -> str:
  # The includes were read already, in order, from our own search paths.
  return re.sub(r'^include[^\n]*', '', text, flags=re.M)


def _without_comments(text: str) -> str:
  return re.sub(r'#[^\n]*', '', text)


def _uses(texts) -> list[str]:
  return [m for _, t in texts for m in _MACRO_USE.findall(_without_comments(t))]


def _definitions(texts) -> dict[str, str]:
  found = {}
  for _, text in texts:
    for name, value in _MACRO_DEFINITION.findall(_without_comments(text)):
      found[name] = value.strip()
  return found


def _model_text(texts, bindings, roots):
  """The file of sizes that MODEL names, when %MODEL_CONFIG is read.

  MODEL is a name in `models/` (t5_tiny) or a path of a gin file.
  """
  defined = _definitions(texts)
  if 'MODEL_CONFIG' in defined or 'MODEL_CONFIG' not in _uses(texts):
    return []
  chosen = defined.get('MODEL')
  for binding in bindings:
    name, _, value = binding.partition('=')
    chosen = value.strip() if name.strip() == 'MODEL' else chosen
  if chosen is None:
    return []
  name = str(ast.literal_eval(chosen))
  file = name if name.endswith('.gin') else f'models/{name}.gin'
  return _read([file], roots)


def _quote(binding: str) -> str:
  """Makes 'NAME=VALUE' readable for gin: no literal -> a string."""
  name, _, value = binding.partition('=')
  name, value = name.strip(), value.strip()
  if value.startswith(('@', '%')):
    return f'{name} = {value}'
  if value[:1] in '[({' and ('%' in value or '@' in value):
    return f'{name} = {value}'
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError):
    value = repr(value)
  return f'{name} = {value}'


def _check_macros(job, texts, bindings) -> None:
  defined, used = _definitions(texts), set(_uses(texts))
  for binding in bindings:
    name = binding.partition('=')[0].strip()
    if '.' in name:
      continue
    if name not in defined and name not in used:
      valid = sorted(set(defined) | used)
      near = difflib.get_close_matches(name, valid, n=3) or valid
      raise UserError(
        f'--gin.{name}: {job} reads no such name; '
        f'did you mean {", ".join(near)}?'
      )
    defined[name] = binding.partition('=')[2]
  missing = sorted(used - set(defined))
  if missing:
    flags = ' '.join(f'--gin.{name}=...' for name in missing)
    raise UserError(f'{job} needs a value for: {flags}')


def _parse_binding(binding: str, function) -> None:
  try:
    gin.parse_config(binding)
  except (ValueError, SyntaxError, AttributeError, TypeError) as error:
    name = binding.partition('=')[0].strip()
    valid = [
      f'{function.__name__}.{p}' for p in inspect.signature(function).parameters
    ]
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f'; did you mean {", ".join(near)}?' if near else ''
    raise UserError(f'--gin.{name}: {_first_line(error)}{hint}') from error


def _check_types(job: str, bindings: Mapping[str, str]) -> None:
  """Raises UserError for a literal that its parameter cannot take.

  What other jobs are bound to, such as no data, is for a plan of them.
  """
  others = {f'{name}.{name}' for name in _jobs()} - {f'{job}.{job}'}
  for name, value in bindings.items():
    function, _, parameter = name.rpartition('.')
    # A macro is looked at where it is used.
    if not function or function in others:
      continue
    shown = name
    if value.startswith('%'):
      shown = value.removeprefix('%')
      value = bindings.get(shown, value)
    try:
      given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      continue  # A reference to another configurable, or one that holds some.
    wanted = _annotation(function.rpartition('/')[2], parameter)
    if not value_types.fits(given, wanted):
      raise UserError(
        f'--gin.{shown}={value}: {name} must be {value_types.describe(wanted)}'
      )


def _annotation(function: str, parameter: str):
  """What a parameter of a configurable takes, or Any where it does not say."""
  try:
    hints = typing.get_type_hints(
      inspect.unwrap(gin.get_configurable(function))
    )
  except (ValueError, NameError, TypeError):
    return typing.Any
  return hints.get(parameter, typing.Any)


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0] if str(error) else repr(error)


def _macro_value(name: str):
  try:
    return gin.query_parameter(f'{name}/macro.value')
  except ValueError:
    return None
