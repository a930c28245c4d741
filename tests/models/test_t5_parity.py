"""T5 1.0 and 1.1 against Transformers with the same random weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.decoding.scoring import score
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.t5 import T5Config
from p4lm.partitioning.build import build_model

# Importing the reference libraries warns about their own dependencies.
pytestmark = pytest.mark.filterwarnings('ignore')

MISSING = (
  'the reference implementations are absent: pip install torch transformers'
)
T5_1_1 = T5Config(
  vocab_size=50,
  d_model=20,
  d_ff=28,
  num_heads=3,
  d_kv=5,
  num_encoder_layers=3,
  num_decoder_layers=2,
  relative_attention_num_buckets=12,
  relative_attention_max_distance=20,
)
CONFIGS = {
  't5_1_1': T5_1_1,
  't5_1_0': dataclasses.replace(
    T5_1_1, feed_forward='relu', tie_embeddings=True
  ),
}
NO_VECTORS = {
  'cf_embeddings': jnp.zeros((4, 0, 1)),
  'cf_kind_ids': jnp.zeros((4, 0), jnp.int32),
}


def reference_model(config):
  """A Transformers T5 of these sizes whose weights are all random."""
  torch = pytest.importorskip('torch', reason=MISSING)
  transformers = pytest.importorskip('transformers', reason=MISSING)
  torch.manual_seed(0)
  feed_forward = {'gated-gelu': 'gated-gelu', 'relu': 'relu'}
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.d_model,
      d_ff=config.d_ff,
      num_heads=config.num_heads,
      d_kv=config.d_kv,
      num_layers=config.num_encoder_layers,
      num_decoder_layers=config.num_decoder_layers,
      relative_attention_num_buckets=config.relative_attention_num_buckets,
      relative_attention_max_distance=config.relative_attention_max_distance,
      dropout_rate=0.1,
      feed_forward_proj=feed_forward[config.feed_forward],
      tie_word_embeddings=config.tie_embeddings,
      decoder_start_token_id=0,
    )
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def read_weights(model, config):
  """The reference's weights by p4lm's parameter names."""
  source = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  heads = (config.num_heads, config.d_kv)
  names = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}

  def projection(stack, layers, place, name):
    stacked = []
    for layer in range(layers):
      weight = source[f'{stack}.block.{layer}.layer.{place}.{name}.weight'].T
      if name.endswith('.o'):
        weight = weight.reshape(*heads, -1)
      elif 'Attention' in name:
        weight = weight.reshape(-1, *heads)
      stacked.append(weight)
    return np.stack(stacked)

  weights = {'token_embedder/embedding': source['shared.weight']}
  if not config.tie_embeddings:
    weights['logits_dense/kernel'] = source['lm_head.weight'].T
  stacks = {
    'encoder': (config.num_encoder_layers, {'attention': 'SelfAttention'}),
    'decoder': (
      config.num_decoder_layers,
      {'self_attention': 'SelfAttention', 'cross_attention': 'EncDecAttention'},
    ),
  }
  gated = config.feed_forward == 'gated-gelu'
  matrices = ['wi_0', 'wi_1', 'wo'] if gated else ['wi_0', 'wo']
  for stack, (layers, attentions) in stacks.items():
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
    weights[f'{stack}/relative_bias/embedding'] = source[bias + '.weight']
    norm = source[f'{stack}.final_layer_norm.weight']
    weights[f'{stack}/final_norm/scale'] = norm
    places = [*attentions, 'ffn']
    for place, module in enumerate(places):
      norms = f'{stack}.block.%d.layer.{place}.layer_norm.weight'
      weights[f'{stack}/layers/{module}_norm/scale'] = np.stack(
        [source[norms % layer] for layer in range(layers)]
      )
    for place, (module, theirs) in enumerate(attentions.items()):
      for ours, short in names.items():
        weights[f'{stack}/layers/{module}/{ours}/kernel'] = projection(
          stack, layers, place, f'{theirs}.{short}'
        )
    for matrix in matrices:
      theirs = 'wi' if not gated and matrix == 'wi_0' else matrix
      weights[f'{stack}/layers/ffn/{matrix}/kernel'] = projection(
        stack, layers, len(attentions), f'DenseReluDense.{theirs}'
      )
  return {f'lm/{name}': value for name, value in weights.items()}


@dataclasses.dataclass
class Pair:
  """The two implementations of one model."""

  reference: object
  graphdef: nnx.GraphDef
  state: nnx.State
  config: T5Config


@pytest.fixture(scope='module', params=list(CONFIGS))
def pair(request):
  """The reference and p4lm's model with its weights."""
  config = CONFIGS[request.param]
  reference = reference_model(config)
  recommender = RecommenderConfig(lm=config, adapter=None, soft_token_id=49)
  make = lambda: Recommender(recommender, rngs=nnx.Rngs(0))
  graphdef, state = build_model(make)
  weights = read_weights(reference, config)
  flat = dict(nnx.to_flat_state(state))
  assert {'/'.join(map(str, path)) for path in flat} == set(weights)
  for path, variable in flat.items():
    value = weights['/'.join(map(str, path))]
    assert variable.get_value().shape == value.shape, path
    variable.set_value(jnp.asarray(value))
  return Pair(reference, graphdef, nnx.from_flat_state(flat), config)


