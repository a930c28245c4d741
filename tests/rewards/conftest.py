import pytest

from p4lm.data.vocabulary import Vocabulary

CORPUS = [
  'premise: a quiet town hides a secret hypothesis: the town is loud',
  'a young sheriff finds a map and follows it into the desert',
  'user: item: title: text: relevant: appeal: if you like slow films',
  'you will love this warm comedy about two brothers and a boat',
  'the director lets silence speak, and the ending stays with you!',
  'Space pirates; 3 heists, 1 moon. "Fun," says everyone?',
]


@pytest.fixture(name='vocabulary', scope='session')
def _vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocabulary.model'
  return Vocabulary.train(CORPUS * 3, path, size=340)
