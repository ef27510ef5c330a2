"""`FederatedPCA`: principal components of rows that stay at their sites."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from pipeline.errors import InputError
from pipeline.estimators.components import Components, seed_of, start_of
from pipeline.federation import AGGREGATIONS, METHODS, Site
from pipeline.federation.aggregation import check_options, stored
from pipeline.federation.answers import subspace_from
from pipeline.federation.circle import Circle
from pipeline.federation.privacy import DP
from pipeline.federation.record import Record, pack, unpack
from pipeline.federation.rounds import Keep, Method, federate, state_from
from pipeline.federation.site import Member, sites_of
from pipeline.federation.terms import Terms
from pipeline.matrix import Matrix, open_matrix
from pipeline.subspace import Subspace

__all__ = ["FederatedPCA"]


class FederatedPCA(Components):
    """Principal components that sites agree on without showing a row.

    Parameters
    ----------
    n_components : int
        How many.
    aggregation : str
        'power': rounds of products, exact in the limit; 'fedpg', 'fedpe' (or 'admm'): rounds of local gradient steps;
        or one exchange of the sites' own components: 'merge', 'projector_mean', 'procrustes', 'flag_mean',
        'flag_median', 'geometric_median', 'trimmed' (see `aggregate`).
    rounds : int, optional
        Exchanges of n_components x n_features numbers at most; default: until it has converged.
    privacy : DP, optional
        Differential privacy of what every site sends.
    center : bool
        Subtract the mean of all sites.
    scale : {None, 'std'}
        Divide features by their standard deviation.
    standardise : {'global', 'site'}
        By the mean and spread of all sites together, or each site by its own.
    n_personal : int
        With 'projector_mean': components of each site's own, beside those that all share. A direction is shared where
        it is among the leading n_components + n_personal of the sites, however strong it is there.
    secure : bool
        Learn only sums over all sites (with 'power', 'fedpg' and 'fedpe'): what a single site says stays masked.
    quorum : int or float, optional
        Sites that must stay in, as a number or a share; default: more than half.
    timeout : float
        Seconds that a site has for each answer.
    tol : float
        Estimated sine of the largest angle at which rounds end.
    options : dict, optional
        Of the aggregation, as {'trim': 0.2} or {'flag_type': (1, 3)}.
    checkpoint : path, URL or zarr Store, optional
        Where the state of the rounds is kept: a federation that was broken off goes on there.
    random_state : int, RandomState or None
        Of what is random at the coordinator.

    Attributes
    ----------
    components_, mean_, singular_values_, explained_variance_, explained_variance_ratio_, n_components_, n_samples_
        As of `PCA`.
    subspace_ : Subspace
        With the certificate; its provenance has the cost of every round.
    n_rounds_ : int
    bytes_exchanged_ : int
        Sent to and received from all sites.
    rounds_ : list of dict
        For each round its task, number of sites asked, bytes sent and received, and seconds.
    personal_ : dict
        With `n_personal`, the Subspace of each site beside the shared one, by name.
    excluded_ : dict
        Sites that were left out, by name, each with the reason.
    sites_ : list of str
        The names of the sites that stayed in.

    Examples
    --------
    >>> from pipeline import PCA
    >>> X = np.random.default_rng(0).normal(size=(300, 8)) * [9, 6, 3, 1, 1, 1, 1, 1]
    >>> fed = FederatedPCA(2).fit([X[:50], X[50:120], X[120:]])
    >>> bool(fed.subspace_.distance(PCA(2).fit(X).subspace_).max() < 1e-6), fed.excluded_
    (True, {})
    """

    missing = "error"  # not a parameter: a site's rows are what they are

    def __init__(
        self,
        n_components: int,
        aggregation: str = "power",
        rounds: int | None = None,
        privacy: Any = None,
        *,
        center: bool = True,
        scale: str | None = None,
        standardise: str = "global",
        n_personal: int = 0,
        secure: bool = False,
        quorum: int | float | None = None,
        timeout: float = 600.0,
        tol: float = 1e-8,
        options: Mapping[str, Any] | None = None,
        checkpoint: Any = None,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.aggregation = aggregation
        self.rounds = rounds
        self.privacy = privacy
        self.center = center
        self.scale = scale
        self.standardise = standardise
        self.n_personal = n_personal
        self.secure = secure
        self.quorum = quorum
        self.timeout = timeout
        self.tol = tol
        self.options = options
        self.checkpoint = checkpoint
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, start: Any = None) -> Self:
        """Find the components that the sites agree on.

        Parameters
        ----------
        X : sequence of Site, or of anything that `open_matrix` opens; or one Matrix
            The sites. One Matrix: each worker of the active Dask cluster is a site for the blocks that it reads.
        y : ignored
        start : Subspace, fitted model or the path of a store, optional
            Where the rounds of 'power', 'fedpg' and 'fedpe' begin, such as the answer of last week.

        Raises
        ------
        InputError
            When a parameter is wrong, or sites cannot be told apart.
        FederationError
            When fewer sites than the quorum are left, or a site refuses.
        ConvergenceError
            When a median does not come to rest.
        """
        terms, method = self.checked()
        sites = _named(X)
        labels = _labels(sites, terms.k)
        if self.secure and len(sites) < 2:
            raise InputError("a secure sum needs at least two sites")
        circle = Circle(sites, self._quorum(len(sites)), float(self.timeout), uuid.uuid4().hex, bool(self.secure))
        state, keep = self._resumed(circle, method, terms)
        if start is not None and state is None:
            state = self._begun(method.init(terms), start_of(start))
        found = federate(circle, method, terms, state, keep)
        self._shared = self._personal(found, circle, terms) if self.n_personal else {}
        self._finish(found, circle, labels)
        return self

    def checked(self) -> tuple[Terms, Method[Any]]:
        """What sites will be asked and how, from the parameters; raises InputError where one of these is wrong."""
        terms, method = self._terms(), self._method()
        method.init(terms)
        return terms, method

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit one Matrix and give its scores; raises InputError for several sites, whose rows stay where they are."""
        if isinstance(X, list | tuple | Mapping):
            raise InputError("rows of sites stay there: fit the sites, then transform the rows of each at its site")
        return self.fit(X, y, **fit_params).transform(X)

    def _begun(self, state: Any, start: Subspace) -> Any:
        """The first state of a method of rounds, with the leading directions of a start."""
        rows = np.asarray(start.basis, np.float64)[: int(self.n_components), start.present]
        for name in ("start", "z"):
            if any(f.name == name for f in fields(state)) and len(rows) == self.n_components:
                return replace(state, **{name: rows})
        raise InputError(f"a start of {start.k} components cannot serve {self.aggregation!r} of {self.n_components}")

    def _resumed(self, circle: Circle, method: Method[Any], terms: Terms) -> tuple[Any, Keep | None]:
        """Where an earlier run stopped, if it did, and what keeps the state of each round."""
        if self.checkpoint is None or not method.resumable:
            return None, None
        from pipeline.store.messages import Messages

        box, how = Messages(self.checkpoint), {"options": self.options, "secure": self.secure, "center": self.center}
        asked = {"terms": terms.to_dict(), "sites": list(circle.sites), "method": method.name, **how}
        story = json.loads(json.dumps(asked, default=str))

        def keep(state: Record) -> None:
            told = {"state": dict(state.facts), "story": story, "circle": circle.to_dict()}
            box.put("federation", pack(replace(state, facts=told)))

        data = box.get("federation")
        if data is None:
            return None, keep
        record = unpack(data)
        if record.facts["story"] != story:
            raise InputError(f"{box.place} keeps a federation of other sites or settings: choose another checkpoint")
        circle.restore(record.facts["circle"])
        kept = state_from(type(method.init(terms)), replace(record, facts=record.facts["state"]))
        return kept, keep

    def _personal(self, found: Subspace, circle: Circle, terms: Terms) -> dict[str, np.ndarray]:
        arrays = {"block": np.asarray(found.basis, np.float64)}
        if found.scale is not None and self.standardise == "global":
            arrays["scale"] = np.where(found.present, found.scale, 1.0)
        number = circle.rounds[-1].round + 1
        replies = circle.exchange(Record("personal", number, arrays, {**terms.facts, "k": int(self.n_personal)}))
        self.personal_ = {name: subspace_from(reply) for name, reply in replies.items()}
        return {name: np.asarray(reply.arrays["shared"]) for name, reply in replies.items()}

    def personalised(self, name: str) -> Subspace:
        """The shared and a site's own components as one Subspace, for that site's rows; its values are estimates.

        Raises InputError where there is no such site, or nothing personal was asked for.
        """
        check_is_fitted(self)
        if name not in self._shared:
            known = ", ".join(self._shared) or "none: fit with n_personal"
            raise InputError(f"there is nothing personal of a site {name!r}; known are {known}")
        own = self.personal_[name]
        rows = np.concatenate([self.subspace_.components, np.where(own.present, own.components, np.nan)])
        values = np.concatenate([self._shared[name], own.singular_values])
        order = np.argsort(-values, kind="stable")
        return replace(
            self.subspace_,
            components=rows[order].astype(self.subspace_.components.dtype),
            singular_values=values[order],
            mean=own.mean if self.standardise == "global" else self.subspace_.mean,
            n_samples=own.n_samples,
            total_variance=own.total_variance,
            residual=np.ones(values.size),
            angle_bounds=np.full(values.size, np.pi / 2),
            left_out=None,
        )

    def _finish(self, found: Subspace, circle: Circle, labels: Any) -> None:
        log = [asdict(r) for r in circle.rounds]
        story = {
            "method": type(self).__name__,
            "parameters": {name: _plain(value) for name, value in self.get_params().items()},
            "aggregation": self.aggregation,
            "sites": circle.present,
            "excluded": dict(circle.excluded),
            "rounds": [{**r, "seconds": round(r["seconds"], 6)} for r in log],
            "bytes_exchanged": sum(r["sent"] + r["received"] for r in log),
        }
        dtype, features = labels
        if self.privacy is not None:
            story["privacy"] = self.privacy.to_dict()
            # What noise and clipping did to the rows is not known to anybody.
            unknown = np.full(found.k, np.inf)
            found = replace(found, residual=unknown, angle_bounds=np.full(found.k, np.pi / 2))
        self.n_features_in_ = found.n_features
        found = stored(replace(found, passes=len(log), features=features), dtype)
        self._keep(replace(found, provenance={**story, **found.provenance, "method": story["method"]}))
        self.rounds_, self.n_rounds_ = log, len(log)
        self.bytes_exchanged_, self.excluded_ = story["bytes_exchanged"], dict(circle.excluded)
        self.sites_ = circle.present

    def _keep(self, subspace: Subspace) -> None:
        super()._keep(subspace)
        self.mean_ = subspace.offset if subspace.present.all() else np.where(subspace.present, subspace.offset, np.nan)
        left = min(int(subspace.n_samples), int(subspace.present.sum())) - subspace.k
        self.noise_variance_ = subspace.unexplained_variance / left if left > 0 else 0.0

    def _terms(self) -> Terms:
        k = self.n_components
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
            raise InputError(f"n_components={k!r}: sites agree on a number of components, give one from 1")
        if self.scale not in (None, "std"):
            raise InputError(f"scale={self.scale!r}: choose None or 'std'")
        if self.standardise not in ("global", "site"):
            raise InputError(f"standardise={self.standardise!r}: choose 'global' or 'site'")
        if not isinstance(self.center, bool | np.bool_):
            raise InputError(f"center={self.center!r}: give True or False")
        if self.standardise == "site" and self.scale is None:
            raise InputError("standardise='site' needs scale='std': without a scale the mean is that of all sites")
        rounds = self.rounds
        if rounds is not None and (not isinstance(rounds, Integral) or isinstance(rounds, bool) or rounds < 1):
            raise InputError(f"rounds={rounds!r}: give a number from 1, or None")
        if self.privacy is not None and not isinstance(self.privacy, DP):
            raise InputError(f"privacy={self.privacy!r}: give DP(epsilon, delta, row_norm) or None")
        if self.privacy is not None and self.scale is not None:
            raise InputError("with privacy features are not divided by their spread: give weights that are no secret")
        for name in ("timeout", "tol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
                raise InputError(f"{name}={value!r}: give a positive number")
        return Terms(
            int(k),
            int(k) + self._extra(),
            bool(self.center),
            self.scale,
            self.standardise,
            None if rounds is None else int(rounds),
            float(self.tol),
            seed_of(self.random_state),
            self.privacy,
        )

    def _extra(self) -> int:
        p = self.n_personal
        if not isinstance(p, Integral) or isinstance(p, bool) or int(p) < 0:
            raise InputError(f"n_personal={p!r}: give a number from 0")
        if p and self.aggregation != "projector_mean":
            raise InputError("n_personal needs aggregation='projector_mean': others take the strongest for the shared")
        return int(p)

    def _method(self) -> Method[Any]:
        if not isinstance(self.aggregation, str) or self.aggregation not in METHODS:
            raise InputError(f"aggregation={self.aggregation!r}: choose one of {', '.join(map(repr, METHODS))}")
        if not isinstance(self.options, Mapping | None):
            raise InputError(f"options={self.options!r}: give a dict such as {{'trim': 0.2}}")
        options = dict(self.options or {})
        if self.secure:
            if self.aggregation in AGGREGATIONS:
                raise InputError(f"secure sums cannot serve {self.aggregation!r}, which needs more than sums")
            if options.get("participation", 1) != 1:
                raise InputError("secure sums are over all sites: leave out participation")
            if self.standardise == "site":
                raise InputError("secure sums need standardise='global'")
            options |= {"start": "random"} if self.aggregation == "power" else {}
        maker = AGGREGATIONS.get(self.aggregation, METHODS[self.aggregation])
        check_options(self.aggregation, maker, options)
        return METHODS[self.aggregation](**options)

    def _quorum(self, m: int) -> int:
        q = m // 2 + 1 if self.quorum is None else self.quorum
        if isinstance(q, bool) or not isinstance(q, Real) or not q > 0:
            raise InputError(f"quorum={self.quorum!r}: give a number of sites, or a share of them")
        needed = int(q) if isinstance(q, Integral) else int(np.ceil(float(q) * m)) if q <= 1 else -1
        if not 1 <= needed <= m:
            raise InputError(f"quorum={self.quorum!r}: there are {m} sites")
        return needed


def _named(X: Any) -> dict[str, Member]:
    """Sites by name; raises InputError where there are none or two have the same name."""
    if isinstance(X, Mapping):
        X = [site if hasattr(site, "ask") else Site(site, name=name) for name, site in X.items()]
    if not isinstance(X, list | tuple):
        X = [X] if hasattr(X, "ask") else sites_of(open_matrix(X))
    if not X:
        raise InputError("there are no sites")
    named: dict[str, Member] = {}
    for i, site in enumerate(X):
        member = site if hasattr(site, "ask") else Site(site)
        name = member.name or f"site {i}"
        if name in named:
            raise InputError(f"two sites have the name {name!r}: give each its own")
        named[name] = member
    return named


def _labels(sites: Mapping[str, Member], k: int) -> tuple[Any, Any]:
    """Precision and names of the features, as far as they are known here; raises InputError where k does not fit."""
    matrices = [m for m in (getattr(site, "source", None) for site in sites.values()) if isinstance(m, Matrix)]
    if matrices and k > (width := max(m.shape[1] for m in matrices)):
        raise InputError(f"n_components={k} is more than the {width} features that the sites have")
    if any(m.dtype.kind == "c" for m in matrices):
        raise InputError("the sites' entries are complex: sites agree on real components only")
    if matrices and len(matrices) == len(sites) and k > (n := sum(m.shape[0] for m in matrices)):
        raise InputError(f"n_components={k} is more than the {n} samples that the sites have together")
    dtype = np.result_type(*(m.work_dtype for m in matrices)) if matrices else np.dtype(np.float64)
    return dtype, matrices[0].features if matrices else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(value)
