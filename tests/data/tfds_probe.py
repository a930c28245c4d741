"""A program: TFDS' own builders prepare MovieLens from files on this machine.

Its argument is a JSON list of [directory, line]: each line is Python that
prepares a data set, and gets the directory in place of a download. It prints
the names of all configurations that TFDS has, as JSON.
"""

import importlib.resources.abc
import json
import sys

# TFDS imports this backport, which its requirements bring no more; of it, it
# uses what the standard library has too.
sys.modules.setdefault('importlib_resources', importlib.resources)

import tensorflow_datasets as tfds  # noqa: E402
from tensorflow_datasets.core.utils import gcs_utils  # noqa: E402


def main():
  tfds.disable_progress_bar()
  gcs_utils.gcs_dataset_info_files = lambda *args, **kwargs: None
  gcs_utils.is_dataset_on_gcs = lambda *args, **kwargs: False
  manager = tfds.download.DownloadManager
  for directory, line in json.loads(sys.argv[1]):
    manager.download_and_extract = lambda self, url, here=directory: here
    exec(line, {})
  configs = tfds.builder_cls('movielens').BUILDER_CONFIGS
  print('\n' + json.dumps([config.name for config in configs]))


if __name__ == '__main__':
  main()
