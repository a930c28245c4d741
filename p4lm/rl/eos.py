"""The EOS contract: where a reward sits and what a response without EOS gets.

A response ends with its EOS token, which counts: it is inside the mask, has a
log-probability and bears the reward. A response that reached the length limit
without EOS was cut off in the middle of a sentence; P4LM's reward sits on EOS
alone, so as printed such a response earns nothing. What it earns here is a
choice, made explicit by `missing`:

  zero          0, the paper's rule. With rewards centred at zero that is an
                average reward, so prefer another rule there.
  penalty       `penalty`, usually below any reward.
  score_anyway  what the reward terms say of the cut text.
  mask          no say: the sample is left out of the update and counted.

Beside that, long responses may pay for their length before they are cut: from
`overlong_from` tokens on a price that grows on a line to `overlong_penalty` at
the limit L (the soft punishment of DAPO, Yu et al. 2025, eq. 13):

  price = overlong_penalty * (length - overlong_from) / (L - overlong_from)

The paper has no such price, and it is off by default.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.errors import UserError
from p4lm.ops.masks import last_counted
from p4lm.typing import Array, Bool, Float

MISSING_EOS_RULES = ('zero', 'penalty', 'score_anyway', 'mask')


@dataclasses.dataclass(frozen=True)
class EosContract:
  """What a response without EOS earns.

  Attributes:
    missing: one of MISSING_EOS_RULES.
    penalty: the reward under the rule 'penalty'.
    overlong_from: tokens, EOS included, from which on length costs; None for
      never.
    overlong_penalty: what a response of the greatest length pays, 0 or more.
  """

  missing: str = 'zero'
  penalty: float = 0.0
  overlong_from: int | None = None
  overlong_penalty: float = 0.0

  def __post_init__(self):
    if self.missing not in MISSING_EOS_RULES:
      raise UserError(
        f'EosContract.missing must be one of {", ".join(MISSING_EOS_RULES)}, '
        f'got {self.missing!r}'
      )
    if self.missing != 'penalty' and self.penalty:
      raise UserError(
        f"EosContract.penalty is {self.penalty}, but only missing='penalty' "
        f'uses it, not {self.missing!r}'
      )
    if not np.isfinite(self.penalty):
      raise UserError(f'EosContract.penalty must be finite: {self.penalty}')
    if self.overlong_from is not None and self.overlong_from < 0:
      raise UserError(
        f'EosContract.overlong_from must be 0 or more: {self.overlong_from}'
      )
    if not 0 <= self.overlong_penalty < np.inf:
      raise UserError(
        'EosContract.overlong_penalty must be finite and 0 or more: '
        f'{self.overlong_penalty}'
      )
    if self.overlong_penalty and self.overlong_from is None:
      raise UserError(
        f'EosContract.overlong_penalty is {self.overlong_penalty}, but without '
        'overlong_from nothing pays it'
      )


def apply_eos_contract(
  rewards: np.ndarray,
  valid: np.ndarray,
  finished: np.ndarray,
  contract: EosContract,
) -> tuple[np.ndarray, np.ndarray]:
  """Rewards and validity after the rule for responses without EOS.

  A rule that sets the reward also makes it valid, whatever the terms said:
  the sample is then known to be worth that much.

  >>> rewards, valid = apply_eos_contract(
  ...   np.array([1.5, 2.5]), np.array([True, False]),
  ...   np.array([True, False]), EosContract('penalty', -1.0))
  >>> print(rewards, valid)
  [ 1.5 -1. ] [ True  True]

  Args:
    rewards: float [B].
    valid: bool [B].
    finished: bool [B], the response ends with EOS.
    contract: the rule.
  Returns:
    rewards float32 [B] and valid bool [B].
  """
  rewards = np.where(valid, rewards, 0.0).astype(np.float32)
  cut = ~np.asarray(finished, bool)
  if contract.missing == 'score_anyway':
    return rewards, np.asarray(valid, bool)
  if contract.missing == 'mask':
    return rewards, valid & ~cut
  rewards[cut] = contract.penalty if contract.missing == 'penalty' else 0.0
  return rewards, valid | cut


def overlong_prices(
  lengths: np.ndarray, limit: int, contract: EosContract
) -> np.ndarray:
  """What each response pays for its length, float32 [B].

  >>> overlong_prices(np.array([4, 6, 8]), 8, EosContract(
  ...   overlong_from=4, overlong_penalty=1.0)).tolist()
  [0.0, 0.5, 1.0]

  Args:
    lengths: int [B], counted tokens of each response.
    limit: L, the most that a response may have.
    contract: the rule.
  Raises:
    UserError: length costs only beyond the limit.
  """
  start = contract.overlong_from
  if start is None:
    return np.zeros(len(lengths), np.float32)
  if start >= limit:
    raise UserError(
      f'EosContract.overlong_from is {start}, but responses have at most '
      f'{limit} tokens; choose less'
    )
  over = np.clip((lengths - start) / (limit - start), 0.0, 1.0)
  return (contract.overlong_penalty * over).astype(np.float32)


def rewards_at_end(
  rewards: Float[Array, ' B'], response_mask: Bool[Array, 'B L']
) -> Float[Array, 'B L']:
  """Rewards token by token: all of it at the last counted token, else 0.

  That token is EOS, or the last one of a cut response.
  """
  return rewards[:, None] * last_counted(response_mask)
