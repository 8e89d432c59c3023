"""Predictions, metrics and statistics of evaluated methods; see ``docs/evaluation.md``."""
