"""FLOPs of a language model's passes, counted on paper.

Matrix products alone are counted, a multiply-add as two: norms, softmax and
activations are a few per cent of a small model and nothing of a large one. An
embedding lookup is no product. Attention is counted as it is computed, over
every pair of a query and a key: a mask saves nothing.

The backward pass of y = x W has two products of the forward's size, one for
the gradient of x and one for that of W; a frozen W needs only the first.
Recomputation (`remat`) repeats each layer's products but its last, whose
result no gradient reads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from p4lm.models.adapter import CF_KINDS, AdapterConfig
from p4lm.models.t5_config import FEED_FORWARD, T5Config

# Query, key, value and output of an attention; the maps of a feed-forward.
_ATTENTION_TARGETS, _FEED_FORWARD_TARGETS = 4, 3


@dataclasses.dataclass(frozen=True)
class Stack:
  """A number of equal layers.

  Attributes:
    layers: how many.
    width: D of the residual stream.
    hidden: of the feed-forward.
    heads, kv_heads, head_width: of attention; fewer kv_heads share keys.
    gated: whether the feed-forward has a second input map.
    cross: whether each layer also attends to the encoder.
    remat: whether the backward pass computes each layer again.
  """

  layers: int
  width: int
  hidden: int
  heads: int
  kv_heads: int
  head_width: int
  gated: bool = True
  cross: bool = False
  remat: bool = False

  @property
  def _heads_width(self) -> int:
    return self.heads * self.head_width

  def query_maps(self) -> list[tuple[int, int]]:
    """(inputs, outputs) of an attention's maps at the queries' positions."""
    return [(self.width, self._heads_width), (self._heads_width, self.width)]

  def key_maps(self) -> list[tuple[int, int]]:
    """(inputs, outputs) of an attention's maps at the keys' positions."""
    return [(self.width, self.kv_heads * self.head_width)] * 2

  def feed_forward_maps(self) -> list[tuple[int, int]]:
    """(inputs, outputs) of the feed-forward; the layer's last product last."""
    inputs = [(self.width, self.hidden)] * (2 if self.gated else 1)
    return [*inputs, (self.hidden, self.width)]

  def pair_flops(self) -> int:
    """FLOPs of one layer's attention for one pair of a query and a key."""
    return 4 * self._heads_width


@dataclasses.dataclass(frozen=True)
class LanguageModelSizes:
  """What the FLOPs of a language model depend on.

  Attributes:
    decoder: its stacks; several where layers differ.
    encoder: the stacks that read the prompt; none for a decoder-only model,
      whose decoder reads the prompt once and then its responses.
    vocab_size: V.
  """

  decoder: tuple[Stack, ...]
  encoder: tuple[Stack, ...]
  vocab_size: int


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The shapes of a batch.

  Attributes:
    prompts: B, rows of prompts.
    rows: R, responses; B or a multiple of it.
    prompt_length, response_length: P and L, padding included.
    vectors: N, CF vectors of a prompt.
  """

  prompts: int
  rows: int
  prompt_length: int
  response_length: int
  vectors: int = 0


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of one pass, by what they are spent on.

  Attributes:
    maps: linear maps of the layers.
    attention: products of queries with keys and weights with values.
    logits: the output projection.
    adapters: maps of CF vectors, and other heads.
    low_rank: LoRA factors.
    repeated: the part of the above that recomputation repeats.
  """

  maps: float = 0.0
  attention: float = 0.0
  logits: float = 0.0
  adapters: float = 0.0
  low_rank: float = 0.0
  repeated: float = 0.0

  @property
  def total(self) -> float:
    return (
      self.maps + self.attention + self.logits + self.adapters + self.low_rank
    )

  def __add__(self, other: Flops) -> Flops:
    names = [field.name for field in dataclasses.fields(self)]
    return Flops(*(getattr(self, n) + getattr(other, n) for n in names))

  def times(self, factor: float) -> Flops:
    names = [field.name for field in dataclasses.fields(self)]
    return Flops(*(getattr(self, n) * factor for n in names))


