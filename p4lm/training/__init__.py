"""The training loop: state, step, optimizers, metrics; knows no model."""
