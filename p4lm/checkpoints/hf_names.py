"""Which tensor of a Hugging Face checkpoint each parameter is.

Both sides hold the same numbers; what differs is their names, that layers are
stacked here and numbered there, and that a linear map is [inputs, outputs]
here and [outputs, inputs] there, heads and their width being one axis there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from p4lm.errors import UserError
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.language_model import LMConfig
from p4lm.models.t5_config import FEED_FORWARD, T5Config


@dataclasses.dataclass(frozen=True)
class TensorName:
  """A parameter's name there.

  Attributes:
    pattern: the name, with {i} for a layer's number where layers are stacked.
    linear: whether it is a linear map, which is transposed.
  """

  pattern: str
  linear: bool = False

  @property
  def stacked(self) -> bool:
    return '{i}' in self.pattern

  def of_layers(self, num_layers: int) -> list[str]:
    """The tensors that make up the parameter, in the order of its layers."""
    if not self.stacked:
      return [self.pattern]
    return [self.pattern.format(i=i) for i in range(num_layers)]


def tensor_names(config: LMConfig) -> Mapping[str, TensorName]:
  """{parameter of the language model: its tensor}."""
  if isinstance(config, T5Config):
    return dict(_t5(config))
  return dict(_decoder(config))


def aliases(config: LMConfig) -> frozenset[str]:
  """Tensors that some files hold besides, which nothing reads.

  Copies of the embedding table, and a bias of T5 1.0's that its own code
  passes over.
  """
  if isinstance(config, T5Config):
    names = {
      'encoder.embed_tokens.weight',
      'decoder.embed_tokens.weight',
      'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
    }
    return frozenset(names | ({'lm_head.weight'} & _tied(config)))
  return frozenset(_tied(config))


def _tied(config: LMConfig) -> set[str]:
  return {'lm_head.weight'} if config.tie_embeddings else set()


def _decoder(config: DecoderConfig) -> Iterator[tuple[str, TensorName]]:
  layer, there = 'decoder/layers', 'model.layers.{i}'
  yield 'token_embedder/embedding', TensorName('model.embed_tokens.weight')
  yield 'decoder/final_norm/scale', TensorName('model.norm.weight')
  norms = {
    'attention_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm',
  }
  if config.post_norms:
    norms |= {
      'attention_post_norm': 'post_attention_layernorm',
      'ffn_norm': 'pre_feedforward_layernorm',
      'ffn_post_norm': 'post_feedforward_layernorm',
    }
  if config.qk_norm:
    norms |= {'query_norm': 'self_attn.q_norm', 'key_norm': 'self_attn.k_norm'}
  for ours, theirs in norms.items():
    yield f'{layer}/{ours}/scale', TensorName(f'{there}.{theirs}.weight')
  maps = {
    'attention/query': 'self_attn.q_proj',
    'attention/key': 'self_attn.k_proj',
    'attention/value': 'self_attn.v_proj',
    'attention/out': 'self_attn.o_proj',
    'ffn/wi_0': 'mlp.gate_proj',
    'ffn/wi_1': 'mlp.up_proj',
    'ffn/wo': 'mlp.down_proj',
  }
  for ours, theirs in maps.items():
    name = TensorName(f'{there}.{theirs}.weight', linear=True)
    yield f'{layer}/{ours}/kernel', name
  if not config.tie_embeddings:
    yield 'logits_dense/kernel', TensorName('lm_head.weight', linear=True)


def _t5(config: T5Config) -> Iterator[tuple[str, TensorName]]:
  if config.relative_bias_per_layer:
    raise UserError(
      'each layer of this model has a position bias of its own, which has no '
      "place in Hugging Face's T5; FORMAT t5x has one"
    )
  yield 'token_embedder/embedding', TensorName('shared.weight')
  if not config.tie_embeddings:
    yield 'logits_dense/kernel', TensorName('lm_head.weight', linear=True)
  attentions = {
    'encoder': {'attention': 'SelfAttention'},
    'decoder': {
      'self_attention': 'SelfAttention',
      'cross_attention': 'EncDecAttention',
    },
  }
  _, gated = FEED_FORWARD[config.feed_forward]
  matrices = {'wi_0': 'wi_0' if gated else 'wi', 'wo': 'wo'}
  if gated:
    matrices['wi_1'] = 'wi_1'
  for stack, modules in attentions.items():
    block = f'{stack}.block.{{i}}.layer'
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
    yield f'{stack}/relative_bias/embedding', TensorName(f'{bias}.weight')
    final = TensorName(f'{stack}.final_layer_norm.weight')
    yield f'{stack}/final_norm/scale', final
    for place, ours in enumerate([*modules, 'ffn']):
      norm = TensorName(f'{block}.{place}.layer_norm.weight')
      yield f'{stack}/layers/{ours}_norm/scale', norm
    for place, (ours, theirs) in enumerate(modules.items()):
      for part in ('query', 'key', 'value', 'out'):
        name = f'{block}.{place}.{theirs}.{part[0]}.weight'
        yield (
          f'{stack}/layers/{ours}/{part}/kernel',
          TensorName(name, linear=True),
        )
    for ours, theirs in matrices.items():
      name = f'{block}.{len(modules)}.DenseReluDense.{theirs}.weight'
      yield f'{stack}/layers/ffn/{ours}/kernel', TensorName(name, linear=True)
