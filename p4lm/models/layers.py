"""Layers shared by every architecture: projections, norm, feed-forward.

Parameters are float32 and carry logical axis names. A layer built with
`layers=n` holds n copies stacked on a leading `layers` axis; `scan_layers`
runs the stack with one compiled body.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.typing import Array, Float, Key

Axes = Mapping[str, int] | tuple[tuple[str, int], ...]
Activation = Callable[[Array], Array]
ACTIVATIONS: Mapping[str, Activation] = {
  'relu': jax.nn.relu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=True),
  'silu': jax.nn.silu,
}


def normal_parameter(
  rngs: nnx.Rngs,
  axes: Axes,
  stddev: float,
  *,
  mean: float = 0.0,
  layers: int | None = None,
  kind: type[nnx.Variable] = nnx.Param,
) -> nnx.Variable:
  """A float32 parameter drawn from N(mean, stddev^2).

  Its metadata are `logical_axes` (see partitioning.rules), `init_mean` and
  `init_stddev` (see partitioning.build).

  Args:
    rngs: gives the `params` stream, unless stddev is 0.
    axes: logical name and size of each dimension, in order.
    stddev: standard deviation.
    mean: of the distribution.
    layers: size of a leading `layers` axis, None for no such axis.
    kind: class of the variable.
  """
  pairs = tuple(axes.items()) if isinstance(axes, Mapping) else axes
  if layers is not None:
    pairs = (('layers', layers), *pairs)
  shape = tuple(size for _, size in pairs)
  value = jnp.full(shape, mean, jnp.float32)
  if stddev:
    value += stddev * jax.random.normal(rngs.params(), shape, jnp.float32)
  return kind(
    value,
    logical_axes=tuple(name for name, _ in pairs),
    init_mean=float(mean),
    init_stddev=float(stddev),
  )


def align(parameter: Array, x: Array) -> Array:
  """The parameter with leading axes of size 1, to the rank of x."""
  return jnp.expand_dims(parameter, tuple(range(x.ndim - parameter.ndim)))


def dropout(x: Array, rate: float, key: Key[Array, ''] | None) -> Array:
  """Zeroes entries with probability `rate`, scaling the rest by 1/(1-rate).

  Without a key, or with rate 0, returns x: evaluation passes no key.
  """
  if key is None or rate == 0.0:
    return x
  kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def fold(key: Key[Array, ''] | None, index: int) -> Key[Array, ''] | None:
  """The index-th child of a key; None stays None."""
  return None if key is None else jax.random.fold_in(key, index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contract(
  x: Float[Array, '...'], kernel: Float[Array, '...'], axes: int, dtype: str
) -> Float[Array, '...']:
  """jnp.tensordot(x, kernel, axes) with sums in `dtype`.

  Its kernel gradient is one product over the leading axes. JAX's own rule asks
  for the transposed product, which XLA on a CPU answers by recomputing the
  incoming gradient element by element in transposed order: twice the time of
  a whole feed-forward layer.
  """
  return jnp.tensordot(x, kernel, axes, preferred_element_type=dtype)


def _contract_forward(x, kernel, axes, dtype):
  return contract(x, kernel, axes, dtype), (x, kernel)


def _contract_backward(axes, dtype, residuals, gradient):
  x, kernel = residuals
  gradient = gradient.astype(x.dtype)
  leading = tuple(range(x.ndim - axes))
  outputs = kernel.ndim - axes
  kernel_gradient = jax.lax.dot_general(
    x,
    gradient,
    ((leading, leading), ((), ())),
    preferred_element_type=jnp.float32,
  )
  x_gradient = jax.lax.dot_general(
    gradient,
    kernel,
    (
      (
        tuple(range(gradient.ndim - outputs, gradient.ndim)),
        tuple(range(axes, kernel.ndim)),
      ),
      ((), ()),
    ),
  )
  return x_gradient, kernel_gradient.astype(kernel.dtype)


contract.defvjp(_contract_forward, _contract_backward)


class Dense(nnx.Module):
  """A linear map over named axes, optionally with a bias and LoRA factors.

  The kernel has the input axes followed by the output axes, for example
  {'embed': D} -> {'heads': H, 'kv': K} is a [D,H,K] kernel and maps [...,D]
  to [...,H,K]. `models.lora` adds `lora_a` [*inputs, r] and `lora_b`
  [r, *outputs]; the map is then x W + scale (x A) B.
  """

  def __init__(
    self,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    *,
    rngs: nnx.Rngs,
    stddev: float | None = None,
    use_bias: bool = False,
    dtype: str = 'float32',
    output_dtype: str | None = None,
    layers: int | None = None,
  ):
    """Draws the kernel.

    Args:
      inputs: logical names and sizes of the contracted axes.
      outputs: names and sizes of the produced axes.
      rngs: gives the `params` stream.
      stddev: of the kernel; by default fan_in ** -0.5, which keeps unit
        variance.
      use_bias: adds a bias over the output axes, zero at first.
      dtype: of the factors.
      output_dtype: of the products' sums and the result; `dtype` by default.
      layers: size of the leading `layers` axis, or None.
    """
    fan_in = math.prod(inputs.values())
    pairs = (*inputs.items(), *outputs.items())
    if stddev is None:
      stddev = fan_in**-0.5
    self.kernel = normal_parameter(rngs, pairs, stddev, layers=layers)
    self.bias = (
      normal_parameter(rngs, outputs, 0.0, layers=layers) if use_bias else None
    )
    self.num_inputs = len(inputs)
    self.dtype = dtype
    self.output_dtype = output_dtype or dtype
    self.lora_a: nnx.LoRAParam | None = nnx.data(None)
    self.lora_b: nnx.LoRAParam | None = nnx.data(None)
    self.lora_scale = 0.0
    self.unmerged: nnx.Variable | None = nnx.data(None)

  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    x = x.astype(self.dtype)
    y = self._contract(x, self.kernel[...])
    # While LoRA is merged the kernel already holds its product.
    if self.lora_a is not None and self.unmerged is None:
      low_rank = self._contract(x, self.lora_a[...])
      y += self.lora_scale * jnp.tensordot(
        low_rank.astype(self.dtype), self.lora_b[...].astype(self.dtype), 1
      )
    if self.bias is not None:
      y += align(self.bias[...].astype(y.dtype), y)
    return y

  def _contract(self, x: Array, kernel: Array) -> Array:
    kernel = kernel.astype(self.dtype)
    return contract(x, kernel, self.num_inputs, self.output_dtype)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale, computed in float32.

  With `unit_offset` the factor is 1 + scale (Gemma), scale being zero at
  first: the same function of parameters that decay towards 0 rather than 1.
  """

  def __init__(
    self,
    width: int,
    epsilon: float,
    *,
    rngs: nnx.Rngs,
    layers: int | None = None,
    axis: str = 'embed',
    unit_offset: bool = False,
  ):
    mean = 0.0 if unit_offset else 1.0
    self.scale = normal_parameter(
      rngs, {axis: width}, 0.0, mean=mean, layers=layers
    )
    self.epsilon = epsilon
    self.unit_offset = unit_offset

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    y = x.astype(jnp.float32)
    variance = jnp.mean(y * y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + self.epsilon)
    scale = align(self.scale[...], y)
    y *= 1.0 + scale if self.unit_offset else scale
    return y.astype(x.dtype)


