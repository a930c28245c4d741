"""A contextual MDP small enough that every response can be written down.

Tokens 0, 1, 2 with EOS = 1 and responses of at most three tokens: 15 of them,
of which 8 reach the limit without EOS. The policy is a table of logits, one
row for each context and prefix:

  context, position 0        row 0
  after token a              rows 1..3
  after tokens a, b          rows 4..12
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import logprobs, masks
from p4lm.rl.critics import CriticNetwork
from p4lm.rl.learner import Anchor, Workbench
from p4lm.rl.rollouts import Rollout
from p4lm.training.step import make_train_step

VOCABULARY, LENGTH, EOS_ID, CONTEXTS, PREFIXES = 3, 3, 1, 2, 13


def _all_responses():
  found = {}
  for tokens in itertools.product(range(VOCABULARY), repeat=LENGTH):
    mask = np.asarray(masks.response_mask_of(jnp.array([tokens]), EOS_ID))[0]
    found[tuple(np.array(tokens)[mask])] = (tuple(tokens * mask), tuple(mask))
  tokens, mask = zip(*found.values())
  return np.array(tokens, np.int32), np.array(mask)


@dataclasses.dataclass(frozen=True)
class TinyMDP:
  """The problem: reference policy, rewards and every response.

  Attributes:
    tokens: int [15, 3]; pad is 0, which is a token of the vocabulary too.
    mask: bool [15, 3].
    reference: float64 [CONTEXTS, 13, 3] logits of the anchor.
    rewards: float64 [CONTEXTS, 15].
    start: float64 [CONTEXTS, 13, 3] logits of a policy to test gradients at.
  """

  tokens: np.ndarray
  mask: np.ndarray
  reference: np.ndarray
  rewards: np.ndarray
  start: np.ndarray
  eos_id: int = EOS_ID

  def token_logps(self, table, contexts, tokens):
    """Log-probabilities [B, L] of tokens [B, L] in contexts [B]."""
    states = table[contexts[:, None], self.prefix_rows(tokens)]
    return logprobs.token_logprobs(states, tokens)

  def prefix_rows(self, tokens):
    """The table's row [B, L] of the state before each token."""
    first, second = tokens[:, 0], tokens[:, 1]
    return jnp.stack(
      [jnp.zeros_like(first), 1 + first, 4 + VOCABULARY * first + second],
      axis=1,
    )

  def score_fn(self, params, frozen, rollout):
    """As a recommender's: prompts hold their context's number."""
    del frozen
    contexts = jnp.repeat(rollout.prompt_tokens[:, 0], rollout.group_size)
    return self.token_logps(params, contexts, rollout.response_tokens)

  def response_logps(self, table, context=0):
    """Log-probability of each of the 15 responses."""
    contexts = jnp.full(len(self.tokens), context)
    logps = self.token_logps(table, contexts, jnp.asarray(self.tokens))
    return logprobs.sequence_logprobs(logps, jnp.asarray(self.mask))

  def objective(self, table, kl_coefficient, context=0):
    """J = E[r] - beta KL, by summing over the 15 responses."""
    logps = self.response_logps(table, context)
    anchor = self.response_logps(jnp.asarray(self.reference), context)
    gain = self.rewards[context] - kl_coefficient * (logps - anchor)
    return jnp.sum(jnp.exp(logps) * gain)

  def optimum(self, kl_coefficient, context=0):
    """Probabilities [15] and value of the best policy, in closed form."""
    anchor = self.response_logps(jnp.asarray(self.reference), context)
    tilted = anchor + self.rewards[context] / kl_coefficient
    log_z = jax.nn.logsumexp(tilted)
    return jnp.exp(tilted - log_z), kl_coefficient * log_z

  def table_of(self, probabilities, context=0):
    """Logits [CONTEXTS, 13, 3] that give the 15 responses these chances."""
    table = np.zeros((CONTEXTS, PREFIXES, VOCABULARY))
    starts = [()] + [(a,) for a in (0, 2)]
    starts += [(a, b) for a in (0, 2) for b in (0, 2)]
    for start in starts:
      for token in range(VOCABULARY):
        mass = sum(
          float(chance)
          for k, chance in enumerate(probabilities)
          if self.begins(k, (*start, token))
        )
        row = table[context, self.prefix_row(start)]
        row[token] = np.log(mass) if mass > 0 else -1e9
    return table

  def prefix_row(self, prefix):
    """The table's row of the state after these tokens."""
    if len(prefix) < 2:
      return 1 + prefix[0] if prefix else 0
    return 4 + VOCABULARY * prefix[0] + prefix[1]

  def begins(self, response, prefix):
    """Whether a response starts with these tokens."""
    length = int(self.mask[response].sum())
    return tuple(self.tokens[response, :length][: len(prefix)]) == prefix

  def rollout(self, responses, *, behavior=None, contexts=(0,), valid=None):
    """A rollout of the given responses [B], equally many for each context."""
    responses = jnp.asarray(responses)
    group_size = responses.shape[0] // len(contexts)
    prompts = jnp.asarray(contexts, jnp.int32)[:, None]
    each = jnp.repeat(prompts[:, 0], group_size)
    tokens = jnp.asarray(self.tokens)[responses]
    behavior = self.start if behavior is None else behavior
    score = lambda table: self.token_logps(jnp.asarray(table), each, tokens)
    if valid is None:
      valid = jnp.ones(responses.shape, bool)
    return Rollout(
      prompt_tokens=prompts,
      cf_embeddings=jnp.zeros((len(contexts), 0, 1)),
      cf_kind_ids=jnp.zeros((len(contexts), 0), jnp.int32),
      response_tokens=tokens,
      response_mask=jnp.asarray(self.mask)[responses],
      behavior_logps=score(behavior),
      reference_logps=score(self.reference),
      rewards=jnp.asarray(self.rewards)[each, responses],
      valid=valid,
    )


