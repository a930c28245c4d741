"""The synthetic world: ratings, texts and labels whose truth is known."""

from p4lm.data.world.config import WorldConfig
from p4lm.data.world.files import write_movielens_files
from p4lm.data.world.gold import GoldScorer, save_truth
from p4lm.data.world.simulate import World, build_world
from p4lm.data.world.text_tables import build_text_tables

__all__ = [
  'GoldScorer',
  'World',
  'WorldConfig',
  'build_text_tables',
  'build_world',
  'save_truth',
  'write_movielens_files',
]
