"""Collaborative filtering: weighted ALS, tables of embeddings, histories."""
