"""How sure a number is, and which methods differ; see ``docs/evaluation.md``."""
