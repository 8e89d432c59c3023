"""Probes: scikit-learn classifiers trained on stored features; one module each."""
