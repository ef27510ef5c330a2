"""`missing='em'`: probabilistic PCA of the entries that are there, around any other solver.

The other solver's answer, with means in the place of what is missing, is where it starts; with nothing missing it is
the maximum of the likelihood, in closed form (Tipping and Bishop 1999), and the end. Every further pass is an E-step.
Two of them make an extrapolation (Varadhan and Roland 2008), which is taken back where the likelihood fell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.expectations import Expectations
from pipeline.kernels.blocks import doubled, magnitudes
from pipeline.kernels.em import Sums, maximised
from pipeline.kernels.linalg import principal_angles
from pipeline.matrix import Matrix
from pipeline.solvers.solver import CONVERGED, LIMIT, Answer, Cost, Settings, Solver
from pipeline.subspace import Subspace

__all__ = ["EM", "EMState"]

_CLOSE = 1e-7  # sine of the angle that is still to go, and relative change of variances, at which it is done
_MOST = 1000  # passes


@dataclass(frozen=True)
class Model:
    """Loadings (d, k), offset of the mean from the pilot (d,) and noise variance, in weighted, scaled units."""

    loadings: np.ndarray
    offset: np.ndarray
    noise: float


@dataclass(frozen=True)
class EMState:
    """The state of the solver inside; then the model, the steps that led to it, and how likely it is."""

    inner: Any
    passes: int = 0
    start: Subspace | None = None
    model: Model | None = None
    """Of which the next pass takes the expectations."""
    safe: Model | None = None
    """Where to go back to, when `model` is an extrapolation."""
    before: Model | None = None
    """The model before `model`, when it is a plain step."""
    likelihood: float = -np.inf
    reason: str | None = None


@dataclass(frozen=True)
class EM:
    """Expectation maximisation after `inner`, which finds the answer for complete data."""

    inner: Solver[Any]
    exact: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """That of the solver inside."""
        return self.inner.name

    @property
    def settings(self) -> Settings:
        """Those of the solver inside."""
        return self.inner.settings

    def cost(self, X: Matrix) -> Cost:
        cost, d = self.inner.cost(X), X.shape[1]
        k = self.settings.rank.most(*X.shape) if not self.settings.rank.open else min(32, *X.shape)
        sums = 8 * d * ((k + 1) * (k + 2) // 2 + k + 2)
        return replace(
            cost,
            passes=cost.passes + 1,
            summary_bytes=max(cost.summary_bytes, sums),
            scratch_bytes=cost.scratch_bytes + 2 * sums + (256 << 20),
            client_bytes=cost.client_bytes + 3 * sums,
            state_bytes=cost.state_bytes + 3 * sums,
        )

    def init(self, X: Matrix) -> EMState:
        return EMState(self.inner.init(X))

    def fold(self, X: Matrix, state: EMState) -> Any:
        if state.start is None or state.model is None:
            return self.inner.fold(X, state.inner)
        m, s = state.model, state.start
        return Expectations(
            m.loadings, m.offset, m.noise, s.offset, s.factor, s.present, doubled(X.dtype), X.sample_weights
        )

    def step(self, X: Matrix, state: EMState, summary: Any) -> EMState:
        if state.start is None:
            state = replace(state, inner=self.inner.step(X, state.inner, summary))
            if self.inner.done(state.inner) is None:
                return state
            start = replace(self.inner.result(X, state.inner), features=None)  # a state is made of arrays
            return replace(state, start=start, model=_start(start), passes=start.passes)
        state = replace(state, passes=state.passes + 1)
        if summary.gaps == 0:
            return replace(state, reason=self.inner.done(state.inner))
        if X.dtype.kind == "c":
            raise InputError(f"{X.name} is complex and has missing entries: missing='em' needs real numbers")
        return self._advance(state, summary)

    def done(self, state: EMState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: EMState) -> Subspace:
        start, model = state.start, state.model
        assert start is not None
        assert model is not None
        if state.reason not in (CONVERGED, LIMIT) or state.before is None:
            return replace(start, features=X.features)
        k, d = start.k, int(start.present.sum())
        left, values, _ = np.linalg.svd(model.loadings, full_matrices=False)
        variances = values**2 + model.noise
        components = np.zeros((X.shape[1], k))
        components[start.present] = left
        # About zero, the model's second moments are those of the data as it is: its mean stays that of the entries.
        mean = np.where(start.present, start.mean, np.nan)
        if start.centered:
            factor = start.factor[start.present]
            mean[start.present] += np.divide(model.offset, factor, out=np.zeros(d), where=factor > 0)
        n = start.n_samples
        energy = n * float((values**2).sum() + d * model.noise)
        if not start.centered:
            energy -= n * float(np.square(np.where(start.present, start.mean, 0.0) * start.factor).sum())
        return Answer(
            components,
            np.sqrt(n * variances),
            mean,
            start.scale,
            n,
            max(energy, 0.0) / start.dof if start.dof else 0.0,
            np.ones(k),  # nothing is known: no entry of Z^T u can be computed
            np.ones(k),
            state.passes,
        ).subspace(X, self.settings)

    def _advance(self, state: EMState, sums: Sums) -> EMState:
        """The next model: a plain step, every second time extrapolated, and back where the likelihood fell."""
        assert state.model is not None
        slack = 1e-12 * abs(state.likelihood) if np.isfinite(state.likelihood) else 0.0
        if state.safe is not None and not sums.log_likelihood >= state.likelihood - slack:
            return replace(state, model=state.safe, safe=None, before=state.before)
        floor = 1e-13 * float(sums.squares.sum()) / max(float(sums.moments[:, -1].sum()), 1.0)
        assert state.start is not None
        after = Model(*maximised(sums, state.start.centered, max(floor, np.finfo(float).tiny)))
        state = replace(state, likelihood=sums.log_likelihood)
        first = state.safe is not None or state.before is None
        reason = self._reason(state, after, None if first else state.before)
        if first or reason is not None:
            return replace(state, before=state.model, model=after, safe=None, reason=reason)
        assert state.before is not None
        assert state.model is not None
        far = _extrapolated(state.before, state.model, after)
        return replace(state, before=state.model, model=far, safe=after)

    def _reason(self, state: EMState, after: Model, before: Model | None) -> str | None:
        assert state.model is not None
        step = _apart(state.model, after)
        if before is not None:
            rate = min(step / max(_apart(before, state.model), np.finfo(float).tiny), 0.999)
            if step * max(rate / (1 - rate), 1.0) < _CLOSE:
                return CONVERGED
        if step < 1e-12:
            return CONVERGED
        return LIMIT if state.passes >= _MOST else None


def _start(start: Subspace) -> Model:
    """The model of an answer, in closed form: W = V (L - s2)^(1/2), s2 the mean of the variances left out."""
    n, basis = max(start.n_samples, 1.0), start.basis[:, start.present].real.astype(np.float64)
    variances = np.square(start.singular_values) / n
    energy = start.total_variance * start.dof / n
    if not start.centered:
        energy += float(magnitudes(np.where(start.present, start.mean, 0.0) * start.factor).sum())
    d = basis.shape[1]
    noise = (energy - float(variances.sum())) / max(d - start.k, 1)
    noise = max(noise, 1e-3 * energy / d, np.finfo(float).tiny)
    return Model(basis.T * np.sqrt(np.maximum(variances - noise, noise)), np.zeros(d), noise)


def _apart(a: Model, b: Model) -> float:
    """How far two models are apart: sine of the largest angle, or relative change of the variances."""
    qa, qb = (np.linalg.svd(m.loadings, full_matrices=False) for m in (a, b))
    angle = float(np.sin(principal_angles(qa[0].T, qb[0].T)[0])) if a.loadings.shape[1] else 0.0
    scale = np.sqrt(qb[1][0] ** 2 + b.noise)
    moved = [np.abs(qa[1] - qb[1]).max() / scale, np.abs(a.offset - b.offset).max() / scale]
    return max(angle, *map(float, moved))


def _extrapolated(a: Model, b: Model, c: Model) -> Model:
    """Where three models in a row lead to (squared extrapolation, scheme S3)."""

    def flat(m: Model) -> np.ndarray:
        return np.concatenate([m.loadings.ravel(), m.offset, [np.log(m.noise)]])

    x0, x1, x2 = map(flat, (a, b, c))
    step, bend = x1 - x0, x2 - 2 * x1 + x0
    size = float(np.linalg.norm(bend))
    alpha = -max(1.0, float(np.linalg.norm(step)) / size) if size > 0 else -1.0
    x = x0 - 2 * alpha * step + alpha**2 * bend
    kd, d = a.loadings.size, a.offset.size
    noise = np.exp(np.clip(x[-1], x2[-1] - 2.0, x2[-1] + 2.0))
    return Model(x[:kd].reshape(a.loadings.shape), x[kd : kd + d], float(noise))
