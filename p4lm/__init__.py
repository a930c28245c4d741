"""p4lm: a training stack for language models that recommend."""

__version__ = '0.1.0'
