"""Functions as users write them: over arrays for a definition, and over plain numbers for the oracle.

They stand in a short module, because the text of the module of a function is parsed each time a definition is read.
"""

import numpy as np


def hour_of_day(time):
    return time // 3_600_000_000 % 24


def wheel(card):
    return card % 2


def drawdown(x):
    """How far the column fell below its highest value so far."""
    return (np.maximum.accumulate(x) - x).max()


def plain_drawdown(x):
    return max(max(x[: i + 1]) - x[i] for i in range(len(x)))


def apart(x, shop):
    """The largest value of the last shop, less the smallest of the others."""
    return x[shop == shop[-1]].max() - x.min()


def plain_apart(x, shop):
    return max(v for v, s in zip(x, shop) if s == shop[-1]) - min(x)
