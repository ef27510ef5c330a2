"""`DP`: differential privacy of what a site sends, by the Gaussian mechanism, and the budget that it may spend.

Two sets of rows are neighbours when one row is another; the number of rows is public. A site computes with its mean and
its second moments after noise was added to both (Dwork et al. 2014, "Analyze Gauss"), once: all that it sends in any
round is computed from these and costs no more. What is spent is counted by Google's dp-accounting, across federations.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from pipeline.errors import FederationError, InputError

__all__ = ["DP", "Ledger", "noisy", "noisy_symmetric"]

_MEAN_NOISE = 2.0  # times that of the second moments: a mean needs little
_FINE = 2.0**-30  # of the sensitivity: the grid on which noise is added
_SLACK = 1.0 + 1e-6  # for the rounding of sums
_CAUTION = 1.0 + 1e-4


@dataclass(frozen=True)
class DP:
    """(epsilon, delta)-differential privacy for rows of a bounded norm.

    Parameters
    ----------
    epsilon, delta : float
        What may be lost about one row in all, however many rounds: with probability 1 - delta no answer becomes more
        than e^epsilon times likelier.
    row_norm : float
        Longer rows are shortened to it: about the origin for the mean, about the mean for the components. In the
        units that components are in.

    Examples
    --------
    >>> DP(1.0, 1e-6, row_norm=3.0).epsilon
    1.0
    """

    epsilon: float
    delta: float
    row_norm: float

    def __post_init__(self) -> None:
        for name, most in (("epsilon", math.inf), ("delta", 1.0), ("row_norm", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < most:
                limit = "between 0 and 1" if most == 1 else "positive and finite"
                raise InputError(f"{name}={value!r}: give a number that is {limit}")
            object.__setattr__(self, name, float(value))

    @property
    def multipliers(self) -> tuple[float, float]:
        """Noise of the mean and of the second moments, over their sensitivities, that spends all of it."""
        return _multipliers(self.epsilon, self.delta)

    def to_dict(self) -> dict[str, float]:
        """As plain JSON values."""
        return asdict(self)


@dataclass
class Ledger:
    """What a site may spend and has spent: the multipliers of all noise that it has added."""

    budget: DP | None = None
    spent: tuple[float, ...] = ()

    def spend(self, asked: DP) -> tuple[float, float]:
        """The multipliers for one federation; raises FederationError where the budget does not suffice.

        A site without a budget of its own takes that of the first federation.
        """
        budget = self.budget or asked
        if asked.row_norm != budget.row_norm or asked.delta > budget.delta:
            raise FederationError(
                f"the site's budget is for row_norm={budget.row_norm:g} and delta={budget.delta:g}: ask for these"
            )
        after = (*self.spent, *asked.multipliers)
        total = spent_epsilon(after, budget.delta)
        if total > budget.epsilon * (1 + 1e-9):
            raise FederationError(
                f"the privacy budget is spent: epsilon {self.epsilon:.3g} of {budget.epsilon:g} is gone, and this "
                f"federation would make it {total:.3g}"
            )
        self.budget, self.spent = budget, after
        return asked.multipliers

    @property
    def epsilon(self) -> float:
        """Spent so far, at the budget's delta."""
        return spent_epsilon(self.spent, self.budget.delta) if self.budget is not None else 0.0


def spent_epsilon(multipliers: tuple[float, ...], delta: float) -> float:
    """Epsilon of Gaussian mechanisms one after the other, whatever each is told of those before it.

    They are together one Gaussian mechanism, 1 / m^2 = sum 1 / m_i^2 (Dong, Roth and Su 2022), whose epsilon is known
    exactly (Balle and Wang 2018); it is made a little larger, which covers what numerical accountants add.
    """
    if not multipliers:
        return 0.0
    whole = 1 / math.sqrt(sum(m**-2 for m in multipliers))
    return float(_accounting().get_epsilon_gaussian(whole, delta)) * _CAUTION


@lru_cache(maxsize=64)
def _multipliers(epsilon: float, delta: float) -> tuple[float, float]:
    whole = float(_accounting().get_sigma_gaussian(epsilon / _CAUTION / (1 + 1e-12), delta))
    of_scatter = whole * math.sqrt(1 + _MEAN_NOISE**-2)
    return _MEAN_NOISE * of_scatter, of_scatter


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise InputError("privacy needs dp-accounting: pip install 'subspace-pipeline[federation]'") from error
    return dp_accounting


def noisy(values: np.ndarray, sensitivity: float, multiplier: float, rng: np.random.Generator) -> np.ndarray:
    """Values with Gaussian noise, both on one grid, so that the last digits of floats tell nothing (Mironov 2012).

    Parameters
    ----------
    values : array
    sensitivity : float
        How far (Euclidean) the values can move between neighbours.
    multiplier : float
        Standard deviation of the noise over the sensitivity.
    rng : Generator
        Seeded by the system, and by nothing that others know.
    """
    if not np.isfinite(values).all():
        raise InputError("there is no privacy for NaN or Inf")
    grid = 2.0 ** math.floor(math.log2(sensitivity * _FINE))
    # Rounding moves each entry by at most half a step, so that neighbours are that much farther apart.
    size = (sensitivity * _SLACK + grid * math.sqrt(values.size)) * multiplier
    steps = np.rint(values / grid) + np.rint(rng.standard_normal(values.shape) * (size / grid))
    return steps * grid


def noisy_symmetric(a: np.ndarray, sensitivity: float, multiplier: float, rng: np.random.Generator) -> np.ndarray:
    """A symmetric matrix with independent noise on and above its diagonal, and the nearest positive one to that."""
    upper = np.triu_indices(len(a))
    noised = np.zeros_like(a)
    noised[upper] = noisy(a[upper], sensitivity, multiplier, rng)
    noised = noised + np.triu(noised, 1).T
    values, vectors = np.linalg.eigh(noised)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
