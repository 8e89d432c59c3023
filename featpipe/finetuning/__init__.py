"""Train heads and networks: from a new last layer on frozen activations to training from scratch.

See ``docs/finetuning.md``.
"""