class FeedForward(nnx.Module):
  """wo(act(wi_0 x)), or gated: wo(act(wi_0 x) * wi_1 x)."""

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    rngs: nnx.Rngs,
    activation: str,
    gated: bool,
    dtype: str = 'float32',
    layers: int | None = None,
  ):
    embed, mlp = {'embed': width}, {'mlp': hidden}
    options = dict(rngs=rngs, dtype=dtype, layers=layers)
    self.wi_0 = Dense(embed, mlp, **options)
    self.wi_1 = Dense(embed, mlp, **options) if gated else None
    self.wo = Dense(mlp, embed, **options)
    self.activation = activation

  def __call__(
    self,
    x: Float[Array, '*B D'],
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, '*B D']:
    hidden = ACTIVATIONS[self.activation](self.wi_0(x))
    if self.wi_1 is not None:
      hidden = hidden * self.wi_1(x)
    return self.wo(dropout(hidden, dropout_rate, dropout_key))


def scan_layers(
  stack: nnx.Module,
  carry: Any,
  step: Callable[[nnx.Module, Any, Any], tuple[Any, Any]],
  inputs: Any = None,
  *,
  remat: bool = False,
  unroll: int | bool = 1,
) -> tuple[Any, Any]:
  """Runs a stack of layers in order with jax.lax.scan.

  Args:
    stack: a module whose parameters have a leading `layers` axis.
    carry: what the layers hand on.
    step: (layer, carry, its slice of inputs) -> (carry, output); `layer` is
      the module with the parameters of one layer.
    inputs: a pytree with a leading `layers` axis, or None.
    remat: recompute each layer in the backward pass rather than keep its
      activations.
    unroll: layers to a loop iteration (True: all, which compiles slower and
      spares small models the loop's copies).

  Returns:
    The last carry and the outputs, stacked.
  """
  graphdef, params = nnx.split(stack)

  def body(carry, xs):
    layer_params, layer_inputs = xs
    return step(nnx.merge(graphdef, layer_params), carry, layer_inputs)

  if remat:
    body = jax.checkpoint(body, prevent_cse=False)
  return jax.lax.scan(body, carry, (params, inputs), unroll=unroll)


def layer_slice(stack: nnx.Module | nnx.List, index: int) -> nnx.Module:
  """The index-th layer of a stack as a module of its own."""
  if isinstance(stack, nnx.List):
    return stack[index]
  graphdef, params = nnx.split(stack)
  return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], params))


def unstacked(stack: nnx.Module) -> nnx.List:
  """The layers of a stack, each with parameters of its own."""
  return nnx.List([layer_slice(stack, i) for i in range(num_layers(stack))])


def num_layers(stack: nnx.Module) -> int:
  """How many layers a stack holds."""
  return jax.tree.leaves(nnx.state(stack))[0].shape[0]
