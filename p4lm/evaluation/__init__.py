"""Metrics, the paper's tables with intervals, and the report."""
