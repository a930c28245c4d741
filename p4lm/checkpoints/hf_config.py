"""A Hugging Face config.json as sizes of ours, and back.

What p4lm's models do not compute (biases, other rotary scalings, other
activations) is an error that names the field, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p4lm.errors import UserError
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.language_model import LMConfig
from p4lm.models.rope import RopeScaling
from p4lm.models.t5_config import T5Config

_GELU = ('gelu_pytorch_tanh', 'gelu_new')
# Their name of each size, and ours.
_DECODER_SIZES = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'd_model',
  'intermediate_size': 'd_ff',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'rms_norm_eps': 'layer_norm_epsilon',
}
_T5_SIZES = {
  'vocab_size': 'vocab_size',
  'd_model': 'd_model',
  'd_ff': 'd_ff',
  'num_heads': 'num_heads',
  'd_kv': 'd_kv',
  'num_layers': 'num_encoder_layers',
  'relative_attention_num_buckets': 'relative_attention_num_buckets',
}
_ARCHITECTURES = {
  't5': 'T5ForConditionalGeneration',
  'llama': 'LlamaForCausalLM',
  'gemma': 'GemmaForCausalLM',
  'gemma2': 'Gemma2ForCausalLM',
  'gemma3_text': 'Gemma3ForCausalLM',
}
_GEMMA = dict(activation='gelu', unit_offset_norm=True, scale_embeddings=True)


# Of Gemma 3's text model, where a config.json leaves them out.
_GEMMA_3_DEFAULTS = dict(
  vocab_size=262208,
  hidden_size=2304,
  intermediate_size=9216,
  num_hidden_layers=26,
  num_attention_heads=8,
  num_key_value_heads=4,
  head_dim=256,
  rms_norm_eps=1e-6,
  query_pre_attn_scalar=256,
  sliding_window=4096,
  rope_local_base_freq=10000.0,
)


def text_part(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
  """The language model's part of a config.json, and whether there is another.

  Gemma 3 from 4B on reads images too; its text model's fields are a table of
  their own, of which those with the usual values are left out.
  """
  if theirs.get('model_type') != 'gemma3':
    return dict(theirs), False
  text = {**_GEMMA_3_DEFAULTS, **theirs.get('text_config', {})}
  for name in ('eos_token_id', 'pad_token_id', 'bos_token_id'):
    if name in theirs:
      text[name] = theirs[name]
  architectures = [_ARCHITECTURES['gemma3_text']]
  text |= dict(model_type='gemma3_text', architectures=architectures)
  return text, True


def sizes_of(theirs: Mapping[str, Any], dtype: str = 'float32') -> LMConfig:
  """The sizes that a config.json describes.

  Args:
    theirs: its contents.
    dtype: of the computation.
  Raises:
    UserError: another architecture, a missing field, or one whose value these
      models do not compute.
  """
  kind = theirs.get('model_type')
  if kind not in _ARCHITECTURES:
    raise UserError(
      f'model_type is {kind!r}; p4lm reads {", ".join(_ARCHITECTURES)}'
    )
  try:
    if kind == 't5':
      return _t5_sizes(theirs, dtype)
    return _decoder_sizes(kind, theirs, dtype)
  except KeyError as error:
    raise UserError(f'config.json lacks {error.args[0]!r}') from error


def token_ids_of(theirs: Mapping[str, Any]) -> tuple[int, list[int]]:
  """The end-of-sequence id (-1 for none) and further ids that end a text."""
  ends = theirs.get('eos_token_id')
  ends = [ends] if isinstance(ends, int) else list(ends or [])
  return (ends[0], ends[1:]) if ends else (-1, [])


def _t5_sizes(theirs: Mapping[str, Any], dtype: str) -> T5Config:
  feed_forward = theirs.get('feed_forward_proj', 'relu')
  _require(theirs, 'feed_forward_proj', feed_forward in ('relu', 'gated-gelu'))
  gated = feed_forward == 'gated-gelu'
  _require(
    theirs,
    'dense_act_fn',
    theirs.get('dense_act_fn', 'gelu_new' if gated else 'relu')
    in (('gelu_new',) if gated else ('relu',)),
  )
  _require(
    theirs,
    'decoder_start_token_id',
    theirs.get('decoder_start_token_id', 0) in (0, None),
  )
  sizes = {ours: theirs[name] for name, ours in _T5_SIZES.items()}
  layers = theirs.get('num_decoder_layers')
  return T5Config(
    **sizes,
    num_decoder_layers=theirs['num_layers'] if layers is None else layers,
    relative_attention_max_distance=theirs.get(
      'relative_attention_max_distance', 128
    ),
    layer_norm_epsilon=theirs.get('layer_norm_epsilon', 1e-6),
    feed_forward=feed_forward,
    tie_embeddings=theirs.get('tie_word_embeddings', True),
    dtype=dtype,
  )


def _decoder_sizes(
  kind: str, theirs: Mapping[str, Any], dtype: str
) -> DecoderConfig:
  for name in ('attention_bias', 'mlp_bias', 'use_bidirectional_attention'):
    _require(theirs, name, not theirs.get(name))
  sizes = {ours: theirs[name] for name, ours in _DECODER_SIZES.items()}
  heads = theirs.get('num_key_value_heads')
  width = theirs.get('head_dim')
  if width is None:
    width = theirs['hidden_size'] // theirs['num_attention_heads']
  sizes |= dict(
    num_kv_heads=sizes['num_heads'] if heads is None else heads,
    d_kv=width,
    tie_embeddings=theirs.get('tie_word_embeddings', kind != 'llama'),
    rope_base=float(theirs.get('rope_theta', _rope_theta(kind))),
    rope_scaling=_rope_scaling(theirs),
    # Id 0 is a word of Llama's.
    pad_id=-1 if kind == 'llama' else 0,
    dtype=dtype,
  )
  if kind == 'llama':
    _require(theirs, 'hidden_act', theirs.get('hidden_act', 'silu') == 'silu')
    return DecoderConfig(**sizes)
  activation = theirs.get('hidden_activation') or 'gelu_pytorch_tanh'
  _require(theirs, 'hidden_activation', activation in _GELU)
  sizes |= _GEMMA
  if kind == 'gemma':
    return DecoderConfig(**sizes)
  every = 2 if kind == 'gemma2' else theirs.get('sliding_window_pattern', 6)
  every = _layer_pattern(theirs, every)
  sizes |= dict(
    post_norms=True,
    qk_norm=kind == 'gemma3_text',
    query_scalar=float(theirs['query_pre_attn_scalar']),
    attention_soft_cap=theirs.get('attn_logit_softcapping') or 0.0,
    final_soft_cap=theirs.get('final_logit_softcapping') or 0.0,
    sliding_window=theirs['sliding_window'],
    global_every=every,
  )
  if kind == 'gemma3_text':
    sizes['rope_local_base'] = float(theirs['rope_local_base_freq'])
  return DecoderConfig(**sizes)


def _rope_theta(kind: str) -> float:
  return 1e6 if kind == 'gemma3_text' else 1e4


def _rope_scaling(theirs: Mapping[str, Any]) -> RopeScaling | None:
  given = theirs.get('rope_scaling')
  if not given:
    return None
  kind = given.get('rope_type', given.get('type'))
  if kind == 'default':
    return None
  _require(theirs, 'rope_scaling', kind in ('linear', 'llama3'))
  if kind == 'linear':
    return RopeScaling('linear', float(given['factor']))
  return RopeScaling(
    'llama3',
    float(given['factor']),
    float(given['low_freq_factor']),
    float(given['high_freq_factor']),
    int(given['original_max_position_embeddings']),
  )


def _layer_pattern(theirs: Mapping[str, Any], every: int) -> int:
  """Every how many layers one is global, from the list of layers' kinds."""
  kinds = theirs.get('layer_types')
  if kinds is None or kinds == layer_types(len(kinds), every):
    return every
  global_at = [i + 1 for i, kind in enumerate(kinds) if kind != _LOCAL]
  every = global_at[0] if global_at else len(kinds) + 1
  wanted = layer_types(len(kinds), every)
  _require(theirs, 'layer_types', kinds == wanted)
  return every


