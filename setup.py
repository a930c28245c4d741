"""Builds p4lm: the package, its SeqIO tasks and its gin files in one wheel.

The gin files live in `gin/` at the top of the repository and are installed as
`p4lm/_gin`. `gin/` itself must never become an importable package: it would
shadow gin-config.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
  r"^__version__ = '([^']+)'$",
  (ROOT / 'p4lm' / '__init__.py').read_text(encoding='utf-8'),
  re.MULTILINE,
).group(1)

CORE = [
  'absl-py>=2.1',
  'array-record>=0.5.1',
  'flax>=0.12',
  'gin-config>=0.5',
  'google-crc32c>=1.5',
  'grain>=0.2.12',
  # TFDS prepares data sets with it, and does not ask for it.
  'importlib-resources>=6.4',
  'jax>=0.10',
  'jaxtyping>=0.3',
  'matplotlib>=3.8',
  'msgpack>=1.0',
  'numpy>=2.0',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.11.25',
  'packaging>=24',
  'pyarrow>=17',
  'rich>=13.7',
  'safetensors>=0.5',
  'scipy>=1.13',
  # 0.2.3 with protobuf below 7 (which xmanager wants) breaks `import seqio`.
  'sentencepiece>=0.2,<0.2.3',
  'seqio>=0.0.19',
  'tensorboardX>=2.6.2',
  'tensorflow>=2.21',
  'tensorflow-datasets>=4.9.7',
  'tqdm>=4.66',
]

EXTRAS = {
  'tpu': ['jax[tpu]>=0.10'],
  'gpu': ['jax[cuda13]>=0.10'],
  'launch': ['xmanager>=0.8', 'protobuf<7'],
  'convert': ['gguf>=0.10'],
  'test': [
    'beartype>=0.21',
    'hypothesis>=6.100',
    'import-linter>=2.3',
    'pytest>=8.2',
    'pytest-xdist>=3.6',
    'ruff>=0.12',
    'setuptools>=69',
    'statsmodels>=0.14.3',
    'wheel>=0.43',
  ],
  # What launch/bench.py compares speeds with.
  'bench': [
    'faiss-cpu>=1.8',
    'implicit>=0.7',
    'irspack>=0.4',
    'torch>=2.6',
    'transformers>=4.56.1,<5',
    'trl>=0.24,<0.25',
  ],
  # Reference implementations for parity tests; they skip where these miss.
  'parity': [
    'implicit>=0.7',
    'ir-measures>=0.3',
    'irspack>=0.4',
    'torch>=2.6',
    'transformers>=4.50,<5',
  ],
}

setuptools.setup(
  name='p4lm',
  version=VERSION,
  description='Training stack for language models that recommend, in JAX',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11,<3.14',
  packages=[
    *setuptools.find_packages(
      include=['p4lm', 'p4lm.*', 'tasks', 'tasks.*'],
    ),
    'p4lm._gin',
  ],
  package_dir={'p4lm._gin': 'gin'},
  package_data={
    '': ['*.txt', '*.json', '*.jsonl', '*.html', '*.css', '*.js', '*.md'],
    'p4lm._gin': ['**/*.gin', '*.gin'],
  },
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['p4lm=p4lm.main:console_main']},
)
