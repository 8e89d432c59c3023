"""Pictures of glyphs: each is bent, coloured, made noisy and lowered in resolution at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glyphs import BODY, MAP_SIZE, GlyphBank

PICTURE = 32  # side of the pictures in pixels: the input of the network


def draw(bank: GlyphBank, rows: Tensor, random: torch.Generator) -> Tensor:
    """Draw some glyphs of a bank, each in its own way.

    Parameters
    ----------
    bank : GlyphBank
    rows : Tensor of shape (n,), int64
    random : torch.Generator

    Returns
    -------
    images : Tensor of shape (n, 3, 32, 32), uint8
    """
    low, high = bank.reach[rows].unbind(1)
    threshold = low + (high - low) * torch.rand(len(rows), generator=random)
    distances = bank.distances[rows].float()[:, None]
    bent = functional.grid_sample(
        distances, _bend(len(rows), random), padding_mode="border", align_corners=False
    )
    # One pixel of the picture is about 1.3 of the map: a linear ramp of that width antialiases.
    ink = ((threshold[:, None, None, None] - bent) / 1.3 + 0.5).clamp(0, 1)
    return torch.cat(
        [
            _paint(part, side, random)
            for part, side in zip(torch.split(ink, _shares(len(rows))), _SIDES, strict=True)
        ]
    )


# Native sides of the pictures before they are resized to the network's 32, an equal share each:
# three in eight are tiny, because a shape is to be known from 8 x 8 pixels as well.
_SIDES = (8, 8, 8, 10, 12, 16, 24, 32)


def _shares(count: int) -> list[int]:
    edges = torch.linspace(0, count, len(_SIDES) + 1).round().long()
    return edges.diff().tolist()


def _bend(count: int, random: torch.Generator) -> Tensor:
    """Return sampling grids (count, 32, 32, 2): affine and a smooth elastic deformation."""

    def normal(deviation: float) -> Tensor:
        return torch.randn(count, generator=random).clamp(-2.5, 2.5) * deviation

    angle, shear = normal(0.14), normal(0.18)
    stretch = torch.exp(normal(0.13))
    # The glyph's longer side covers 64 % to 108 % of the picture.
    size = (MAP_SIZE / BODY) * (0.64 + 0.44 * torch.rand(count, generator=random))
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos / stretch, (sin + shear) / stretch], 1)
    along = torch.stack([-sin * stretch, cos * stretch], 1)
    matrix = torch.stack([across, along], 1) / size[:, None, None]
    room = (1.05 * MAP_SIZE / BODY - size).clamp(min=0.05) * 0.6
    shift = (torch.rand(count, 2, generator=random) - 0.5) * room[:, None]
    grid = functional.affine_grid(
        torch.cat([matrix, shift[:, :, None]], 2), [count, 1, PICTURE, PICTURE], align_corners=False
    )
    amplitude = 0.07 * torch.rand(count, 1, 1, 1, generator=random)
    waves = torch.randn(count, 2, 5, 5, generator=random) * amplitude
    elastic = functional.interpolate(
        waves, size=(PICTURE, PICTURE), mode="bicubic", align_corners=True
    )
    return grid + elastic.permute(0, 2, 3, 1)


def _paint(ink: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Lower the resolution, choose colours, add noise; return (n, 3, 32, 32) uint8."""
    count = len(ink)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    small = functional.interpolate(ink, size=(side, side), mode="area")
    # A pen that fades or a scanner that saturates.
    small = (small * uniform(0.7, 1.5, 1, 1, 1)).clamp(0, 1)
    paper, pen = _colours(count, random)
    slope = uniform(-0.15, 0.15, 1, 2)
    ramp = torch.linspace(-1, 1, side)
    light = (slope[:, :, :1] * ramp)[:, :, None, :] + (slope[:, :, 1:] * ramp)[:, :, :, None]
    clean = (torch.rand(count, 1, 1, 1, generator=random) < 0.4).float()
    picture = paper + (pen - paper) * small + light * (1 - clean)
    noise = torch.randn(count, 3, side, side, generator=random)
    picture = picture + noise * uniform(0.0, 0.12, 1, 1, 1) * (1 - clean)
    full = functional.interpolate(
        picture, size=(PICTURE, PICTURE), mode="bilinear", align_corners=False
    )
    return (full.clamp(0, 1) * 255).round().to(torch.uint8)


def _colours(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the colours of paper and pen, (count, 3, 1, 1) each; four in ten black and white."""
    grey = torch.rand(count, 1, generator=random)
    distance = 0.4 + 0.6 * torch.rand(count, 1, generator=random)
    other = torch.where(grey > 0.5, grey - distance, grey + distance)
    tint = 0.15 * torch.randn(2, count, 3, generator=random)
    paper, pen = (grey + tint[0]).clamp(0, 1), (other + tint[1]).clamp(0, 1)
    plain = torch.rand(count, 1, generator=random) < 0.4
    black = (torch.rand(count, 1, generator=random) < 0.5).float()
    paper, pen = torch.where(plain, black, paper), torch.where(plain, 1 - black, pen)
    return paper[:, :, None, None], pen[:, :, None, None]
