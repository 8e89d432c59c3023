"""Layer normalisation in place of batch normalisation."""

from __future__ import annotations

from torch import nn


def with_layer_norm(network: nn.Module) -> nn.Module:
    """Replace every batch norm of a network by layer normalisation, in place.

    A group norm with a single group normalises each image over channels, height and width and
    scales each channel (Ba et al. 2016, arXiv:1607.06450, for images as in Wu and He 2018,
    arXiv:1803.08494); unlike :class:`torch.nn.LayerNorm` it does not fix the image size.

    Parameters
    ----------
    network : nn.Module
        Untrained: weights trained with batch norm mean nothing without it.

    Returns
    -------
    network : nn.Module
        The same.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, nn.GroupNorm(1, child.num_features, eps=child.eps))
        else:
            with_layer_norm(child)
    return network
