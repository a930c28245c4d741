"""Rewards: what a response is worth, by term, and the one sum of the terms."""
