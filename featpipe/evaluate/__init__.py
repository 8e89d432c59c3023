"""Judge methods by an honest protocol; see ``docs/evaluation.md``."""

from featpipe.evaluate.run import evaluate, run_evaluation

__all__ = ["evaluate", "run_evaluation"]
