"""An iteration of GRPO: sample, judge, score under the anchor, update.

The anchor is scored in both (a KL of 0.04 to it, as in the paper), one update
is made of each rollout, and the four rewards count words. Texts are made by
joining words, so that no tokenizer is compared.
"""

from __future__ import annotations

import functools
import statistics
import time

import language_models
import measuring

# Model, prompts, responses to each, tokens of a prompt and of a response.
SHAPES = {
  'llama_tiny': ('llama_tiny', 8, 8, 64, 64),
  't5_tiny': ('t5_tiny', 8, 8, 64, 64),
  'small': ('llama_trial', 2, 2, 8, 4),
}
ITERATIONS = 5
LEARNING_RATE, KL_COEFFICIENT, EOS_ID = 1e-5, 0.04, 1
# What a reward is of: the share of the words that end so.
ENDINGS = ('1', '3', '5', '7')


def share_of_words(ending: str, text: str) -> float:
  """The share of a text's words with this ending, 0 for no words."""
  words = text.split()
  return sum(word.endswith(ending) for word in words) / max(len(words), 1)


def _what(size: str) -> str:
  _, prompts, samples, prompt, response = SHAPES[size]
  return (
    f'GRPO, {prompts} prompts of {prompt} x {samples} responses of {response}, '
    'four rewards'
  )


def _work(size: str) -> dict:
  _, prompts, samples, _, response = SHAPES[size]
  return {'work': prompts * samples * response, 'unit': 'tokens'}


def p4lm(size: str, data: str, work: str) -> dict:
  """What train_rl does in an iteration, on prompts in memory."""
  del data
  language_models.restart_as_job()
  import jax

  model, prompts, _, prompt, _ = SHAPES[size]
  fit, collect, learner = _p4lm_run(size, work)
  phase_clock = language_models.module('rl.phases').PhaseClock
  request = language_models.module('rewards.terms').RewardRequest
  subjects = [request('', str(row), '0') for row in range(prompts)]
  batch = language_models.text_batch(
    language_models.tokens(model, prompts, prompt)
  )
  state, phases = fit.state, []

  def iterate():
    nonlocal state
    key = jax.random.fold_in(jax.random.key(1), int(state.step))
    collected = collect(batch, subjects, key, state)
    clock = phase_clock()
    state, _ = learner.learn(state, collected.rollout)
    jax.block_until_ready(state.params)
    clock.ends('update')
    phases.append({**collected.metrics, **clock.metrics})

  iterate()  # compiles
  phases.clear()
  measured = measuring.times(iterate, ITERATIONS)
  return {
    'what': _what(size),
    **_work(size),
    **measured,
    'phases': {
      name.removeprefix('secs/'): statistics.median(p[name] for p in phases)
      for name in phases[0]
      if name.startswith('secs/')
    },
  }


def _p4lm_run(size: str, work: str):
  """The fit, the collection of a rollout and the learner, as in train_rl."""
  import pathlib

  import jax
  import jax.numpy as jnp

  model, _, samples, _, response = SHAPES[size]
  module = language_models.module
  fitting, scoring = module('runs.fitting'), module('rl.scoring')
  optimizer = module('training.optimizers').OptimizerConfig(
    name='adamw', learning_rate=LEARNING_RATE, clip_norm=1.0
  )
  directory = pathlib.Path(work, f'rl-{size}')
  directory.mkdir(parents=True, exist_ok=True)
  fit = fitting.prepare(
    language_models.recommender(model),
    directory,
    fitting.FitConfig('full', optimizer, steps=ITERATIONS + 1, seed=0),
  )
  sampling = module('decoding.sampler')
  config = sampling.SamplerConfig(max_length=response, num_samples=samples)
  anchor = jax.tree.map(jnp.copy, fit.state.params)
  learning = module('rl.learner')
  learner = (
    module('rl.grpo')
    .GrpoConfig(kl_coefficient=KL_COEFFICIENT)
    .learner(
      learning.Workbench(
        step_of=fit.step_of,
        score_fn=scoring.policy_score_fn(fit.graphdef, config, EOS_ID),
        place=fit.place,
        place_batch=fit.place_batch,
        key=jax.random.key(2),
        # Critics and replays alone read these.
        distribution_fn=None,
        anchor=None,
        example=None,
      )
    )
  )
  reward = _p4lm_reward()
  words = [f'w{word}' for word in range(language_models.num_words(model))]
  contract = module('rl.eos').EosContract(missing='score_anyway')
  collect_rollout = module('rl.rollouts').collect_rollout

  def collect(batch, subjects, key, state):
    return collect_rollout(
      batch,
      subjects,
      key,
      sample_fn=lambda features, key: sampling.sample(
        fit.graphdef,
        (state.params, state.frozen),
        fit.place_batch(features),
        key,
        config,
        EOS_ID,
      ),
      reference_fn=scoring.reference_fn(
        fit.graphdef, (anchor, state.frozen), config, EOS_ID
      ),
      decode_fn=lambda row: ' '.join(words[word] for word in row.tolist()),
      reward_fn=reward,
      eos_id=EOS_ID,
      eos_contract=contract,
    )

  return fit, collect, learner