@pytest.fixture(scope='module')
def prompts():
  """Four prompts of up to 37 tokens; the rows end in 0, 5, 20 and 36 pads."""
  tokens = np.random.default_rng(0).integers(2, 50, (4, 37))
  for row, pads in enumerate((0, 5, 20, 36)):
    tokens[row, 37 - pads :] = 0
  return tokens


@pytest.fixture(scope='module')
def responses():
  """Responses longer than the position bias tells apart."""
  return np.random.default_rng(1).integers(2, 50, (4, 31))


def reference_logits(pair, prompts, responses):
  import torch

  shifted = np.pad(responses[:, :-1], ((0, 0), (1, 0)))
  with torch.no_grad():
    return pair.reference(
      input_ids=torch.tensor(prompts),
      attention_mask=torch.tensor(prompts != 0),
      decoder_input_ids=torch.tensor(shifted),
    ).logits.numpy()


def test_logits_equal_the_reference(pair, prompts, responses):
  @jax.jit
  def logits(state, prompts, responses):
    model = nnx.merge(pair.graphdef, state)
    return model(prompts, responses, *NO_VECTORS.values())

  ours = logits(pair.state, jnp.asarray(prompts), jnp.asarray(responses))
  theirs = reference_logits(pair, prompts, responses)
  assert np.abs(theirs).max() > 1, 'the logits are far from zero'
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_scores_equal_the_reference(pair, prompts, responses):
  import torch

  batch = {'prompt_tokens': jnp.asarray(prompts), **NO_VECTORS}
  mask = jnp.ones(responses.shape, bool)
  ours = score(pair.graphdef, pair.state, batch, jnp.asarray(responses), mask)
  logits = torch.tensor(reference_logits(pair, prompts, responses))
  theirs = torch.log_softmax(logits, -1).numpy()
  theirs = np.take_along_axis(theirs, responses[..., None], -1)[..., 0]
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_greedy_tokens_equal_the_reference(pair, prompts):
  import torch

  length = 12
  batch = {'prompt_tokens': jnp.asarray(prompts), **NO_VECTORS}

  def ours(eos_id):
    config = SamplerConfig(max_length=length, greedy=True)
    key = jax.random.key(0)
    return sample(pair.graphdef, pair.state, batch, key, config, eos_id)

  def theirs(eos_id):
    tokens = pair.reference.generate(
      torch.tensor(prompts),
      attention_mask=torch.tensor(prompts != 0),
      do_sample=False,
      num_beams=1,
      max_new_tokens=length,
      eos_token_id=eos_id,
      pad_token_id=0,
    ).numpy()[:, 1:]
    return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))

  free = theirs(1)
  # A token that the model does say stands in for EOS, so that rows end early
  # and at different lengths.
  eos_id = int(free[0, 3])
  for eos in (1, eos_id):
    np.testing.assert_array_equal(ours(eos).response_tokens, theirs(eos))
  assert not ours(eos_id).response_mask.all()
