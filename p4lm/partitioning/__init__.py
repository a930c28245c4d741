"""Logical axis names, the rules that map them, and the one mesh function."""
