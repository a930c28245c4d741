"""A task module: P4LM's own tasks, and one that asks SeqIO about our texts."""

import json
import pathlib

from tasks import movielens

TEXTS = [
  'The quiet harbour, 1994: a thief & a detective!',
  'user: <extra_id_0> <extra_id_0> item: <extra_id_0> likes: <extra_id_99>',
  '  many   spaces\tand\nlines  ',
  'Café naïve Ünïcode – “quotes” … ½',
  '日本 and emoji 🎬 are unknown',
  'ﬁne ﬂowers № ² Ⅳ',
  '<extra_id_0>',
  'x',
]
# Past an end of sequence SeqIO's own decoder stops too.
IDS = [[5, 6, 7, 1, 8, 9], [1], [40, 41, 2, 42]]

CF_KINDS = {**movielens.CF_KINDS, 'probe': ()}
MIXTURES = movielens.MIXTURES


def register(data_dir, vocabulary_path, tokens_per_vector=1):
  import functools

  import seqio
  import tensorflow as tf

  movielens.register(data_dir, vocabulary_path, tokens_per_vector)
  vocabulary = seqio.SentencePieceVocabulary(vocabulary_path, extra_ids=100)
  seqio.TaskRegistry.add(
    'probe',
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: (
        tf.data.Dataset.from_tensor_slices({'inputs': tf.constant(TEXTS)})
      ),
      splits=('train',),
    ),
    preprocessors=[
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)
    ],
    output_features={'inputs': seqio.Feature(vocabulary, add_eos=False)},
  )
  encoded = [vocabulary.encode(text) for text in TEXTS]
  mixture = seqio.MixtureRegistry.get('movielens_warm_start')
  mixed = mixture.get_dataset(
    sequence_length={'inputs': 16, 'targets': 16},
    split='train',
    shuffle=False,
    use_cached=False,
    seed=0,
  )
  answers = {
    'soft': vocabulary.encode('<extra_id_0>')[0],
    'encoded': encoded,
    'decoded': [vocabulary.decode(ids) for ids in encoded],
    'decoded_ids': [vocabulary.decode(ids) for ids in IDS],
    'eos': {
      task: {
        name: feature.add_eos
        for name, feature in seqio.TaskRegistry.get(
          f'movielens_{task}'
        ).output_features.items()
      }
      for task in ('pitch', 'appeal')
    },
    'rates': {task.name: mixture.get_rate(task) for task in mixture.tasks},
    'mixed': [
      example['targets'].tolist()
      for example in mixed.take(3).as_numpy_iterator()
    ],
  }
  path = pathlib.Path(data_dir) / 'probe.json'
  path.write_text(json.dumps(answers))
