"""Evaluate methods by an honest protocol; see ``docs/evaluation.md``."""