_LOCAL, _GLOBAL = 'sliding_attention', 'full_attention'


def layer_types(num_layers: int, global_every: int) -> list[str]:
  """The kind of each layer in their words."""
  return [
    _LOCAL if (i + 1) % global_every else _GLOBAL for i in range(num_layers)
  ]


def _require(theirs: Mapping[str, Any], name: str, holds: bool) -> None:
  if not holds:
    raise UserError(
      f'config.json: {name} = {theirs.get(name)!r} is nothing that these '
      'models compute'
    )


def config_json_of(
  config: LMConfig, eos_ids: Sequence[int] = (1,)
) -> dict[str, Any]:
  """A config.json for sizes of ours.

  Raises:
    UserError: switches that belong to none of the published families.
  """
  if isinstance(config, T5Config):
    found = {name: getattr(config, ours) for name, ours in _T5_SIZES.items()}
    found |= dict(
      model_type='t5',
      num_decoder_layers=config.num_decoder_layers,
      relative_attention_max_distance=config.relative_attention_max_distance,
      layer_norm_epsilon=config.layer_norm_epsilon,
      feed_forward_proj=config.feed_forward,
      dropout_rate=config.dropout_rate,
      tie_word_embeddings=config.tie_embeddings,
      is_encoder_decoder=True,
      decoder_start_token_id=0,
      pad_token_id=0,
      eos_token_id=_ends(eos_ids),
    )
  else:
    found = _decoder_json(config, eos_ids)
  found['architectures'] = [_ARCHITECTURES[found['model_type']]]
  return found