def _p4lm_reward():
  """The joint reward of the four terms, each of weight 1."""
  terms = language_models.module('rewards.terms')
  joint = language_models.module('rewards.joint')
  return joint.JointReward(
    [
      terms.CallableTerm(name, functools.partial(_reward, name))
      for name in ENDINGS
    ],
    joint.JointRewardConfig(weights=dict.fromkeys(ENDINGS, 1.0)),
  )


def _reward(ending: str, request) -> float:
  return share_of_words(ending, request.text)


def trl(size: str, data: str, work: str) -> dict:
  """GRPOTrainer with the generation of transformers, on the CPU."""
  del data
  model = SHAPES[size][0]
  if not model.startswith('llama'):
    raise measuring.NotComparable("TRL's GRPO takes decoder-only models alone")
  import torch

  torch.set_num_threads(measuring.num_cores())
  trainer, laps = _trl_trainer(size, work)
  trainer.train()
  # The first iteration takes memory for the first time.
  steps = [
    [later - earlier for earlier, later in zip(*pair)]
    for pair in zip(laps, laps[1:])
  ]
  return {
    'what': _what(size),
    **_work(size),
    'cpu_secs': statistics.median(cpu for cpu, _ in steps),
    'wall_secs': statistics.median(wall for _, wall in steps),
  }


def _trl_trainer(size: str, work: str):
  """The trainer, and a list that gets the moment after each iteration."""
  import datasets
  import transformers
  import trl

  model, prompts, samples, prompt, response = SHAPES[size]
  laps = []

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, *arguments, **names):
      del arguments, names
      laps.append((time.process_time(), time.perf_counter()))

  texts = [
    ' '.join(f'w{word}' for word in row)
    for row in language_models.tokens(model, prompts, prompt)
  ]
  # The anchor is read from where the policy was.
  start = f'{work}/trl-{size}-start'
  language_models.torch_llama(model).save_pretrained(start)
  trainer = trl.GRPOTrainer(
    model=start,
    reward_funcs=[_trl_reward(ending) for ending in ENDINGS],
    args=trl.GRPOConfig(
      output_dir=f'{work}/trl-{size}',
      use_cpu=True,
      bf16=False,
      per_device_train_batch_size=prompts * samples,
      gradient_accumulation_steps=1,
      gradient_checkpointing=False,
      num_generations=samples,
      max_prompt_length=prompt,
      max_completion_length=response,
      temperature=1.0,
      beta=KL_COEFFICIENT,
      loss_type='grpo',
      num_iterations=1,
      learning_rate=LEARNING_RATE,
      max_grad_norm=1.0,
      max_steps=ITERATIONS + 1,
      logging_strategy='no',
      save_strategy='no',
      report_to='none',
      disable_tqdm=True,
    ),
    train_dataset=datasets.Dataset.from_dict({'prompt': texts}),
    processing_class=_word_tokenizer(model),
    callbacks=[Clock()],
  )
  return trainer, laps


def _trl_reward(ending: str):
  def reward(completions, **columns):
    del columns
    return [share_of_words(ending, text) for text in completions]

  reward.__name__ = f'share_{ending}'
  return reward


def _word_tokenizer(model: str):
  """One token a word: w0 is pad, w1 is EOS."""
  import tokenizers
  import transformers

  names = {f'w{word}': word for word in range(language_models.num_words(model))}
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(names, unk_token='w0')
  )
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words,
    padding_side='left',
    pad_token='w0',
    eos_token='w1',
    unk_token='w0',
    model_input_names=['input_ids', 'attention_mask'],
  )


if __name__ == '__main__':
  measuring.run({'p4lm': p4lm, 'trl': trl})
