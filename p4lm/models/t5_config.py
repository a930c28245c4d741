"""The sizes of a T5 model."""

import dataclasses
from typing import ClassVar

from p4lm.errors import UserError
from p4lm.models.config_json import JsonConfig
from p4lm.models.library_attention import IMPLEMENTATIONS, OWN

# Feed-forward kind -> activation and whether it is gated.
FEED_FORWARD = {'gated-gelu': ('gelu', True), 'relu': ('relu', False)}


@dataclasses.dataclass(frozen=True)
class T5Config(JsonConfig):
  """The sizes of a T5 model.

  Attributes:
    vocab_size: rows of the embedding table; at least the tokenizer's size.
    d_model: width D of the residual stream.
    d_ff: hidden width of the feed-forward layers.
    num_heads: attention heads.
    d_kv: width of a head; num_heads * d_kv need not be d_model.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    relative_attention_num_buckets: of the position bias.
    relative_attention_max_distance: from here all distances share a bucket.
    relative_bias_per_layer: each layer has a position bias of its own, as in
      T5X's scalable_t5; else a stack shares one.
    dropout_rate: applied where a key is given.
    layer_norm_epsilon: of RMS norm.
    feed_forward: 'gated-gelu' (1.1) or 'relu' (1.0).
    tie_embeddings: logits from the embedding table (1.0).
    dtype: of the computation, 'float32' or 'bfloat16'; parameters, norms,
      softmax and logits are float32 always.
    attention: of whole sequences: 'own', or jax.nn.dot_product_attention by
      'xla' or 'cudnn' (NVIDIA GPUs, bfloat16; 'xla' elsewhere).
    remat: recompute each layer in the backward pass.
    scan_unroll: layers to an iteration of the loop over layers; 0 for all.
      Loops compile faster, unrolled layers run faster where they are small.
    family: 't5', which tells it from other models' sizes in JSON.
  """

  vocab_size: int = 32128
  d_model: int = 512
  d_ff: int = 1024
  num_heads: int = 6
  d_kv: int = 64
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False
  dropout_rate: float = 0.0
  layer_norm_epsilon: float = 1e-6
  feed_forward: str = 'gated-gelu'
  tie_embeddings: bool = False
  dtype: str = 'float32'
  attention: str = OWN
  remat: bool = False
  scan_unroll: int = 1
  family: str = 't5'

  # Of the entries of a word embedding, and what prompts are padded with.
  embedding_stddev: ClassVar[float] = 1.0
  pad_id: ClassVar[int] = 0

  def __post_init__(self):
    for name in ('vocab_size', 'd_model', 'd_ff', 'num_heads', 'd_kv'):
      _require(self, name, getattr(self, name) > 0, 'a positive integer')
    _require(
      self,
      'feed_forward',
      self.feed_forward in FEED_FORWARD,
      f'one of {", ".join(FEED_FORWARD)}',
    )
    _require(self, 'family', self.family == 't5', "'t5'")
    dtypes = ('float32', 'bfloat16')
    _require(self, 'dtype', self.dtype in dtypes, f'one of {dtypes}')
    names = ', '.join(IMPLEMENTATIONS)
    _require(
      self, 'attention', self.attention in IMPLEMENTATIONS, f'one of {names}'
    )
    _require(
      self,
      'attention',
      self.attention == OWN or not self.dropout_rate,
      f'{OWN!r} where dropout_rate is above 0',
    )
    _require(
      self, 'dropout_rate', 0 <= self.dropout_rate < 1, 'a number in [0, 1)'
    )


def _require(config: T5Config, name: str, holds: bool, wanted: str) -> None:
  if not holds:
    raise UserError(
      f'T5Config.{name} is {getattr(config, name)!r}; it must be {wanted}.'
    )
