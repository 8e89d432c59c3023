"""Seeds that follow from other numbers."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """Return a seed for torch that is the same for the same numbers, and unlike all others.

    Everything random in an epoch (order of rows, augmentation, dropout) follows from the seed
    derived from the run's seed and the epoch's number. A continued run therefore needs no
    saved generator state to go on exactly as it would have.

    Examples
    --------
    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
