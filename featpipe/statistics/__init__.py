"""Confidence intervals, and which methods differ; see ``docs/evaluation.md``."""
