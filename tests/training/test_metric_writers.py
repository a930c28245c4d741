import json
import math
import os
import subprocess
import sys

from tensorboardX.proto.event_pb2 import Event

from p4lm.training.metric_writers import MetricWriter, read_metrics


def test_one_line_a_step_and_null_for_what_is_no_number(tmp_path):
  with MetricWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {'loss': 0.5})
    writer.write(2, {'loss': math.nan, 'reward': math.inf})
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {'step': 1, 'loss': 0.5},
    {'step': 2, 'loss': None, 'reward': None},
  ]
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_resuming_drops_later_steps_and_a_half_written_line(tmp_path):
  with MetricWriter(tmp_path, tensorboard=False) as writer:
    for step in (5, 10, 15):
      writer.write(step, {'loss': step / 10})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 20, "lo')
  assert [r['step'] for r in read_metrics(tmp_path)] == [5, 10, 15]
  with MetricWriter(tmp_path, tensorboard=False) as writer:
    writer.drop_after(10)
    writer.write(12, {'loss': 9.0})
  assert read_metrics(tmp_path) == [
    {'step': 5, 'loss': 0.5},
    {'step': 10, 'loss': 1.0},
    {'step': 12, 'loss': 9.0},
  ]


def test_dropping_from_a_run_that_never_logged_does_nothing(tmp_path):
  writer = MetricWriter(tmp_path / 'new')
  writer.drop_after(0)
  writer.close()
  assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_same_values_and_the_purge(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.drop_after(3)
    writer.write(4, {'loss': 0.25})
  (path,) = tmp_path.glob('events.out.tfevents*')
  events = _events(path.read_bytes())
  values = [
    (event.step, value.tag, value.simple_value)
    for event in events
    for value in event.summary.value
  ]
  assert values == [(4, 'loss', 0.25)]
  # TensorBoard forgets what it read of a run at steps from a START event on.
  starts = [event.step for event in events if event.HasField('session_log')]
  assert starts == [4]


def test_tensorboard_does_without_pytorch_where_it_is_installed(tmp_path):
  installed = tmp_path / 'installed' / 'torch.py'
  installed.parent.mkdir()
  installed.write_text("print('PyTorch was loaded')\n")
  program = f"""
from p4lm.training.metric_writers import MetricWriter
with MetricWriter({str(tmp_path / 'run')!r}) as writer:
  writer.write(1, {{'loss': 0.5}})
print('written')
import torch  # Whoever wants it still gets it.
"""
  found = subprocess.run(
    [sys.executable, '-c', program],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(installed.parent), *sys.path]),
    },
    capture_output=True,
    check=True,
    text=True,
  )
  assert found.stdout.splitlines() == ['written', 'PyTorch was loaded']
  assert list((tmp_path / 'run').glob('events.out.tfevents*'))


def _events(data):
  """TFRecord frames: length (8), checksum (4), bytes, checksum (4)."""
  events, position = [], 0
  while position < len(data):
    size = int.from_bytes(data[position : position + 8], 'little')
    body = data[position + 12 : position + 12 + size]
    events.append(Event.FromString(body))
    position += 16 + size
  return events
