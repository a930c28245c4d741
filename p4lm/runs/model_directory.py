"""A trained model on disk: what is needed to build it again.

  OUTPUT_DIR/
    model.json         sizes, kind, task, lengths, hashes of what it was made of
    vocabulary.model   the SentencePiece model whose ids it speaks, or
                     vocabulary.json, byte pairs; a model may have neither
    checkpoints/       its steps, see `checkpoints.manager`

CF tables can be far larger than a model, so they are named by path and hash
and not copied.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from flax import nnx

from p4lm.cf.tables import CFTables
from p4lm.checkpoints import integrity
from p4lm.checkpoints.manager import CheckpointStore
from p4lm.data.byte_pairs import BytePairVocabulary
from p4lm.data.token_ids import TokenIds
from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.models import lora
from p4lm.models.language_model import LMConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.models.selection import parameter_name, split_trainable
from p4lm.partitioning.build import build_model
from p4lm.rewards.weightings import Weighted

_MODULES = {RecommenderConfig: Recommender, RewardModelConfig: RewardModel}
_CONFIGS = {'recommender': RecommenderConfig, 'reward': RewardModelConfig}
_VOCABULARY_MULTIPLE = 64

Config = RecommenderConfig | RewardModelConfig
AnyVocabulary = Vocabulary | BytePairVocabulary | TokenIds


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """What `model.json` holds.

  Attributes:
    kind: 'recommender' or 'reward'.
    config: the model's configuration.
    task: the task that it was trained on last.
    prompt_length, response_length: P and L in tokens.
    vocabulary_sha256: of `vocabulary.model`; None for a model that has none.
    cf_dir, cf_sha256: the CF tables that it reads; None for text alone.
    stage: what trained, which is how the checkpoint's items are divided.
    lora: arguments of `lora.apply_lora`, or None.
    eos_id: ends a response, for a model without a vocabulary.
    stop_ids: further tokens that do.
    weighted: of a policy whose prompts tell the weights of its rewards, the
      arguments of `weightings.Weighted`, or None.
  """

  kind: str
  config: dict
  task: str
  prompt_length: int
  response_length: int
  vocabulary_sha256: str | None
  cf_dir: str | None = None
  cf_sha256: str | None = None
  stage: str = 'full'
  lora: dict | None = None
  eos_id: int | None = None
  stop_ids: tuple[int, ...] = ()
  weighted: dict | None = None

  def model_config(self) -> Config:
    return _CONFIGS[self.kind].from_json(json.dumps(self.config))


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model ready to run.

  Attributes:
    directory: where it came from.
    card: its `model.json`.
    config: sizes.
    graphdef, params: `nnx.merge(graphdef, params)` is the module.
    vocabulary: its SentencePiece model, or what stands for one.
    cf_tables: its CF tables, or None.
    step: the checkpoint's step.
    identity: of the checkpoint, see `checkpoints.integrity`.
  """

  directory: Path
  card: ModelCard
  config: Config
  graphdef: nnx.GraphDef
  params: nnx.State
  vocabulary: AnyVocabulary
  cf_tables: CFTables | None
  step: int
  identity: str = ''

  def module(self) -> nnx.Module:
    return nnx.merge(self.graphdef, self.params)

  def described(self) -> LoadedModel:
    """The same without its arrays, which may then be freed."""
    return dataclasses.replace(self, params=None)

  @property
  def weighted(self) -> Weighted | None:
    """The terms whose weights its prompts tell; None for an ordinary policy."""
    return weighted_of(self.card)

  @property
  def cf_lookup(self):
    return None if self.cf_tables is None else self.cf_tables.lookup

  @property
  def tokens_per_vector(self) -> int:
    adapter = self.config.adapter
    return adapter.tokens_per_vector if adapter is not None else 1


def new_model(config: Config, seed: int) -> nnx.Module:
  """A freshly initialised module of a configuration."""
  return nnx.merge(*build_model(lambda: _module(config), seed))


def abstract_module(config: Config) -> nnx.Module:
  """The module of a configuration with shapes in place of arrays."""
  return nnx.eval_shape(lambda: _module(config))


