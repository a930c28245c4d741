"""How a decoder-only model's layers see: rotary angles and masks."""

import dataclasses

import jax.numpy as jnp

from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.rope import angles, frequencies
from p4lm.typing import Array, Int


@dataclasses.dataclass(frozen=True)
class View:
  """How a layer places its queries: what they are turned by, what they see.

  Attributes:
    angle: float32 [R,Q,F], of one axis more for several kinds of layers.
    masks: a bool [R,Q,M] for each part of the keys, likewise.
  """

  angle: Array
  masks: tuple[Array, ...]

  def __getitem__(self, kind: Int[Array, '']) -> 'View':
    """The view of a kind of layers: 0 global, 1 local."""
    return View(self.angle[kind], tuple(mask[kind] for mask in self.masks))


def layer_view(
  config: DecoderConfig,
  positions: Int[Array, 'R Q'],
  key_positions: list[Array],
  key_masks: list[Array | None],
  local: bool,
  causal: bool = True,
) -> View:
  """The view of a global or a local layer; key positions are [R or 1,M]."""
  base = config.rope_local_base if local else config.rope_base
  frequency = frequencies(
    config.d_kv,
    base or config.rope_base,
    None if local else config.rope_scaling,
  )
  masks = []
  for places, kept in zip(key_positions, key_masks):
    distance = positions[:, :, None] - places[:, None, :]
    mask = distance >= 0 if causal else jnp.ones(distance.shape, bool)
    if local:
      mask &= jnp.abs(distance) < config.sliding_window
    if kept is not None:
      mask = mask & kept[:, None, :]
    masks.append(mask)
  return View(angles(positions, frequency), tuple(masks))


def layer_views(config: DecoderConfig, *places, causal: bool = True) -> View:
  """The views of both kinds of layers, on a leading axis."""
  views = [layer_view(config, *places, kind, causal) for kind in (False, True)]
  parts = zip(*(view.masks for view in views))
  return View(
    jnp.stack([view.angle for view in views]),
    tuple(jnp.stack(masks) for masks in parts),
  )


def stacked_views(prompt: View, response: View) -> View:
  """The view of prompts followed by responses, over the keys of both."""
  [over_prompt], to_prompt = prompt.masks, response.masks[0]
  rows = to_prompt.shape[:2]
  unseen = jnp.zeros(
    (*rows, over_prompt.shape[2], response.masks[1].shape[3]), bool
  )
  over_prompt = jnp.broadcast_to(over_prompt, (*rows, *over_prompt.shape[2:]))
  masks = [
    jnp.concatenate([over_prompt, unseen], axis=-1),
    jnp.concatenate([to_prompt, response.masks[1]], axis=-1),
  ]
  angle = jnp.broadcast_to(prompt.angle, (*rows, *prompt.angle.shape[2:]))
  return View(
    jnp.concatenate([angle, response.angle], axis=2),
    (jnp.concatenate(masks, axis=2),),
  )
