import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.training.optimizers import OptimizerConfig

PARAMS = {
  'layer': {'kernel': jnp.array([[1.0, -2.0]]), 'scale': jnp.array([3.0])},
  'layer_norm': {'weight': jnp.array([[4.0]])},
  'bias': jnp.array([5.0]),
}
GRADS = {
  'layer': {'kernel': jnp.array([[0.3, 0.4]]), 'scale': jnp.array([0.0])},
  'layer_norm': {'weight': jnp.array([[0.0]])},
  'bias': jnp.array([0.0]),
}


def updates(config, grads=GRADS, steps=1):
  optimizer = config.make(10)
  state = optimizer.init(PARAMS)
  for _ in range(steps):
    found, state = optimizer.update(grads, state, PARAMS)
  return found


def test_adamw_takes_its_first_step_along_the_sign_and_decays_matrices():
  """Bias-corrected moments of one gradient give g / (|g| + eps)."""
  config = OptimizerConfig(
    learning_rate=0.1, weight_decay=0.5, clip_norm=0.0, eps=0.1, b1=0.5, b2=0.75
  )
  found = updates(config)
  expected = -0.1 * (
    np.array([[0.3 / 0.4, 0.4 / 0.5]]) + 0.5 * np.array([[1.0, -2.0]])
  )
  np.testing.assert_allclose(found['layer']['kernel'], expected, rtol=1e-5)
  for other in (
    found['layer']['scale'],
    found['layer_norm']['weight'],
    found['bias'],
  ):
    np.testing.assert_array_equal(other, 0.0)


def test_all_parameters_decay_when_none_is_excluded():
  config = OptimizerConfig(
    learning_rate=0.1, weight_decay=0.5, decay_exclude=None
  )
  found = updates(config)
  np.testing.assert_allclose(found['bias'], [-0.1 * 0.5 * 5.0], rtol=1e-6)


def test_clipping_scales_the_whole_gradient_to_its_norm():
  """With b1 = b2 = 0 and a huge eps, adamw moves by -lr g / eps."""
  options = {'learning_rate': 1.0, 'b1': 0.0, 'b2': 0.0, 'eps': 1e6}
  free = updates(OptimizerConfig(clip_norm=0.0, **options))
  clipped = updates(OptimizerConfig(clip_norm=0.1, **options))
  # |(0.3, 0.4)| = 0.5, so everything shrinks fivefold.
  np.testing.assert_allclose(
    clipped['layer']['kernel'], free['layer']['kernel'] / 5, rtol=1e-4
  )


def test_adafactor_steps_relative_to_each_parameters_size():
  """First step: sign of the gradient, times lr, times max(1e-3, rms(p))."""
  config = OptimizerConfig(name='adafactor', learning_rate=0.1, clip_norm=0.0)
  found = updates(config)
  rms = np.sqrt((1.0 + 4.0) / 2)
  np.testing.assert_allclose(
    found['layer']['kernel'], -0.1 * rms * np.ones((1, 2)), rtol=1e-4
  )


def test_adagrad_divides_by_the_root_of_all_squares_so_far():
  """Entries without gradient stay; sums of squares start at eps."""
  options = {'learning_rate': 0.1, 'clip_norm': 0.0, 'eps': 0.09}
  config = OptimizerConfig(name='adagrad', **options)
  first, second = updates(config), updates(config, steps=2)
  # 0.4 / sqrt(0.09 + 0.16) = 0.8, and 0.4 / sqrt(0.09 + 2 * 0.16) after that.
  expected = [-0.1 * 0.3 / 0.18**0.5, -0.1 * 0.8]
  np.testing.assert_allclose(first['layer']['kernel'], [expected], rtol=1e-6)
  expected = [-0.1 * 0.3 / 0.27**0.5, -0.1 * 0.4 / 0.41**0.5]
  np.testing.assert_allclose(second['layer']['kernel'], [expected], rtol=1e-6)
  np.testing.assert_array_equal(second['bias'], 0.0)
  decayed = updates(
    OptimizerConfig(name='adagrad', weight_decay=0.5, **options)
  )
  np.testing.assert_allclose(
    decayed['layer']['kernel'] - first['layer']['kernel'],
    -0.1 * 0.5 * np.array([[1.0, -2.0]]),
    rtol=1e-5,
  )
  np.testing.assert_array_equal(decayed['bias'], 0.0)


@pytest.mark.parametrize(
  'schedule, expected',
  [
    ('constant', [0.0, 0.5, 1.0, 1.0, 1.0]),
    ('linear', [0.0, 0.5, 1.0, 0.6, 0.2]),
    ('cosine', [0.0, 0.5, 1.0, 0.6, 0.2]),
  ],
)
def test_schedules_warm_up_and_end_at_their_fraction(schedule, expected):
  config = OptimizerConfig(
    learning_rate=2.0, warmup_steps=4, schedule=schedule, final_fraction=0.2
  )
  found = [float(config.make_schedule(12)(s)) / 2 for s in (0, 2, 4, 8, 12)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'name': 'sgd'}, "one of adamw, adafactor, adagrad; got 'sgd'"),
    ({'schedule': 'step'}, "schedule.*got 'step'"),
    ({'learning_rate': 0.0}, 'learning_rate must be positive, got 0.0'),
    ({'learning_rate': float('nan')}, 'learning_rate must be positive'),
    ({'warmup_steps': -1}, 'warmup_steps must not be negative, got -1'),
    ({'clip_norm': -0.5}, 'clip_norm must not be negative'),
    ({'b2': 1.5}, 'b2 must lie between 0 and 1, got 1.5'),
  ],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(UserError, match=message):
    OptimizerConfig(**options)