def sizes_for(sizes: LMConfig, vocabulary: Vocabulary) -> LMConfig:
  """The sizes with an embedding row for every id, a multiple of 64."""
  rows = -(-vocabulary.size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
  return dataclasses.replace(sizes, vocab_size=rows)


def check_same_vocabulary(start: LoadedModel, vocabulary: Vocabulary) -> None:
  """Raises UserError when a checkpoint speaks another vocabulary."""
  if start.vocabulary.sha256 is None:
    raise UserError(
      f'CHECKPOINT {start.directory} has no vocabulary of p4lm, so it can be '
      'sampled and scored but not trained on texts'
    )
  if start.vocabulary.sha256 != vocabulary.sha256:
    raise UserError(
      f'CHECKPOINT {start.directory} speaks another vocabulary than '
      f'{vocabulary.path}; make the data with its own '
      '(make_data --gin.VOCABULARY=...)'
    )


def check_same_cf(start: LoadedModel, tables: CFTables | None) -> None:
  """Raises UserError when a checkpoint's adapters read other CF embeddings.

  Another fit has other axes, so adapters would turn its vectors into soft
  tokens that mean nothing, and no error would say so.
  """
  known = start.card.cf_sha256
  if tables is not None and known is not None and known != tables.sha256:
    raise UserError(
      f'CHECKPOINT {start.directory} reads other CF embeddings than CF_DIR '
      f'(sha256 {known[:12]} there, {tables.sha256[:12]} here); give '
      f'--gin.CF_DIR={start.card.cf_dir}, or train its adapters for the new '
      'ones first (train_lm --gin.STAGE=adapters)'
    )


def start_from(
  module: nnx.Module, start: LoadedModel, may_lack: str | None = None
) -> None:
  """Copies a loaded model's parameters into a module, by name, in place.

  Args:
    module: gets the values.
    start: gives them.
    may_lack: parameters whose name begins so may be missing there; they keep
      their own initialisation.
  Raises:
    UserError: a parameter is missing, left over or of another shape.
  """
  given = dict(nnx.to_flat_state(nnx.state(start.module(), nnx.Param)))
  wanted = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
  problems = [
    f'{parameter_name(path)} is missing'
    for path in wanted.keys() - given.keys()
    if may_lack is None or path[0] != may_lack
  ]
  problems += [
    f'{parameter_name(path)} is left over'
    for path in given.keys() - wanted.keys()
  ]
  problems += [
    f'{parameter_name(path)} is {given[path].shape}, {wanted[path].shape} here'
    for path in given.keys() & wanted.keys()
    if given[path].shape != wanted[path].shape
  ]
  if problems:
    raise UserError(
      f'CHECKPOINT {start.directory} does not fit this model: '
      + '; '.join(sorted(problems)[:8])
    )
  nnx.update(module, nnx.from_flat_state(list(given.items())))


def describe(
  config: Config,
  *,
  task: str,
  vocabulary: AnyVocabulary,
  prompt_length: int,
  response_length: int,
  tables: CFTables | None = None,
  cf_dir: str | None = None,
  stage: str = 'full',
  lora_config: dict | None = None,
  stop_ids: tuple[int, ...] = (),
) -> ModelCard:
  """The card of a model about to be trained."""
  return ModelCard(
    kind=next(k for k, c in _CONFIGS.items() if isinstance(config, c)),
    config=json.loads(config.to_json()),
    task=task,
    prompt_length=prompt_length,
    response_length=response_length,
    vocabulary_sha256=vocabulary.sha256,
    cf_dir=None if tables is None else str(Path(cf_dir).resolve()),
    cf_sha256=None if tables is None else tables.sha256,
    stage=stage,
    lora=lora_config,
    eos_id=vocabulary.eos_id if vocabulary.sha256 is None else None,
    stop_ids=stop_ids,
  )


def continued(
  start: LoadedModel, stage: str, response_length: int | None = None
) -> ModelCard:
  """The card of a model that goes on from another one."""
  return dataclasses.replace(
    start.card,
    stage=stage,
    response_length=response_length or start.card.response_length,
  )


def weighted_of(card: ModelCard) -> Weighted | None:
  """The terms whose weights a card's model is told, or None."""
  if card.weighted is None:
    return None
  return Weighted(tuple(card.weighted['terms']), card.weighted['levels'])


def write_card(
  directory: Path, card: ModelCard, vocabulary: AnyVocabulary
) -> None:
  """Writes `model.json` and copies the vocabulary, each atomically."""
  if vocabulary.file_name is not None:
    partial = directory / f'.{vocabulary.file_name}.partial'
    partial.write_bytes(vocabulary.contents)
    os.replace(partial, directory / vocabulary.file_name)
  partial = directory / '.model.json.partial'
  partial.write_text(json.dumps(dataclasses.asdict(card), indent=2) + '\n')
  os.replace(partial, directory / 'model.json')


def read_card(directory: str | os.PathLike) -> ModelCard:
  """Reads `model.json`.

  Raises:
    UserError: the directory holds no model of p4lm.
  """
  path = Path(directory) / 'model.json'
  try:
    values = json.loads(path.read_text())
    values['stop_ids'] = tuple(values.get('stop_ids', ()))
    return ModelCard(**values)
  except OSError as error:
    raise UserError(
      f'CHECKPOINT {directory} holds no model (no model.json); give the '
      'OUTPUT_DIR of a train_lm, train_reward or train_rl run'
    ) from error
  except (json.JSONDecodeError, TypeError, AttributeError) as error:
    raise UserError(f'{path} is damaged: {error}') from error


def load_model(
  directory: str | os.PathLike,
  *,
  kind: str | None = None,
  step: int | None = None,
) -> LoadedModel:
  """Loads the newest whole checkpoint of a model directory.

  Args:
    directory: OUTPUT_DIR of a training job.
    kind: 'recommender' or 'reward' when the caller needs one of them.
    step: a given step rather than the newest.
  Raises:
    UserError: no model there, one of another kind, CF tables that are missing
      or changed since, or no whole checkpoint.
  """
  directory = Path(directory)
  card = _with_tables_found(directory, read_card(directory))
  if kind is not None and card.kind != kind:
    raise UserError(
      f'CHECKPOINT {directory} holds a {card.kind} model; a {kind} is needed'
    )
  config = card.model_config()
  vocabulary = load_vocabulary(directory, card)
  graphdef, trained, frozen = split_trainable(
    nnx.eval_shape(lambda: _module(config, card.lora)), card.stage
  )
  store = CheckpointStore(directory / 'checkpoints')
  found, items = store.restore({'params': trained, 'frozen': frozen}, step=step)
  return LoadedModel(
    directory=directory,
    card=card,
    config=config,
    graphdef=graphdef,
    params=nnx.merge_state(items['params'], items['frozen']),
    vocabulary=vocabulary,
    cf_tables=_load_tables(card),
    step=found,
    identity=integrity.identity(directory / 'checkpoints' / str(found)),
  )


def _module(config: Config, lora_config: dict | None = None) -> nnx.Module:
  module = _MODULES[type(config)](config, rngs=nnx.Rngs(0))
  if lora_config is not None:
    lora.apply_lora(module, **lora_config, rngs=nnx.Rngs(0))
  return module


def load_vocabulary(directory: Path, card: ModelCard) -> AnyVocabulary:
  """The vocabulary of a model directory, or what stands for one."""
  if card.vocabulary_sha256 is None:
    return TokenIds(card.model_config().lm.vocab_size, card.eos_id)
  kind = Vocabulary
  if (directory / BytePairVocabulary.file_name).exists():
    kind = BytePairVocabulary
  path = directory / kind.file_name
  vocabulary = kind.load(path)
  _check_hash(path, vocabulary.sha256, card.vocabulary_sha256)
  return vocabulary


def _with_tables_found(directory: Path, card: ModelCard) -> ModelCard:
  """The card with the place of its CF tables, which may have been moved.

  Where they are not, they are looked for as they lay beside the model.
  """
  if card.cf_dir is None or Path(card.cf_dir).is_dir():
    return card
  for path in _beside(directory, Path(card.cf_dir)):
    if CFTables.load(path).sha256 == card.cf_sha256:
      return dataclasses.replace(card, cf_dir=str(path))
  raise UserError(
    f'CHECKPOINT {directory} reads the CF embeddings of {card.cf_dir}, which '
    f'is not there; copy them to {directory.parent / Path(card.cf_dir).name}'
  )


def _beside(directory: Path, recorded: Path) -> Iterator[Path]:
  """Tables in directories that are called as the recorded one is."""
  ends = [Path(*recorded.parts[at:]) for at in range(1, len(recorded.parts))]
  for parent in directory.resolve().parents:
    for end in reversed(ends):
      if (parent / end / 'tables.json').is_file():
        yield parent / end


def _load_tables(card: ModelCard) -> CFTables | None:
  if card.cf_dir is None:
    return None
  tables = CFTables.load(card.cf_dir)
  _check_hash(card.cf_dir, tables.sha256, card.cf_sha256)
  return tables


def _check_hash(what, found: str, wanted: str | None) -> None:
  if found != wanted:
    raise UserError(
      f'{what} changed since the model was trained (sha256 {found[:12]} now, '
      f'{str(wanted)[:12]} then); restore it or train again'
    )
