"""Prompts of many lengths are padded to few."""

import numpy as np

from p4lm.data.prompts import Prompt
from p4lm.data.token_ids import TokenIds
from p4lm.writers.checkpoint import CheckpointWriter, WritingRequest


def test_mixed_prompts_have_few_shapes():
  writer = CheckpointWriter(
    graphdef=None,
    params=None,
    vocabulary=TokenIds(size=500, eos_id=1),
    cf_lookup=None,
    prompt_length=200,
    batch_size=2,
    length_bucket=16,
    pad_id=-1,
  )
  shapes = set()
  for length in range(1, 300):
    tokens = tuple(range(length))
    request = WritingRequest(Prompt('', ()), prompt_tokens=tokens)
    found = writer.features([request])['prompt_tokens']
    kept = min(length, 200)
    np.testing.assert_array_equal(found[0, :kept], tokens[:kept])
    assert (found[0, kept:] == -1).all() and (found[1] == -1).all()
    assert found.shape[1] < 2 * max(kept, 16)
    shapes.add(found.shape)
  assert shapes == {(2, n) for n in (16, 32, 64, 128, 200)}
