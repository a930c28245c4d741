"""Reinforcement learning: sampled responses, their rewards, policy updates.

A file an algorithm; what they share (the rollout, the EOS contract, scoring)
has files of its own. The loop that ties them together is the job's.
"""
