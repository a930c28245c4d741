"""Collaborative filtering: weighted ALS and the tables it makes."""
