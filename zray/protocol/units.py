"""Resource amounts as whole numbers: one unit is 1/10000 of a CPU, a GPU, a byte or anything else.

What    Names of the built-in resources, and the conversion between what users write (0.5) and
        what machines count (5000). Sums of units are exact, where sums of floats drift.
Caller  zray/options.py and zray/detect.py, which read amounts; brokers/resources.py, which counts.
Never   rounds up: a request is never counted as more than it says.
"""

import math

RESOURCE_UNITS = 10_000
RESOURCE_UNITS_MAX = 2**62
"""Amounts stay below this, so that their sums fit the integers of a message header."""

CPU = "CPU"
GPU = "GPU"
MEMORY = "memory"


def to_units(amount: float) -> int:
    """Return `amount` in units, rounded down to a whole one.

    Raises ValueError where the amount is negative, not finite, too large, or smaller than one unit
    without being zero.
    """
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"{amount} is not a finite number >= 0")
    if isinstance(amount, int):
        units = amount * RESOURCE_UNITS
    else:
        # The nudge undoes the error of binary floats: 0.0003 * 10000 is 2.9999999999999996.
        units = math.floor(amount * RESOURCE_UNITS + 1e-6)
    if units == 0 and amount > 0:
        raise ValueError(f"{amount} is smaller than {1 / RESOURCE_UNITS}, the smallest share")
    if units > RESOURCE_UNITS_MAX:
        raise ValueError(f"{amount} is larger than {RESOURCE_UNITS_MAX // RESOURCE_UNITS}")
    return units
