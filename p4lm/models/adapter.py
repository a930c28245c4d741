"""CFAdapter: collaborative-filtering vectors into the word-embedding space."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.config_json import JsonConfig
from p4lm.models.layers import Dense
from p4lm.typing import Array, Float, Int

# A vector's kind is its index here: `cf_kind_ids` 0 is a user, 1 an item.
CF_KINDS = ('user', 'item')
_ADAPTER_KINDS = ('ffn', 'linear')


@dataclasses.dataclass(frozen=True)
class AdapterConfig(JsonConfig):
  """The shape of the adapters W_U and W_I (Jeong et al., P4LM).

  Attributes:
    cf_width: width E of the CF vectors.
    hidden_width: width of the hidden layers.
    num_layers: linear maps, with ReLU between them.
    kind: 'ffn', or 'linear' for a single linear map.
    tokens_per_vector: soft tokens that one CF vector becomes.
  """

  cf_width: int
  hidden_width: int
  num_layers: int = 3
  kind: str = 'ffn'
  tokens_per_vector: int = 1

  def __post_init__(self):
    sizes = ('cf_width', 'hidden_width', 'num_layers', 'tokens_per_vector')
    for name in sizes:
      if getattr(self, name) < 1:
        raise UserError(
          f'AdapterConfig.{name} is {getattr(self, name)!r}; it must be a'
          ' positive integer.'
        )
    if self.kind not in _ADAPTER_KINDS:
      raise UserError(
        f'AdapterConfig.kind is {self.kind!r}; it must be one of'
        f' {", ".join(_ADAPTER_KINDS)}.'
      )


class CFAdapter(nnx.Module):
  """E -> hidden -> ... -> tokens_per_vector x D with ReLU between.

  CF vectors come with norm about 1, that is with entries about E ** -0.5.
  They are multiplied by E ** 0.5, and the kernels drawn so that variance stays
  1 through the ReLUs: at first a soft token's entries have the standard
  deviation that is given, that of a word embedding.
  """

  def __init__(
    self,
    config: AdapterConfig,
    width: int,
    *,
    rngs: nnx.Rngs,
    stddev: float = 1.0,
  ):
    depth = 1 if config.kind == 'linear' else config.num_layers
    self.cf_width = config.cf_width
    self.hidden = nnx.List()
    inputs, gain = {'cf_embed': config.cf_width}, 1.0
    for _ in range(depth - 1):
      hidden = {'mlp': config.hidden_width}
      self.hidden.append(_layer(inputs, hidden, gain, rngs))
      # ReLU halves the second moment of what follows it.
      inputs, gain = hidden, 2.0
    outputs = {'soft_tokens': config.tokens_per_vector, 'embed': width}
    self.output = _layer(inputs, outputs, gain * stddev**2, rngs)

  def __call__(
    self, cf_embeddings: Float[Array, 'B N E']
  ) -> Float[Array, 'B N T D']:
    """T soft tokens of width D for each vector."""
    if cf_embeddings.shape[-1] != self.cf_width:
      raise UserError(
        f'cf_embeddings have width {cf_embeddings.shape[-1]}, the adapter'
        f' takes {self.cf_width} (AdapterConfig.cf_width); use the CF tables'
        ' that the model was trained with.'
      )
    x = cf_embeddings * self.cf_width**0.5
    for layer in self.hidden:
      x = jax.nn.relu(layer(x))
    return self.output(x)


def make_adapters(
  config: AdapterConfig | None,
  width: int,
  *,
  rngs: nnx.Rngs,
  stddev: float = 1.0,
) -> nnx.Dict | None:
  """An adapter for each kind of CF vector, by the names of CF_KINDS.

  None for a configuration of None: a model of text alone.
  """
  if config is None:
    return None
  options = dict(rngs=rngs, stddev=stddev)
  return nnx.Dict({k: CFAdapter(config, width, **options) for k in CF_KINDS})


def adapt(
  adapters: nnx.Dict,
  cf_embeddings: Float[Array, 'B N E'],
  cf_kind_ids: Int[Array, 'B N'],
) -> Float[Array, 'B S D']:
  """Soft tokens of CF vectors of mixed kinds, in the vectors' order.

  Each vector goes through every adapter and keeps the output of its own kind:
  there are few vectors, and shapes stay static. An adapter gets gradient from
  the vectors of its kind alone.

  Args:
    adapters: from `make_adapters`.
    cf_embeddings: N vectors for each example.
    cf_kind_ids: index into CF_KINDS for each vector.
  """
  chosen = None
  for index, kind in enumerate(CF_KINDS):
    tokens = adapters[kind](cf_embeddings)
    if chosen is None:
      chosen = tokens
    else:
      own = (cf_kind_ids == index)[..., None, None]
      chosen = jnp.where(own, tokens, chosen)
  batch, vectors, per_vector, width = chosen.shape
  return chosen.reshape(batch, vectors * per_vector, width)


def scale_adapters(adapters: nnx.Dict, root_mean_square: float) -> None:
  """Multiplies the adapters' outputs, to match a given embedding table.

  A fresh adapter's soft tokens have entries of root mean square 1, as fresh
  word embeddings have; a pretrained table has its own.

  Args:
    adapters: fresh ones, changed in place.
    root_mean_square: of the entries of the word embeddings.
  """
  for kind in CF_KINDS:
    output = adapters[kind].output
    output.kernel[...] = output.kernel[...] * root_mean_square
    output.bias[...] = output.bias[...] * root_mean_square


def _layer(
  inputs: dict[str, int], outputs: dict[str, int], gain: float, rngs: nnx.Rngs
) -> Dense:
  fan_in = next(iter(inputs.values()))
  stddev = (gain / fan_in) ** 0.5
  return Dense(inputs, outputs, rngs=rngs, stddev=stddev, use_bias=True)
