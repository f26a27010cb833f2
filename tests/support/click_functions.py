"""The functions that the features of `clicks` are made of, in a short module, as each reading of a definition parses it."""

from mlpkg.times import HOUR


def hour_of_day(time):
    return time // HOUR % 24


def price_band(price):
    return (price // 20).astype(int)


def during_evening(time):
    return time // HOUR % 24 >= 18


def fall(prices):
    """How far the latest price lies below the highest."""
    return max(prices) - prices[-1]
