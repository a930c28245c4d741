"""convert and infer against Transformers, from files to files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'models'))

import reference_decoders
import test_t5_parity

from p4lm.checkpoints.safetensors_files import TensorFiles
from p4lm.main import main

# Importing the reference libraries warns about their own dependencies.
pytestmark = pytest.mark.filterwarnings('ignore')

DECODERS = reference_decoders.CONFIGS
T5S = test_t5_parity.CONFIGS
# How each is stored: the type of its tensors, and the size of a shard.
STORED = {
  **{name: ('float32', '1GB') for name in (*T5S, *DECODERS)},
  't5_1_1': ('float32', '20KB'),
  'gemma_2': ('bfloat16', '1GB'),
  'llama': ('bfloat16', '10KB'),
}


def p4lm(job, output_dir, **settings):
  flags = [f'--gin.{name}={value}' for name, value in settings.items()]
  assert main([job, f'--gin.OUTPUT_DIR={output_dir}', *flags]) == 0
  return output_dir


@dataclasses.dataclass
class Converted:
  """A reference model, its files and p4lm's model directory of it."""

  name: str
  reference: object
  source: Path
  directory: Path


@pytest.fixture(scope='module', params=[*T5S, *DECODERS])
def converted(request, tmp_path_factory):
  torch = pytest.importorskip('torch', reason=test_t5_parity.MISSING)
  name = request.param
  if name in T5S:
    reference = test_t5_parity.reference_model(T5S[name])
  else:
    reference = reference_decoders.reference_model(name, DECODERS[name])
  dtype, shard = STORED[name]
  root = tmp_path_factory.mktemp(name)
  # Not reference.to(): that would round the rotary frequencies too.
  for kind in (getattr(torch, dtype), torch.float32):
    for parameter in reference.parameters():
      parameter.data = parameter.data.to(kind)
    if not (root / 'hf').exists():
      reference.save_pretrained(root / 'hf', max_shard_size=shard)
  directory = p4lm('convert', root / 'p4lm', SOURCE=root / 'hf')
  return Converted(name, reference, root / 'hf', directory)


@pytest.fixture(scope='module')
def texts():
  """Six prompts of 1 to 23 ids, and a response of up to 9 for each."""
  rng = np.random.default_rng(0)
  return [
    (
      rng.integers(2, 49, 1 + length).tolist(),
      rng.integers(2, 49, 9 - length // 4).tolist(),
    )
    for length in (0, 3, 7, 11, 15, 22)
  ]


def infer(converted, mode, requests, **settings):
  root = converted.directory.parent
  file = root / f'{mode}.jsonl'
  file.write_text('\n'.join(map(json.dumps, requests)))
  p4lm(
    'infer',
    root / mode,
    CHECKPOINT=converted.directory,
    INPUT=file,
    MODE=mode,
    BATCH_SIZE=4,
    RESPONSE_LENGTH=9,
    **settings,
  )
  lines = (root / mode / 'outputs.jsonl').read_text().splitlines()
  answers = [json.loads(line) for line in lines]
  assert [a['error'] for a in answers] == [None] * len(requests)
  return answers


def reference_logps(reference, prompt, response):
  import torch

  with torch.no_grad():
    if reference.config.is_encoder_decoder:
      shifted = torch.tensor([[0, *response[:-1]]])
      logits = reference(
        input_ids=torch.tensor([prompt]), decoder_input_ids=shifted
      ).logits[0]
    else:
      logits = reference(torch.tensor([prompt + response])).logits[0]
      logits = logits[len(prompt) - 1 : -1]
    logps = torch.log_softmax(logits, -1).numpy()
  return logps[np.arange(len(response)), response]


def test_scores_equal_the_reference(converted, texts):
  requests = [
    {'custom_id': str(i), 'prompt_tokens': p, 'response_tokens': r}
    for i, (p, r) in enumerate(texts)
  ]
  answers = infer(converted, 'score', requests)
  for (prompt, response), answer in zip(texts, answers):
    wanted = reference_logps(converted.reference, prompt, response)
    np.testing.assert_allclose(answer['logps'], wanted, atol=1e-4, rtol=0)
    assert answer['tokens'] == response and answer['text'] is None


def test_greedy_tokens_equal_the_reference(converted, texts):
  import torch

  requests = [
    {'custom_id': str(i), 'prompt_tokens': p} for i, (p, _) in enumerate(texts)
  ]
  answers = infer(converted, 'generate', requests, GREEDY=True)
  reference = converted.reference
  for (prompt, _), answer in zip(texts, answers):
    wanted = reference.generate(
      torch.tensor([prompt]),
      do_sample=False,
      num_beams=1,
      max_new_tokens=9,
      pad_token_id=0,
      eos_token_id=1,
    )[0].tolist()
    skipped = 1 if reference.config.is_encoder_decoder else len(prompt)
    assert answer['tokens'] == wanted[skipped:]


def test_converting_back_gives_the_same_bits(converted):
  back = p4lm(
    'convert',
    converted.directory.parent / 'back',
    SOURCE=converted.directory,
    FORMAT='hf',
    **{'convert.shard_gigabytes': 1e-5},
  )
  before, after = TensorFiles(converted.source), TensorFiles(back)
  assert before.places.keys() == after.places.keys()
  for name, place in before.places.items():
    assert after.places[name].dtype == place.dtype
    assert after.read(name).tobytes() == before.read(name).tobytes(), name
  assert len(list(back.glob('*.safetensors'))) > 1
  kept = json.loads((back / 'config.json').read_text())
  assert kept == json.loads((converted.source / 'config.json').read_text())


def test_transformers_read_what_we_write(converted):
  """Without what was kept of the source: config.json is p4lm's own."""
  import transformers

  from p4lm.runs import conversion

  source = conversion.open_source(str(converted.directory), to='hf')
  source = dataclasses.replace(source, origin=None)
  ours = converted.directory.parent / 'ours'
  ours.mkdir()
  conversion.write_hf(ours, source, dtype='F32', shard_bytes=2**20)
  is_t5 = converted.name in T5S
  auto = (
    transformers.AutoModelForSeq2SeqLM
    if is_t5
    else (transformers.AutoModelForCausalLM)
  )
  again, report = auto.from_pretrained(
    ours, output_loading_info=True, attn_implementation='eager'
  )
  assert not any(report.values()), report
  prompt, response = [3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]
  np.testing.assert_allclose(
    reference_logps(again.eval(), prompt, response),
    reference_logps(converted.reference, prompt, response),
    atol=1e-6,
  )
