"""Best of n: draw n responses, keep the one that a reward likes most.

NumPy in float64, on the host: these are report figures, not losses.
"""

import numpy as np
import numpy.typing as npt


def best_of_n_kl_bound(n: int) -> float:
  """Upper bound of KL(best of n || policy): log n - (n - 1) / n, in nats.

  Attained when no two responses have the same reward and none has much
  probability (Beirami et al. 2024, theorem 1).

  >>> print([f'{best_of_n_kl_bound(n):.4f}' for n in (1, 2, 4, 16)])
  ['0.0000', '0.1931', '0.6363', '1.8351']
  """
  _check_n(n)
  return float(np.log(n) - (n - 1) / n)


def best_of_n_distribution(
  probabilities: npt.ArrayLike, rewards: npt.ArrayLike, n: int
) -> np.ndarray:
  """Distribution of the best of n draws from a finite distribution.

  Of equal rewards the first drawn is kept, so tied outcomes share their mass
  in proportion to their probabilities.

  Args:
    probabilities: float [K], summing to 1.
    rewards: float [K].
    n: draws.
  Returns:
    float64 [K], summing to 1.
  """
  _check_n(n)
  probabilities = np.asarray(probabilities, np.float64)
  levels, level_of = np.unique(np.asarray(rewards), return_inverse=True)
  mass = np.bincount(level_of, weights=probabilities, minlength=len(levels))
  at_most = np.clip(np.cumsum(mass), 0.0, 1.0)
  below = np.concatenate([[0.0], at_most[:-1]])
  share = (at_most**n - below**n)[level_of]
  level_mass = mass[level_of]
  return np.divide(
    probabilities * share,
    level_mass,
    out=np.zeros_like(probabilities),
    where=level_mass > 0,
  )


def best_of_n_curve(
  proxy_rewards: npt.ArrayLike, true_rewards: npt.ArrayLike, ns: tuple[int, ...]
) -> np.ndarray:
  """True reward of the sample that the proxy picks among n, for several n.

  Unbiased: averages over all subsets of n of the K samples a prompt, by the
  probability C(k - 1, n - 1) / C(K, n) that the sample ranked k-th from the
  bottom is the best of a subset. A curve that falls while n grows shows a
  proxy being fooled.

  Args:
    proxy_rewards: float [M, K], K samples for each of M prompts.
    true_rewards: float [M, K].
    ns: each in 1..K.
  Returns:
    float64 [len(ns)], averages over the prompts.
  Raises:
    ValueError: shapes differ or an n is out of its range.
  """
  proxy_rewards = np.asarray(proxy_rewards, np.float64)
  true_rewards = np.asarray(true_rewards, np.float64)
  if proxy_rewards.shape != true_rewards.shape or proxy_rewards.ndim != 2:
    raise ValueError(
      'proxy_rewards and true_rewards must be [M, K], got '
      f'{proxy_rewards.shape} and {true_rewards.shape}'
    )
  samples = proxy_rewards.shape[1]
  order = np.argsort(proxy_rewards, axis=1, kind='stable')
  ranked = np.take_along_axis(true_rewards, order, axis=1)
  curve = []
  for n in ns:
    _check_n(n, samples)
    weights = np.zeros(samples)
    weights[-1] = n / samples
    # C(k - 2, n - 1) / C(k - 1, n - 1) = (k - n) / (k - 1), from the top down.
    for k in range(samples, 1, -1):
      weights[k - 2] = weights[k - 1] * max(k - n, 0) / (k - 1)
    curve.append(float(np.mean(ranked @ weights)))
  return np.array(curve)


def _check_n(n, most=None):
  if n < 1 or (most is not None and n > most):
    limit = '' if most is None else f' and at most {most}'
    raise ValueError(f'n must be at least 1{limit}, got {n}')
