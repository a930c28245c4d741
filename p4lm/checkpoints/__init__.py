"""Checkpoints: named items a step, whole or not there."""
