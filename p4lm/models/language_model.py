"""The language models that a recommender may have, told apart by their sizes.

Every one of them has `token_embedder`, `encode`, `decode_hidden`, `read` (which
is both), `logits`, `start_cache` and `decode_step` with the signatures of
`models.t5.T5`.
"""

from flax import nnx

from p4lm.models.decoder_only import (
  DecoderConfig,
  DecoderOnly,
  PromptKeys,
  ResponseCache,
)
from p4lm.models.t5 import T5, DecodeCache, Encoded, T5Config

# The first is what JSON without a family means.
LMConfig = T5Config | DecoderConfig
LanguageModel = T5 | DecoderOnly
EncodedPrompts = Encoded | PromptKeys
Cache = DecodeCache | ResponseCache

_MODULES = {T5Config: T5, DecoderConfig: DecoderOnly}


def make_language_model(config: LMConfig, *, rngs: nnx.Rngs) -> LanguageModel:
  """The model of these sizes."""
  return _MODULES[type(config)](config, rngs=rngs)
