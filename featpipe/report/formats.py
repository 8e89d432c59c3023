"""Numbers as people read them; ``None`` becomes a dash and never a zero."""

from __future__ import annotations

import math

MISSING = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share as a percentage without its sign.

    Examples
    --------
    >>> percent(0.8365), percent(None)
    ('83.65', '–')
    """
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """Return a difference of two shares in percentage points, with a real minus sign.

    Examples
    --------
    >>> points(-0.0123)
    '−1.23'
    """
    return f"{100 * value:+.2f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Return a p-value; below 0.001 only that.

    Examples
    --------
    >>> p_value(0.0321), p_value(1e-9)
    ('0.032', '< 0.001')
    """
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    r"""Return a duration in seconds with three significant digits.

    Examples
    --------
    >>> seconds(0.01234), seconds(75.3), seconds(12345.6)
    ('0.0123', '75.3', '12\u202f346')
    """
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return count(value) if digits == 0 else f"{value:.{min(digits, 4)}f}"


def count(value: float | None) -> str:
    r"""Return a whole number in groups of three, set apart by a narrow no-break space.

    Examples
    --------
    >>> count(20490)
    '20\u202f490'
    """
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def size(value: float | None) -> str:
    r"""Return a number of bytes in KB, MB or GB (powers of 1000).

    Examples
    --------
    >>> size(164_123), size(16_400_000)
    ('164\xa0KB', '16.4\xa0MB')
    """
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}\u00a0{unit}"
    return f"{value:.0f}\u00a0B"


def number(value: object) -> str:
    """Return any recorded value briefly: floats with six digits at most."""
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)
