"""A model with LoRA factors is converted with what they learned."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import LM

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.data.token_ids import TokenIds
from p4lm.main import main
from p4lm.models import lora
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.selection import split_trainable
from p4lm.runs import model_directory
from p4lm.training.leaf_names import named_leaves

LLAMA = DecoderConfig(
  vocab_size=64, d_model=16, d_ff=24, num_layers=3, num_heads=4,
  num_kv_heads=2, d_kv=6, activation='silu',
)  # fmt: skip
FACTORS = {'rank': 3, 'alpha': 5.0}


@pytest.fixture(params=[LM, LLAMA], ids=['t5', 'llama'])
def model(request):
  """Factors of every projection, none of them zero."""
  config = RecommenderConfig(request.param, None, soft_token_id=63)
  model = Recommender(config, rngs=nnx.Rngs(0))
  lora.apply_lora(model, **FACTORS, rngs=nnx.Rngs(1))
  keys = iter(jax.random.split(jax.random.key(2), 100))
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    if path[-1] == 'lora_b':
      value = variable.get_value()
      variable.set_value(jax.random.normal(next(keys), value.shape))
  return model


def _save(directory, model):
  directory.mkdir()
  _, trained, frozen = split_trainable(model, 'lora')
  CheckpointStore(directory / 'checkpoints').save(
    1, {'params': trained, 'frozen': frozen}
  )
  vocabulary = TokenIds(64, 1)
  card = model_directory.describe(
    model.config, task='', vocabulary=vocabulary, prompt_length=8,
    response_length=8, stage='lora', lora_config=FACTORS,
  )  # fmt: skip
  model_directory.write_card(directory, card, vocabulary)


def test_the_factors_are_merged_into_what_is_written(model, tmp_path):
  _save(tmp_path / 'lora', model)
  for source, goal, how in (('lora', 'hf', 'hf'), ('hf', 'back', 'p4lm')):
    flags = (
      f'--gin.SOURCE={tmp_path / source}',
      f'--gin.OUTPUT_DIR={tmp_path / goal}',
      f'--gin.FORMAT={how}',
    )
    assert main(['convert', *flags]) == 0
  lora.fold_lora(model)
  expected = named_leaves(nnx.state(model))
  found = named_leaves(model_directory.load_model(tmp_path / 'back').params)
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
