"""Converts checkpoints: from Hugging Face, GGUF and T5X to p4lm, and back.

  SOURCE          OUTPUT_DIR by FORMAT
  HF directory    p4lm: a model directory that every job takes
  GGUF file       hf:   config.json and safetensors
  T5X checkpoint  t5x:  T5X's own layout
  p4lm model

Everything is compared by names and shapes before the first tensor is read, and
read and written one parameter at a time. Of a p4lm model the language model is
written, with what LoRA learned merged into its weights; adapters are left out.
"""

from __future__ import annotations

import logging
from pathlib import Path

import tqdm

from p4lm import output_directory
from p4lm.errors import UserError
from p4lm.runs import conversion

FORMATS = ('p4lm', 'hf', 't5x')


def convert(
  *,
  source: str,
  output_dir: str,
  format: str = 'p4lm',
  vocabulary: str | None = None,
  layout: str = 't5',
  prompt_length: int = 512,
  response_length: int = 128,
  dtype: str | None = None,
  shard_gigabytes: float = 2.0,
) -> None:
  """Converts one model; run again after it is done, it does nothing.

  Args:
    source: an HF directory, a GGUF file, a T5X checkpoint or a p4lm model
      directory.
    output_dir: gets the model.
    format: 'p4lm', 'hf' or 't5x'.
    vocabulary: a SentencePiece model, where the source has none of its own.
    layout: of t5x: 't5', or 'scalable_t5' whose layers are stacked.
    prompt_length, response_length: what the model's card says; jobs may take
      others.
    dtype: for p4lm the type of the computation, 'float32' (the default) or
      'bfloat16'; for hf the type of the tensors, 'F32', 'BF16' or 'F16' (by
      default what they were).
    shard_gigabytes: size of an hf file at most.
  Raises:
    UserError: a source that is damaged, of another architecture or not what
      its own sizes tell; every tensor that differs is named.
  """
  if format not in FORMATS:
    raise UserError(
      f'FORMAT must be one of {", ".join(FORMATS)}, got {format!r}'
    )
  found = conversion.open_source(
    source, vocabulary=vocabulary, dtype=dtype, to=format
  )
  directory = output_directory.claim(output_dir)
  if conversion.is_finished(directory, format):
    logging.info('%s was converted before', directory)
    return
  with tqdm.tqdm(total=len(found.shapes), desc=format) as progress:
    if format == 'p4lm':
      conversion.write_p4lm(
        directory,
        found,
        prompt_length=prompt_length,
        response_length=response_length,
        step_done=progress.update,
      )
    elif format == 't5x':
      conversion.write_t5x(
        directory, found, layout=layout, step_done=progress.update
      )
    else:
      conversion.write_hf(
        directory,
        found,
        dtype=dtype,
        shard_bytes=int(shard_gigabytes * 2**30),
        step_done=progress.update,
      )
  logging.info('%s -> %s', source, Path(directory))
