"""The sizes and switches of a decoder-only model."""

import dataclasses

from p4lm.errors import UserError
from p4lm.models.config_json import JsonConfig
from p4lm.models.layers import ACTIVATIONS
from p4lm.models.library_attention import IMPLEMENTATIONS, OWN
from p4lm.models.rope import RopeScaling

_SIZES = (
  'vocab_size',
  'd_model',
  'd_ff',
  'num_layers',
  'num_heads',
  'num_kv_heads',
  'd_kv',
  'global_every',
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(JsonConfig):
  """The sizes and switches of a decoder-only model.

  What sets the families apart (the defaults are Llama's):

                          Llama 3   Gemma 1   Gemma 2   Gemma 3
    activation            silu      gelu      gelu      gelu
    unit_offset_norm                x         x         x
    scale_embeddings                x         x         x
    tie_embeddings        or not    x         x         x
    post_norms                                x         x
    attention_soft_cap, final_soft_cap        x
    global_every          1         1         2         6
    qk_norm                                             x

  Attributes:
    vocab_size: rows of the embedding table; at least the tokenizer's size.
    d_model: width D of the residual stream.
    d_ff: hidden width of the gated feed-forward layers.
    num_layers: layers.
    num_heads: heads of queries.
    num_kv_heads: heads of keys and values; divides num_heads.
    d_kv: width of a head, even; num_heads * d_kv need not be d_model.
    activation: 'silu' or 'gelu', of the gate.
    unit_offset_norm: norms multiply by 1 + their scale.
    post_norms: a norm behind attention and feed-forward too.
    qk_norm: a norm of each query and key.
    scale_embeddings: word embeddings are multiplied by the root of d_model.
    tie_embeddings: logits from the embedding table.
    query_scalar: scores are divided by its root; 0 for d_kv.
    attention_soft_cap: bound of the scores, 0 for none.
    final_soft_cap: bound of the logits, 0 for none.
    sliding_window: tokens that a local layer sees, its own included; 0 for a
      model of global layers alone.
    global_every: with a window, layer i is global where this divides i + 1.
    rope_base: of global layers.
    rope_local_base: of local layers; 0 for rope_base.
    rope_scaling: of global layers, or None.
    layer_norm_epsilon: of RMS norm.
    bidirectional_prompt: prompt tokens see each other both ways; responses
      are causal always.
    pad_id: what prompts are right-padded with; -1 where 0 is a word.
    dropout_rate: of what the blocks add, applied where a key is given.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters, norms,
      softmax and logits are float32 always.
    attention: of whole sequences: 'own', or jax.nn.dot_product_attention by
      'xla' or 'cudnn' (NVIDIA GPUs, bfloat16; 'xla' elsewhere).
    remat: recompute each layer in the backward pass.
    scan_unroll: layers to an iteration of the loop over layers; 0 for all.
    family: 'decoder', which tells it from a T5Config in JSON.
  """

  vocab_size: int = 32128
  d_model: int = 512
  d_ff: int = 1024
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: int = 8
  d_kv: int = 64
  activation: str = 'silu'
  unit_offset_norm: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  scale_embeddings: bool = False
  tie_embeddings: bool = False
  query_scalar: float = 0.0
  attention_soft_cap: float = 0.0
  final_soft_cap: float = 0.0
  sliding_window: int = 0
  global_every: int = 1
  rope_base: float = 10000.0
  rope_local_base: float = 0.0
  rope_scaling: RopeScaling | None = None
  layer_norm_epsilon: float = 1e-6
  bidirectional_prompt: bool = False
  pad_id: int = 0
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  attention: str = OWN
  remat: bool = False
  scan_unroll: int = 1
  family: str = 'decoder'

  def __post_init__(self):
    for name in _SIZES:
      self._require(name, getattr(self, name) > 0, 'a positive integer')
    self._require(
      'num_kv_heads',
      self.num_heads % self.num_kv_heads == 0,
      f'a divisor of num_heads {self.num_heads}',
    )
    self._require('d_kv', self.d_kv % 2 == 0, 'even, for rotary positions')
    for name in ('attention_soft_cap', 'final_soft_cap', 'sliding_window'):
      self._require(name, getattr(self, name) >= 0, 'at least 0 (0: none)')
    self._require('rope_base', self.rope_base > 1, 'above 1')
    choices = {
      'activation': tuple(ACTIVATIONS),
      'dtype': ('float32', 'bfloat16'),
      'attention': IMPLEMENTATIONS,
      'family': ('decoder',),
    }
    for name, options in choices.items():
      wanted = f'one of {", ".join(options)}'
      self._require(name, getattr(self, name) in options, wanted)
    for name in ('attention_soft_cap', 'dropout_rate'):
      self._require(
        'attention',
        self.attention == OWN or not getattr(self, name),
        f'{OWN!r} where {name} is above 0',
      )
    self._require(
      'dropout_rate', 0 <= self.dropout_rate < 1, 'a number in [0, 1)'
    )

  @property
  def attention_scale(self) -> float:
    """Factor of the scores."""
    return (self.query_scalar or self.d_kv) ** -0.5

  @property
  def embedding_stddev(self) -> float:
    """Of the entries of a word embedding as it enters the first layer."""
    return 1.0 if self.scale_embeddings else self.d_model**-0.5

  def is_local(self, layer: int) -> bool:
    """Whether a layer has the sliding window."""
    return self.sliding_window > 0 and (layer + 1) % self.global_every != 0

  def _require(self, name: str, holds: bool, wanted: str) -> None:
    if not holds:
      raise UserError(
        f'DecoderConfig.{name} is {getattr(self, name)!r}; it must be {wanted}.'
      )