@dataclasses.dataclass(frozen=True)
class UpdateFlops:
  """FLOPs of one training update.

  Attributes:
    forward, backward: what the model's mathematics needs.
    recomputed: what `remat` adds; work of the machine, not of the model.
  """

  forward: float
  backward: float
  recomputed: float

  @property
  def model(self) -> float:
    """Forward and backward: what MFU counts."""
    return self.forward + self.backward

  @property
  def executed(self) -> float:
    """All of it: what a compiled program has."""
    return self.model + self.recomputed


# What tells a decoder-only configuration, whatever its family.
_DECODER_ONLY = (
  'num_layers',
  'd_model',
  'd_ff',
  'num_heads',
  'num_kv_heads',
  'd_kv',
  'vocab_size',
  'remat',
)


def is_counted(config: Any) -> bool:
  """Whether `sizes_of` has a rule for a configuration of this kind."""
  return isinstance(config, T5Config) or all(
    hasattr(config, name) for name in _DECODER_ONLY
  )


def sizes_of(config: Any) -> LanguageModelSizes:
  """The sizes of a language model's configuration.

  A decoder-only model's feed-forward is taken to be gated, and its windows to
  save nothing, since attention is computed whole and masked.

  Raises:
    TypeError: a kind of configuration that has no rule here.
  """
  if isinstance(config, T5Config):
    return _encoder_decoder(config)
  if not is_counted(config):
    raise TypeError(f'no rule counts the FLOPs of a {type(config).__name__}')
  stack = Stack(
    layers=config.num_layers,
    width=config.d_model,
    hidden=config.d_ff,
    heads=config.num_heads,
    kv_heads=config.num_kv_heads,
    head_width=config.d_kv,
    remat=bool(config.remat),
  )
  return LanguageModelSizes((stack,), (), config.vocab_size)


def _encoder_decoder(config: T5Config) -> LanguageModelSizes:
  stack = Stack(
    layers=config.num_encoder_layers,
    width=config.d_model,
    hidden=config.d_ff,
    heads=config.num_heads,
    kv_heads=config.num_heads,
    head_width=config.d_kv,
    gated=FEED_FORWARD[config.feed_forward][1],
    remat=bool(config.remat),
  )
  decoder = dataclasses.replace(
    stack, layers=config.num_decoder_layers, cross=True
  )
  return LanguageModelSizes((decoder,), (stack,), config.vocab_size)


def forward_flops(
  lm: LanguageModelSizes,
  shapes: Shapes,
  *,
  adapter: AdapterConfig | None = None,
  lora_rank: int = 0,
  scored: bool = True,
) -> Flops:
  """FLOPs of reading prompts and responses by teacher forcing.

  Args:
    lm: the language model.
    shapes: of the batch.
    adapter: of the CF vectors.
    lora_rank: of factors on every map of the stacks; 0 for none.
    scored: whether the responses' logits are computed.
  """
  prompt = shapes.prompts * shapes.prompt_length
  response = shapes.rows * shapes.response_length
  total = adapter_flops(adapter, lm.decoder[0].width, shapes)
  for stack in lm.encoder:
    pairs = prompt * shapes.prompt_length
    total += _stack_flops(stack, prompt, prompt, pairs, lora_rank=lora_rank)
  for stack in lm.decoder:
    if lm.encoder:
      pairs = response * shapes.response_length
      total += _stack_flops(
        stack, response, response, pairs, lora_rank=lora_rank
      )
      if stack.cross:
        pairs = response * shapes.prompt_length
        total += _attention_flops(stack, response, prompt, pairs, lora_rank)
    else:
      positions = prompt + response
      total += _stack_flops(
        stack,
        positions,
        positions,
        decoder_only_pairs(shapes),
        lora_rank=lora_rank,
      )
  if scored:
    total += logits_flops(lm, response)
  return total


def decoder_only_pairs(shapes: Shapes) -> float:
  """Pairs of a query and a key where a decoder reads prompts and responses.

  One response to each prompt is read with it in one pass, over the keys of
  both. Several look back at a prompt that was read before.
  """
  whole = shapes.prompt_length + shapes.response_length
  if shapes.rows == shapes.prompts:
    return shapes.rows * whole**2
  own = shapes.prompts * shapes.prompt_length**2
  return own + shapes.rows * shapes.response_length * whole