def tabular_bench(mdp, optimizer):
  """What learners are made of, for policies and anchors that are tables."""

  def distribution_fn(params, frozen, rollout):
    del frozen
    contexts = jnp.repeat(rollout.prompt_tokens[:, 0], rollout.group_size)
    rows = mdp.prefix_rows(rollout.response_tokens)
    return jax.nn.log_softmax(params[contexts[:, None], rows])

  return Workbench(
    step_of=lambda loss_fn, plan=None: make_train_step(
      loss_fn, optimizer, plan=plan
    ),
    score_fn=mdp.score_fn,
    distribution_fn=distribution_fn,
    anchor=Anchor(
      params=jnp.asarray(mdp.reference),
      hidden_fn=None,
      logps_fn=lambda table, rollout: distribution_fn(table, None, rollout),
      width=0,
      vocabulary_size=VOCABULARY,
    ),
    place=lambda tree: tree,
    place_batch=lambda tree: tree,
    key=jax.random.key(7),
    example=mdp.rollout(jnp.arange(2)),
  )


def tabular_critics(mdp, heads=2):
  """Q [K, CONTEXTS, 13, 3] and V [CONTEXTS, 13] as tables."""
  shape = (CONTEXTS, PREFIXES)
  start = np.random.default_rng(1).normal(size=(heads, *shape, VOCABULARY))

  def states(rollout):
    rows = mdp.prefix_rows(rollout.response_tokens)
    return rollout.prompt_tokens[:, :1], rows

  return CriticNetwork(
    {'q': jnp.asarray(0.1 * start), 'v': jnp.zeros(shape)},
    q_fn=lambda params, _, rollout, key: params['q'][:, *states(rollout)],
    v_fn=lambda params, _, rollout: params['v'][*states(rollout)],
  )


@pytest.fixture(name='mdp', scope='session')
def _mdp():
  generator = np.random.default_rng(5)
  tokens, mask = _all_responses()
  shape = (CONTEXTS, PREFIXES, VOCABULARY)
  return TinyMDP(
    tokens=tokens,
    mask=mask,
    reference=generator.normal(size=shape),
    rewards=generator.normal(size=(CONTEXTS, len(tokens))),
    start=generator.normal(size=shape),
  )


@pytest.fixture(name='make_bench', scope='session')
def _make_bench(mdp):
  return lambda optimizer: tabular_bench(mdp, optimizer)


@pytest.fixture(name='make_critics', scope='session')
def _make_critics(mdp):
  return lambda heads=2: tabular_critics(mdp, heads)


@pytest.fixture(name='float64')
def _float64():
  """Identities are exact: rounding would only hide mistakes."""
  with jax.enable_x64(True):
    yield
