import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from p4lm.checkpoints import integrity
from p4lm.checkpoints.manager import CheckpointStore
from p4lm.errors import UserError


def make_items(step=0):
  params = {
    'encoder': {'kernel': jnp.arange(6.0).reshape(2, 3) + step},
    'scale': jnp.ones(3, jnp.bfloat16) * step,
  }
  return {
    'params': params,
    'frozen': {},
    'opt_state': optax.adam(0.1).init(params),
    'rng': {'key': jax.random.key(step), 'step': jnp.int32(step)},
    'rl': {'counter': step, 'rate': 0.5, 'rows': np.arange(4) * step},
  }


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert type(leaf) is type(other)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))
    assert np.asarray(leaf).dtype == np.asarray(other).dtype


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with the whole steps 10 and 20, to be copied."""
  path = tmp_path_factory.mktemp('saved') / 'checkpoints'
  store = CheckpointStore(path)
  for step in (10, 20):
    store.save(step, make_items(step))
  store.close()
  return path


@pytest.fixture
def directory(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'checkpoints')


def test_everything_comes_back_as_it_was(saved):
  step, items = CheckpointStore(saved).restore(make_items())
  assert step == 20
  assert_same(items, make_items(20))


def test_a_given_step_is_restored(saved):
  store = CheckpointStore(saved)
  step, items = store.restore(make_items(), step=10)
  assert step == 10
  assert_same(items, make_items(10))
  with pytest.raises(UserError, match=r'has no step 15; it has \[10, 20\]'):
    store.restore(make_items(), step=15)


def test_templates_may_be_abstract_and_of_other_containers(saved):
  abstract = jax.eval_shape(make_items)
  _, items = CheckpointStore(saved).restore(
    {name: abstract[name] for name in ('params', 'rng')}
  )
  expected = make_items(20)
  assert_same(items['params'], expected['params'])
  assert_same(items['rng'], expected['rng'])


def test_a_flax_state_is_restored_from_its_own_names(tmp_path):
  model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
  store = CheckpointStore(tmp_path / 'checkpoints')
  store.save(1, {'params': nnx.state(model)})
  other = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
  _, items = store.restore({'params': other})
  assert_same(items['params'], nnx.state(model))
  _, arrays = store.restore_any()
  assert set(arrays['params']) == {'kernel', 'bias'}
  np.testing.assert_array_equal(arrays['params']['kernel'], model.kernel[...])
  _, items = store.restore({'params': nnx.to_pure_dict(other)})
  np.testing.assert_array_equal(items['params']['bias'], model.bias[...])


def test_items_are_read_without_a_template(saved):
  store = CheckpointStore(saved)
  step, items = store.restore_any(('params', 'frozen'))
  assert step == 20
  assert set(items) == {'params'}
  assert set(items['params']) == {'encoder/kernel', 'scale'}
  assert items['params']['scale'].dtype == jnp.bfloat16
  _, everything = store.restore_any(step=10)
  assert set(everything) == {'params', 'opt_state', 'rng', 'rl'}
  assert set(everything['opt_state']) >= {'0/mu/scale', '0/count'}


def test_64_bit_numbers_keep_all_their_bits(tmp_path):
  store = CheckpointStore(tmp_path / 'c')
  rows = {'seen': np.array([2**40 + 1]), 'total': 2**50 + 3}
  store.save(1, {'rl': rows})
  for _, items in (store.restore({'rl': rows}), store.restore_any()):
    assert int(items['rl']['seen'][0]) == 2**40 + 1
    assert int(items['rl']['total']) == 2**50 + 3


def test_every_mismatch_is_named(saved):
  template = make_items()
  template['params'] = {
    'encoder': {'kernel': jnp.zeros((2, 4)), 'bias': jnp.zeros(4)},
  }
  template['rng']['step'] = jnp.float32(0)
  with pytest.raises(UserError) as error:
    CheckpointStore(saved).restore(template)
  message = str(error.value)
  for part in (
    'params/encoder/bias is missing',
    'params/scale is unexpected',
    'params/encoder/kernel is float32[2,3], expected float32[2,4]',
    'rng/step is int32[], expected float32[]',
  ):
    assert part in message
  assert 'CHECKPOINT' in message


def test_an_item_that_was_not_saved_is_missing_and_one_left_out_is_not(saved):
  store = CheckpointStore(saved)
  with pytest.raises(UserError, match='critic/w is missing'):
    store.restore({'critic': {'w': jnp.zeros(2)}})
  _, items = store.restore({'params': make_items()['params']})
  assert set(items) == {'params'}


def files_of(step_dir):
  return sorted(
    path
    for path in step_dir.rglob('*')
    if path.is_file() and path.stat().st_size > 1
  )


def test_a_truncated_step_is_passed_over_with_a_warning(
  directory, saved, caplog
):
  """Whichever of its files was cut, and also without the list of files."""
  files = [path.relative_to(saved) for path in files_of(saved / '20')]
  assert len(files) > 10
  for number, name in enumerate(files):
    path = directory / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      step, items = CheckpointStore(directory).restore(make_items())
    assert step == 10, name
    if number == 0:
      assert_same(items, make_items(10))
    assert f'{directory}/20 is damaged' in caplog.text
    path.write_bytes(whole)
  assert CheckpointStore(directory).restore(make_items())[0] == 20


@pytest.mark.parametrize('item', ['params', 'opt_state'])
def test_truncated_arrays_are_noticed_without_the_list_of_files(
  directory, item, caplog
):
  (directory / '20' / integrity.LIST_NAME).unlink()
  for path in files_of(directory / '20' / item):
    path.write_bytes(path.read_bytes()[:20])
  assert CheckpointStore(directory).restore(make_items())[0] == 10
  assert 'trying an older one' in caplog.text


def test_a_flipped_bit_and_a_missing_file_are_noticed(directory, caplog):
  arrays = files_of(directory / '20' / 'params')
  data = max(arrays, key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(bytes(content))
  assert CheckpointStore(directory).restore(make_items())[0] == 10
  assert 'has other contents' in caplog.text
  data.unlink()
  assert CheckpointStore(directory).restore(make_items())[0] == 10
  assert f'{data.name} is missing' in caplog.text


def test_when_no_step_is_whole_each_is_named(directory):
  for step in ('10', '20'):
    (directory / step / integrity.LIST_NAME).write_text('{')
  with pytest.raises(UserError) as error:
    CheckpointStore(directory).restore(make_items())
  message = str(error.value)
  assert 'step 20: files.json is damaged' in message
  assert 'step 10: files.json is damaged' in message
  assert 'remove it to start over' in message


def test_a_damaged_step_gives_way_when_training_goes_on(directory):
  data = files_of(directory / '20' / 'params')[0]
  data.write_bytes(b'x')
  store = CheckpointStore(directory)
  store.restore(make_items())
  assert store.latest_step() == 10
  store.save(15, make_items(15))
  assert store.all_steps() == [10, 15]
  store.save(20, make_items(20))
  assert store.all_steps() == [15, 20]
  step, items = CheckpointStore(directory).restore(make_items())
  assert step == 20
  assert_same(items, make_items(20))


def test_saving_a_step_again_replaces_it(directory):
  store = CheckpointStore(directory)
  store.save(20, make_items(3))
  assert store.all_steps() == [10, 20]
  assert_same(store.restore(make_items())[1], make_items(3))


def test_the_newest_stay_and_those_kept_for_ever(tmp_path):
  store = CheckpointStore(tmp_path / 'c', keep=2, keep_every=4)
  for step in range(1, 8):
    store.save(step, {'params': {'w': jnp.zeros(1)}})
  assert store.all_steps() == [4, 6, 7]
  assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['4', '6', '7']


def test_what_a_killed_process_left_is_not_a_step_and_goes(directory):
  (directory / '30.orbax-checkpoint-tmp').mkdir()
  (directory / '.removed-5').mkdir()
  store = CheckpointStore(directory)
  assert store.all_steps() == [10, 20]
  assert store.restore(make_items())[0] == 20
  assert (directory / '30.orbax-checkpoint-tmp').exists()
  store.save(30, make_items(30))
  assert sorted(p.name for p in directory.iterdir()) == ['20', '30']


def test_asynchronous_saves_hold_the_values_at_the_call(tmp_path):
  store = CheckpointStore(tmp_path / 'c', asynchronous=True)
  update = jax.jit(lambda w: w + 1, donate_argnums=0)
  w = jnp.zeros((500, 500))
  for step in range(3):
    store.save(step, {'params': {'w': w}})
    for _ in range(5):
      w = update(w)
  store.close()
  assert store.all_steps() == [1, 2]
  for step in (1, 2):
    _, items = store.restore({'params': {'w': w}}, step=step)
    np.testing.assert_array_equal(items['params']['w'], 5.0 * step)
    files = json.loads((tmp_path / 'c' / str(step) / 'files.json').read_text())
    assert files


def test_reading_makes_nothing(tmp_path):
  store = CheckpointStore(tmp_path / 'none' / 'c')
  assert store.latest_step() is None
  with pytest.raises(UserError, match='holds no checkpoint'):
    store.restore(make_items())
  assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot save step 1 in .*file/c'):
    CheckpointStore(tmp_path / 'file' / 'c').save(1, make_items())


@pytest.mark.parametrize('options', [{'keep': 0}, {'keep_every': -1}])
def test_bad_settings_are_named(tmp_path, options):
  ((name, value),) = options.items()
  with pytest.raises(
    UserError, match=f'{name} must be at least 1, got {value}'
  ):
    CheckpointStore(tmp_path, **options)


_SHARDED = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from p4lm.checkpoints.manager import CheckpointStore
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
w = np.arange(32.0, dtype=np.float32).reshape(4, 8)
for number, (first, second) in enumerate(
    [(P('data', 'model'), P('model')), (P(), P(None, 'data'))]):
  store = CheckpointStore(f'{sys.argv[1]}/{number}')
  key = jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))
  store.save(1, {'params': {
      'w': jax.device_put(w, NamedSharding(mesh, first)), 'key': key}})
  wanted = NamedSharding(mesh, second)
  _, items = store.restore({'params': {
      'w': jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=wanted),
      'key': key}})
  found = items['params']['w']
  assert found.sharding.is_equivalent_to(wanted, 2), found.sharding
  np.testing.assert_array_equal(found, w)
  np.testing.assert_array_equal(
      jax.random.key_data(items['params']['key']), jax.random.key_data(key))
  _, items = store.restore_any()
  np.testing.assert_array_equal(items['params']['w'], w)
print('restored')
"""


def test_arrays_are_restored_onto_other_shardings(tmp_path):
  import os
  import subprocess
  import sys

  flags = '--xla_force_host_platform_device_count=4'
  result = subprocess.run(
    [sys.executable, '-c', _SHARDED, tmp_path],
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
  )
  assert result.stdout.strip() == 'restored', result.stderr[-2000:]


def test_another_saving_of_a_step_has_another_identity(tmp_path):
  assert integrity.identity(tmp_path) == ''
  (tmp_path / 'params').write_text('first')
  integrity.write_file_list(tmp_path)
  first = integrity.identity(tmp_path)
  integrity.write_file_list(tmp_path)
  assert integrity.identity(tmp_path) == first
  (tmp_path / 'params').write_text('other')
  integrity.write_file_list(tmp_path)
  assert integrity.identity(tmp_path) != first