def decode_flops(
  lm: LanguageModelSizes, shapes: Shapes, steps: float, *, lora_rank: int = 0
) -> Flops:
  """FLOPs of drawing `steps` tokens a row with a cache of L positions.

  The prompt has been read; a step attends to the whole cache, empty or not.
  """
  rows, total = shapes.rows, Flops()
  cached = shapes.response_length
  if not lm.encoder:
    cached += shapes.prompt_length
  for stack in lm.decoder:
    total += _stack_flops(stack, rows, rows, rows * cached, lora_rank=lora_rank)
    if stack.cross:
      # The prompt's keys and values are kept from the prefill.
      pairs = rows * shapes.prompt_length
      total += _attention_flops(stack, rows, 0, pairs, lora_rank)
  return (total + logits_flops(lm, rows)).times(steps)


def prefill_flops(
  lm: LanguageModelSizes,
  shapes: Shapes,
  *,
  adapter: AdapterConfig | None = None,
  lora_rank: int = 0,
) -> Flops:
  """FLOPs of reading prompts before the first token is drawn."""
  prompt = shapes.prompts * shapes.prompt_length
  total = adapter_flops(adapter, lm.decoder[0].width, shapes)
  pairs = prompt * shapes.prompt_length
  for stack in lm.encoder or lm.decoder:
    total += _stack_flops(stack, prompt, prompt, pairs, lora_rank=lora_rank)
  for stack in lm.decoder:
    if stack.cross:
      total += _maps_flops(stack.layers, prompt, stack.key_maps(), lora_rank)
  return total


def update_flops(forward: Flops, *, trained_share: float = 1.0) -> UpdateFlops:
  """FLOPs of an update whose loss has this forward pass.

  Args:
    forward: of the loss.
    trained_share: of the language model's parameters, those that train: the
      gradients of the others are not computed. Adapters and LoRA factors are
      taken to train.
  """
  frozen = forward.maps + forward.logits
  backward = (
    (1 + trained_share) * frozen
    + 2 * forward.attention
    + 2 * (forward.adapters + forward.low_rank)
  )
  return UpdateFlops(forward.total, backward, forward.repeated)


def adapter_flops(
  adapter: AdapterConfig | None, width: int, shapes: Shapes
) -> Flops:
  """Each vector goes through the adapters of every kind."""
  if adapter is None or not shapes.vectors:
    return Flops()
  depth = 1 if adapter.kind == 'linear' else adapter.num_layers
  sizes = [adapter.cf_width, *[adapter.hidden_width] * (depth - 1)]
  sizes.append(width * adapter.tokens_per_vector)
  products = sum(2 * a * b for a, b in zip(sizes, sizes[1:]))
  vectors = shapes.prompts * shapes.vectors
  return Flops(adapters=len(CF_KINDS) * vectors * products)


def logits_flops(lm: LanguageModelSizes, positions: float) -> Flops:
  """FLOPs of the output projection."""
  return Flops(logits=2 * positions * lm.decoder[0].width * lm.vocab_size)


def _stack_flops(stack, queries, keys, pairs, *, lora_rank=0) -> Flops:
  """Self-attention and feed-forward of every layer."""
  maps = stack.feed_forward_maps()
  ffn = _maps_flops(stack.layers, queries, maps, lora_rank, stack.remat)
  if stack.remat:
    spared = _maps_flops(stack.layers, queries, maps[-1:], 0, True)
    ffn = dataclasses.replace(ffn, repeated=ffn.repeated - spared.repeated)
  return ffn + _attention_flops(stack, queries, keys, pairs, lora_rank)


def _attention_flops(stack, queries, keys, pairs, lora_rank) -> Flops:
  products = stack.layers * pairs * stack.pair_flops()
  repeated = products if stack.remat else 0.0
  return (
    _maps_flops(
      stack.layers, queries, stack.query_maps(), lora_rank, stack.remat
    )
    + _maps_flops(stack.layers, keys, stack.key_maps(), lora_rank, stack.remat)
    + Flops(attention=products, repeated=repeated)
  )


def _maps_flops(layers, positions, maps, rank, remat=False) -> Flops:
  products = 2 * layers * positions * sum(a * b for a, b in maps)
  low_rank = 2 * layers * positions * rank * sum(a + b for a, b in maps)
  repeated = products + low_rank if remat else 0.0
  return Flops(maps=products, low_rank=low_rank, repeated=repeated)
