"""How often two identical arms seem to differ at one of a hundred looks, beside a test that is right for one look.

    python benchmarks/rollouts/looks.py [--full] [-o FILE]

Arms of 20,000 decisions each, or of 2,000 and 38,000, are looked at a hundred times, with a stated error of 5 %. What counts is
whether any look calls a difference.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from bench import BenchmarkRow, arguments, report, row  # noqa: E402
from scipy.stats import norm  # noqa: E402

from mlpkg.rollout.rates import lower_rate, upper_rate  # noqa: E402
from mlpkg.rollout.sample_ratio import always_valid_sample_ratio, sample_ratio_p_value  # noqa: E402
from mlpkg.rollout.sequential import LEAST_RARE, sequence_radius  # noqa: E402

ALPHA, LOOKS = 0.05, 100
Array = np.ndarray


def ever(calls: Array) -> float:
    """Return the share of runs with a call at any look."""
    return float(calls.any(1).mean())


def rates(rng: np.random.Generator, rate: float, sizes: tuple[int, int], runs: int) -> Iterator[BenchmarkRow]:
    """Compare the rates of two arms: by the sequence of means, and by exact bounds for harm alone."""
    (k0, n0), (k1, n1) = (
        (rng.binomial(size // LOOKS, rate, (runs, LOOKS)).cumsum(1), np.arange(1, LOOKS + 1) * (size // LOOKS))
        for size in sizes
    )
    p0, p1 = k0 / n0, k1 / n1
    error = np.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs((p1 - p0) / error)
    limit = np.array([sequence_radius(1, n, ALPHA) for n in (n0 + n1).tolist()])
    least = np.minimum(np.minimum(k0, n0 - k0), np.minimum(k1, n1 - k1))
    work = f"identical arms of {sizes[0]:,} and {sizes[1]:,} with a rate of {rate:.1%}"
    naive = ever(z > norm.isf(ALPHA / 2))
    yield row(
        f"{work}, sequence", ever((z > limit) & (least >= LEAST_RARE)), "z-test at each look", naive, "ours <= 0.05", ""
    )
    yield row(f"{work}, sequence from the first look on", ever(z > limit), "", None, "ours >= 0", "")
    low = lower_rate(k1, n1, ALPHA / 2) - upper_rate(k0, n0, ALPHA / 2)
    once = ever((p1 - p0) / np.where(error > 0, error, np.inf) > norm.isf(ALPHA))
    yield row(f"{work}, exact bounds", ever(low > 0), "one-sided z-test at each look", once, "ours <= 0.05", "")


def sample_ratio(rng: np.random.Generator, share: float, runs: int) -> BenchmarkRow:
    """Compare counts with shares that are kept."""
    first, total = rng.binomial(400, share, (runs, LOOKS)).cumsum(1), np.arange(1, LOOKS + 1) * 400
    calls = {check: np.zeros((runs, LOOKS), bool) for check in (sample_ratio_p_value, always_valid_sample_ratio)}
    for place in np.ndindex(runs, LOOKS):
        counts = int(first[place]), int(total[place[1]] - first[place])
        for check, called in calls.items():
            called[place] = check(counts, [share, 1 - share]) <= ALPHA
    naive, valid = map(ever, calls.values())
    return row(f"shares of {share:.0%} that are kept", valid, "chi-square at each look", naive, "ours <= 0.05", "")


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rng, runs = np.random.default_rng(1), 4000 if options.full else 1000
    for rate in (0.1, 0.001):
        for sizes in ((20_000, 20_000), (38_000, 2_000)):
            yield from rates(rng, rate, sizes, runs)
    for share in (0.5, 0.01):
        yield sample_ratio(rng, share, runs // 10)


if __name__ == "__main__":
    options = arguments(__doc__ or "").parse_args()
    report(list(measure(options)), options.output)
