"""Sampling from a recommender and scoring given responses."""
