"""Trustworthy baselines for image classification: from a folder of photos to a report.

The functions are in :mod:`featpipe.api`; nothing is imported here, so that ``featpipe --help``
is fast.
"""
