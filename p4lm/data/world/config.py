"""Size, noise and seed of a synthetic world."""

import dataclasses

from p4lm.errors import UserError

# Ratings of one user are drawn from at most this many items (see ratings.py).
MAX_CANDIDATES = 4096


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """Everything a world depends on; equal configs give equal worlds.

  Attributes:
    num_users: users with ratings and tastes.
    num_items: items of the catalogue, written to movies.csv.
    num_archive_items: further items with plots but no ratings, outside the
      catalogue. Their plots are premises of entailment rows only, so that the
      entailment model reads many more plots than the catalogue holds.
    num_ratings: exact number of (user, item, rating) rows.
    seed: of every random choice; streams of different parts are independent.
    num_personas: tastes are mixtures of this many personas.
    persona_concentration: Dirichlet parameter; small means one persona a user.
    individual_taste: deviation of the low-rank individual part of a taste,
      beside a persona part of deviation 1.
    residual_taste: deviation of the unstructured part of a taste.
    taste_weight: stars per unit of utility (taste . attributes / sqrt facets).
    quality_deviation: stars, between items.
    user_deviation: stars, between users (a generous or a strict rater).
    rating_noise: stars, within a (user, item) pair.
    taste_selection: how much utility raises the log odds of being rated.
    popularity_exponent: item popularity is rank ** -exponent.
    distractor_rate: share of plots that mention a value and deny it.
    temperature: of the demonstrator's choice of what to praise; 0 praises the
      best-liked attributes, infinity any.
    hallucination_rate: probability that a claim of the demonstrator is false.
    misreading_rate: share of false claims, where there is a choice, that the
      plot itself mentions: the other role's profession, a denied value. They
      are what words alone cannot tell from true claims.
    hook_rate: probability that an opener, and an ending, has a hook word.
    text_writer_temperature: as `temperature`, of the writer that reads plot
      and bullets only.
    text_writer_hallucination_rate: its share of false claims.
    num_pitches: rows of `texts`, one a (user, item) pair.
    pitch_validation_share: share of them in the split 'validation'.
    num_pairs: rows of `pairs` of each kind.
    num_entailment: rows of `entailment`.
    num_relevance: rows of `relevance`.
    num_rl_prompts: rows of `rl_prompts`, unique (user, item) pairs.
    split_shares: users (pairs, relevance) and items (entailment) of the splits
      'train', 'judge' and 'validation'.
    personalization_sharpness: P(chosen = a) = sigmoid(sharpness * gap) with the
      gap of the gold scores of texts a and b.
    appeal_sharpness: the same of the appeal pairs.
    relevance_noise: deviation of the noise on the relevance targets.
    degraded_rate: share of odd texts (repetitive, cut, empty, stuffed) among
      the texts to be judged.
  """

  num_users: int = 500
  num_items: int = 1500
  num_archive_items: int = 0
  num_ratings: int = 45_000
  seed: int = 0
  num_personas: int = 10
  persona_concentration: float = 0.1
  individual_taste: float = 0.4
  residual_taste: float = 0.15
  taste_weight: float = 0.9
  quality_deviation: float = 0.3
  user_deviation: float = 0.3
  rating_noise: float = 0.25
  taste_selection: float = 0.5
  popularity_exponent: float = 0.6
  distractor_rate: float = 0.85
  temperature: float = 0.5
  hallucination_rate: float = 0.2
  misreading_rate: float = 0.2
  hook_rate: float = 0.5
  text_writer_temperature: float = 1.0
  text_writer_hallucination_rate: float = 0.15
  num_pitches: int = 16_000
  pitch_validation_share: float = 0.05
  num_pairs: int = 8000
  num_entailment: int = 16_000
  num_relevance: int = 8000
  num_rl_prompts: int = 4000
  split_shares: tuple[float, float, float] = (0.6, 0.3, 0.1)
  personalization_sharpness: float = 4.0
  appeal_sharpness: float = 3.0
  relevance_noise: float = 0.05
  degraded_rate: float = 0.15

  def __post_init__(self):
    self._check_sizes()
    for name in (
      'distractor_rate',
      'hallucination_rate',
      'misreading_rate',
      'text_writer_hallucination_rate',
      'hook_rate',
      'pitch_validation_share',
      'degraded_rate',
    ):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise UserError(
          f'WorldConfig: {name} is {value}; give a value in [0, 1].'
        )
    for name in ('temperature', 'text_writer_temperature'):
      if getattr(self, name) <= 0:
        raise UserError(
          f'WorldConfig: {name} is {getattr(self, name)}; give a value > 0.'
        )
    shares = self.split_shares
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
      raise UserError(
        f'WorldConfig: split_shares is {shares}; give three positive shares '
        'of train, judge and validation that sum to 1.'
      )

  def _check_sizes(self):
    for name in (
      'num_users',
      'num_items',
      'num_ratings',
      'num_personas',
      'num_pitches',
      'num_pairs',
      'num_entailment',
      'num_relevance',
      'num_rl_prompts',
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f'WorldConfig: {name} is {getattr(self, name)}; give at least 1.'
        )
    if min(self.num_users, self.num_items) < 10:
      raise UserError(
        f'WorldConfig: {self.num_users} users and {self.num_items} items; give '
        'at least 10 of each, or the splits are empty.'
      )
    if self.num_archive_items < 0:
      raise UserError(
        f'WorldConfig: num_archive_items is {self.num_archive_items}; give 0 '
        'or more.'
      )
    most = self.num_users * (min(self.num_items, MAX_CANDIDATES) // 2)
    if not self.num_users <= self.num_ratings <= most:
      raise UserError(
        f'WorldConfig: num_ratings is {self.num_ratings}; with '
        f'{self.num_users} users and {self.num_items} items give '
        f'{self.num_users} to {most} (a user rates at most half the items).'
      )