def _decoder_json(
  config: DecoderConfig, eos_ids: Sequence[int]
) -> dict[str, Any]:
  found = {name: getattr(config, ours) for name, ours in _DECODER_SIZES.items()}
  found |= dict(
    num_key_value_heads=config.num_kv_heads,
    head_dim=config.d_kv,
    rope_theta=config.rope_base,
    attention_bias=False,
    tie_word_embeddings=config.tie_embeddings,
    eos_token_id=_ends(eos_ids),
    pad_token_id=None if config.pad_id < 0 else config.pad_id,
  )
  scaling = config.rope_scaling
  if scaling is not None:
    found['rope_scaling'] = {
      'rope_type': scaling.kind,
      'factor': scaling.factor,
    }
    if scaling.kind == 'llama3':
      found['rope_scaling'] |= {
        'low_freq_factor': scaling.low_frequency_factor,
        'high_freq_factor': scaling.high_frequency_factor,
        'original_max_position_embeddings': scaling.original_length,
      }
  if not config.unit_offset_norm:
    kind, more = 'llama', dict(hidden_act=config.activation, mlp_bias=False)
  else:
    more = dict(
      hidden_act='gelu_pytorch_tanh', hidden_activation='gelu_pytorch_tanh'
    )
    kind = 'gemma'
    if config.post_norms:
      kind = 'gemma3_text' if config.qk_norm else 'gemma2'
      more |= dict(
        query_pre_attn_scalar=config.query_scalar or config.d_kv,
        sliding_window=config.sliding_window,
        layer_types=layer_types(config.num_layers, config.global_every),
        attn_logit_softcapping=config.attention_soft_cap or None,
        final_logit_softcapping=config.final_soft_cap or None,
      )
    if kind == 'gemma3_text':
      base = config.rope_local_base or config.rope_base
      more['rope_local_base_freq'] = base
      more['sliding_window_pattern'] = config.global_every
  found |= dict(model_type=kind, **more)
  _check_same(config, sizes_of(found, config.dtype))
  return found


def _ends(eos_ids: Sequence[int]) -> int | list[int] | None:
  """As config.json has it: nothing, one id, or a list."""
  found = [i for i in eos_ids if i >= 0]
  return found if len(found) > 1 else (found or [None])[0]


# What a config.json does not tell, or what does not change the function.
_OURS_ALONE = (
  'bidirectional_prompt',
  'pad_id',
  'dropout_rate',
  'dtype',
  'attention',
  'remat',
  'scan_unroll',
  'query_scalar',
  'rope_local_base',
)


def same_function(config: LMConfig, theirs: Mapping[str, Any]) -> bool:
  """Whether a config.json describes a model of these sizes and switches."""
  return not _differences(config, sizes_of(theirs, config.dtype))


def _check_same(config: DecoderConfig, again: DecoderConfig) -> None:
  changed = _differences(config, again)
  if changed:
    raise UserError(
      'this model is of no published family, so it has no Hugging Face '
      f'form: {", ".join(changed)}'
    )


def _differences(config: LMConfig, again: LMConfig) -> list[str]:
  if type(config) is not type(again):
    return ['family']
  changed = [
    name
    for name in vars(config)
    if name not in _OURS_ALONE and getattr(config, name) != getattr(again, name)
  ]
  if isinstance(config, DecoderConfig):
    if config.attention_scale != again.attention_scale:
      changed.append('query_scalar')
    local = [c.rope_local_base or c.rope_base for c in (config, again)]
    if config.sliding_window and local[0] != local[1]:
      changed.append('rope_local_base')
  return changed
