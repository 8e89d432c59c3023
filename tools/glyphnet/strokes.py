"""A pen for the 62 glyphs: how a hand writes 0-9, A-Z and a-z, as strokes through a few points.

Fonts alone teach a network the shapes of print. People write a 4 open, a 7 with a bar and a 1 as
one stroke; these skeletons say so, and every drawn glyph moves their points a little.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POINTS_PER_STROKE = 24

# Ways of writing a glyph are separated by "|", the strokes of one way by spaces.
# A point is two digits: x from the left, y from the top, both on a grid of 0..9 (descenders and
# small letters fill the grid too: a glyph is judged by its shape, its size is drawn at random).
# "~" runs smoothly through its points, "-" goes straight from one to the next.
SKELETONS = """
0 ~50.22.15.27.59.77.85.72.50 | ~70.31.15.38.69.85.72.40 | ~40.13.16.49.76.73.40
1 -50.59 | -23.50.59 | -22.50.59 -29.89 | -60.49 | -14.60.49
2 ~12.30.71.73.46.19 -19.89 | ~12.40.71.73.37.18.38.89 | ~21.50.73.55.19 -19.99
3 ~11.40.71.63.44 ~44.75.77.49.18 | -10.80.44 ~44.76.78.49.18 | ~10.50.72.44.54.86.79.39.08
4 -20.15.85 -62.69 | -60.06.86 -60.69 | -20.16.86 -60.69 | ~20.14.35.84 ~80.64.59 | -63.07.97 -60.69
5 -80.20.14 ~14.54.76.78.49.18 | ~20.14.53.86.79.39.18 -20.80 | ~80.30.23.44.75.77.49.19
6 ~70.32.15.17.39.69.86.65.35.16 | ~50.13.17.59.77.55.36 | ~40.23.27.49.78.66.46.28
7 -10.80.39 | -10.80.39 -25.75 | ~11.30.80.54.49 | -12.10.80.39 -35.75 | ~10.40.81.64.59
8 ~71.40.12.24.54.76.78.49.18.16.44.73.71 | ~50.22.44.76.59.27.44.72.50
8 ~82.50.12.35.77.59.27.55.82
9 ~82.50.22.24.45.73.82 -82.79 | ~83.60.21.24.55.83.86.69.28 | ~71.40.13.45.73.71 ~71.66.39
A -50.09 -50.99 -26.76 | ~09.23.50.73.99 -15.85
B -10.19 ~10.60.82.64.14 ~14.74.86.78.59.19 | -10.19 ~10.71.62.24 ~24.75.78.19
C ~82.50.22.15.27.59.87 | ~91.60.21.05.28.69.98
D -10.19 ~10.50.82.85.77.49.19 | -20.29 ~10.60.93.96.69.19
E -80.10.19.89 -14.74 | ~81.40.12.44 ~44.16.49.88
F -80.10.19 -14.64 | -20.29 -10.90 -24.74
G ~82.50.22.15.27.59.88 -88.85.55 | ~81.40.15.38.68.85 -55.85.89
H -10.19 -80.89 -14.84
I -50.59 | -50.59 -20.80 -29.79
J ~70.76.59.28.17 | -30.90 ~60.66.49.28
K -10.19 -80.15 -34.89 | -10.19 ~80.35.14 ~35.67.89
L -10.19.89 | ~20.17.29.79
M -09.10.55.80.99 | -19.10.56.90.99 | ~09.20.56.80.99
N -19.10.89.80 | ~19.20.79.80
O ~50.12.05.17.59.97.95.82.50 | ~60.21.05.28.69.97.92.40
P -10.19 ~10.60.82.84.65.15 | ~20.29 ~21.70.83.55.25
Q ~50.12.05.17.59.97.95.82.50 -67.99 | ~50.12.15.38.68.85.72.50 ~57.78.99
R -10.19 ~10.60.82.64.15 -45.89 | -10.19 ~10.71.64.24 ~34.57.89
S ~82.60.21.13.35.65.87.68.39.17 | ~71.40.12.34.66.68.39.18
T -50.59 -10.90 | ~50.55.49 -00.90
U ~10.15.38.69.87.80 | ~10.16.49.76.80 -80.89
V -10.59.90 | ~10.34.59.74.90
W -00.29.54.79.90 | ~00.18.39.54.69.88.90
X -10.89 -80.19 | ~10.44.89 ~80.45.19
Y -10.54.90 -54.59 | ~10.34.54.80 ~80.65.39
Z -10.80.19.89 | -10.80.19.89 -25.75 | ~11.40.81.45.19 -19.89
a ~82.50.22.16.39.69.85.82 -82.89 | ~12.40.72.79 ~75.45.17.39.67.74 | ~81.40.15.38.67.82 ~81.77.99
b -20.29 ~25.53.84.87.69.39.27 | ~20.28.59.86.64.26
c ~82.50.22.15.27.59.87 | ~73.41.14.27.59.88
d -80.89 ~84.53.24.17.39.69.85 | ~84.43.16.49.77.80 ~80.87.99
e -25.85 ~85.72.50.21.15.27.59.88 | ~26.64.72.50.22.15.28.59.88
f ~91.70.52.59 -24.84 | ~80.51.48.29 -25.75
g ~82.50.12.15.46.75.82 ~82.87.69.28 | ~71.40.13.45.73.71 ~71.67.49.17.46.85
h -20.29 ~25.43.64.79 | ~20.29 ~26.54.75.78.99
i -53.59 -50.51 | ~33.53.57.79 -50.51
j ~63.67.49.28 -60.61 | -63.67 ~67.59.38 -60.51
k -20.29 -73.26 -45.79 | ~20.29 ~26.63.74.46 ~46.67.89
l -50.59 | ~50.57.69.88 | ~26.61.50.35.39.68
m -02.09 ~04.22.43.49 ~44.62.83.89 | ~03.09 ~05.32.49 ~45.72.88.99
n -12.19 ~15.42.73.79 | ~12.19 ~16.53.75.78.99
o ~50.12.05.17.59.97.95.82.50 | ~50.22.15.28.59.77.84.72.50 | ~60.31.15.38.69.85.72.50.31
p -12.19 ~13.51.83.55.25.14 | ~11.19 ~14.50.83.65.25
q ~82.50.22.24.45.74.82 -81.89 | ~71.40.13.45.73.71 ~71.79 ~79.97
r -22.29 ~25.42.72.83 | ~22.29 ~26.53.82
s ~82.60.31.23.45.65.87.68.39.18 | ~71.40.22.34.66.68.39.18
t -50.59 -24.84 | ~50.57.69.88 -23.83 | -40.49 -13.73
u ~22.26.49.77.82 -82.89 | ~12.17.39.77.72 ~72.78.99
v -12.59.92 | ~12.35.59.74.92
w -02.29.54.79.92 | ~02.18.39.54.69.88.92
x -12.89 -82.19 | ~12.33.68.89 ~82.55.19
y -12.55 -92.29 | ~12.15.46.75.82 ~82.77.49.18 | ~12.35.55 ~92.55.19
z -12.82.19.89 | ~13.42.82.46.19 -19.89 | -12.82.19.89 -35.75
"""


Way = tuple[tuple[bool, NDArray[np.float64]], ...]


@cache
def skeletons() -> dict[str, tuple[Way, ...]]:
    """Return the ways to write each glyph.

    Returns
    -------
    ways : dict of str to tuple
        For each glyph its ways; a way is a tuple of strokes; a stroke is ``(smooth, points)``
        with points of shape (n, 2), float64, x and y from 0 to 1.

    Examples
    --------
    >>> [len(way) for way in skeletons()["1"]]
    [1, 1, 2, 1, 1]
    """
    table: dict[str, tuple[Way, ...]] = {}
    for line in SKELETONS.strip().splitlines():
        glyph, _, ways = line.partition(" ")
        table[glyph] = table.get(glyph, ()) + tuple(
            tuple((stroke[0] == "~", _points(stroke[1:])) for stroke in way.split())
            for way in ways.split("|")
        )
    return table


def _points(text: str) -> NDArray[np.float64]:
    return np.array([[int(point[0]), int(point[1])] for point in text.split(".")]) / 9.0


def write(glyph: str, random: np.random.Generator, wobble: float = 0.045) -> NDArray[np.float64]:
    """Write a glyph by hand once.

    Parameters
    ----------
    glyph : str
        One of the 62 characters.
    random : Generator
        Chooses the way of writing and moves its points.
    wobble : float
        Standard deviation of a point's movement, as a part of the glyph's size.

    Returns
    -------
    segments : ndarray of shape (n, 2, 2), float64
        Straight pieces of the pen's way: start and end, x and y from about 0 to 1.
    """
    ways = skeletons()[glyph]
    way = ways[random.integers(len(ways))]
    pieces = []
    for smooth, points in way:
        moved = points + random.normal(0.0, wobble, points.shape)
        line = _catmull_rom(moved) if smooth and len(moved) > 2 else moved
        pieces.append(np.stack([line[:-1], line[1:]], axis=1))
    return np.concatenate(pieces)


def _catmull_rom(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Run smoothly through points (Catmull and Rom 1974, uniform)."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    spans = len(points) - 1
    position = np.linspace(0, spans, POINTS_PER_STROKE)
    span = np.minimum(position.astype(int), spans - 1)
    t = (position - span)[:, None]
    a, b, c, d = (padded[span + offset] for offset in range(4))
    return 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * (b - c) + d - a) * t**3
    )
