"""Every shipped gin file resolves, and its configs can be made."""

import re

import pytest

import gin
from p4lm import configuration, gin_files
from p4lm.errors import UserError

ROOT = next(root for root in gin_files.gin_roots() if root.is_dir())
_VALUES = {
  'REWARDS': {'nli': 'x'},
  'RANKERS': {'WALS': 'x'},
  'SYSTEMS': {'SFT': 'x'},
  'MODE': 'generate',
  'STAGE': 'full',
  'TASKS': ('x',),
  'STEPS': 2,
  'BATCH_SIZE': 2,
}


def _files():
  return sorted(
    str(path.relative_to(ROOT))
    for folder in ('runs', 'experiments')
    for path in (ROOT / folder).glob('*.gin')
  )


def _job_of(name):
  """The job whose name begins a run file's, or the experiment's command."""
  text = (ROOT / name).read_text()
  if name.startswith('experiments/'):
    # Other commands make its data or judge it.
    return re.search(rf'p4lm (\w+)[^#]*--gin_file={name}', text).group(1)
  jobs = sorted(path.stem for path in (ROOT / 'runs').glob('*.gin'))
  stem = name.removeprefix('runs/').removesuffix('.gin')
  return next(job for job in jobs if stem == job or stem.startswith(job + '_'))


def _bindings(job, name):
  """A value for every required macro."""
  try:
    configuration.resolve(job, [name], [])
  except UserError as error:
    missing = re.findall(r'--gin\.(\w+)=', str(error))
    assert missing, error
    return [f'{macro}={_VALUES.get(macro, "x")}' for macro in missing]
  return []


@pytest.mark.parametrize('name', _files())
def test_it_resolves(name):
  job = _job_of(name)
  function = configuration.resolve(job, [name], _bindings(job, name))
  arguments = gin.get_bindings(function)
  assert function.__name__ == job
  assert arguments


@pytest.mark.parametrize(
  'name,config',
  [
    ('train_rl', 'ReinforceConfig'),
    ('train_rl_ppo', 'PpoConfig'),
    ('train_rl_grpo', 'GrpoConfig'),
    ('train_rl_rebel', 'RebelConfig'),
    ('train_rl_sac', 'SacConfig'),
    ('train_rl_soft_optimal', 'SoftOptimalConfig'),
    ('train_rl_cql', 'CqlConfig'),
    ('train_rl_in_sample', 'InSampleConfig'),
  ],
)
def test_each_algorithm_has_a_run_file(name, config):
  file = f'runs/{name}.gin'
  bindings = [*_bindings('train_rl', file), 'KL_COEFFICIENT=0.25']
  function = configuration.resolve('train_rl', [file], bindings)
  algorithm = gin.get_bindings(function)['algorithm']
  assert type(algorithm).__name__ == config
  assert algorithm.kl_coefficient == 0.25
