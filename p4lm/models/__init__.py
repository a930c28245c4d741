"""Language models, CF adapters, reward models and LoRA in Flax NNX."""
