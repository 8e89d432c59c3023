"""Frozen ResNet features, scikit-learn probes and honest comparisons for image datasets.

The functions are in :mod:`featpipe.api`; nothing is imported here, so that ``featpipe --help``
is fast.
"""
