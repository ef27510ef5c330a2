"""A federation from its configuration: the coordinator's run, and the site that answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import FederationError, InputError
from pipeline.estimators.federated_pca import FederatedPCA
from pipeline.federation import METHODS
from pipeline.federation.answers import subspace_from, subspace_record
from pipeline.federation.privacy import DP
from pipeline.federation.record import Record
from pipeline.federation.site import Site
from pipeline.jobs.exchange import END, Exchange, SiteState, serve
from pipeline.jobs.run import check_outputs, head_of, open_source
from pipeline.jobs.seal import load_key
from pipeline.jobs.spec import SourceSpec, TLSSpec, _Name, _Spec, load_spec
from pipeline.store import load, save
from pipeline.subspace import Subspace

__all__ = ["FederationSpec", "SiteSpec", "load_federation", "load_site", "run_federation", "serve_site"]

_PATH = "the path or URL of a store"
_SAME = 1e-9  # relative


class ExchangeSpec(_Spec):
    """Where messages are left."""

    path: _Name = Field(description=_PATH)
    largest: int = Field(default=1 << 30, ge=1024, description="bytes of a message, at least 1024")


class PrivacySpec(_Spec):
    """Differential privacy of what sites send."""

    epsilon: float = Field(gt=0, strict=False, description="a positive number")
    delta: float = Field(gt=0, lt=1, strict=False, description="a number between 0 and 1")
    row_norm: float = Field(gt=0, strict=False, description="a positive number")

    def to_dp(self) -> DP:
        """As `FederatedPCA` takes it."""
        return DP(self.epsilon, self.delta, self.row_norm)


class MemberSpec(_Spec):
    """A site: its public key where it answers through the exchange, or the address of its own Dask cluster."""

    key: _Name | None = Field(default=None, description="the public key that 'pipeline site key' printed")
    address: _Name | None = Field(default=None, description="the address of a scheduler, such as tls://host:8786")
    source: _Name | None = Field(default=None, description="the path or URL of the rows, as the site's workers see it")
    tls: TLSSpec | None = Field(default=None, description="a section of keys such as ca")

    @model_validator(mode="after")
    def _one_way(self) -> MemberSpec:
        if (self.key is None) == (self.address is None):
            raise ValueError("give either key, of a site that answers through the exchange, or address and source")
        if (self.address is None) != (self.source is None) or (self.tls is not None and self.address is None):
            raise ValueError("address, source and tls go together: a site behind the exchange has none of them")
        return self


class FederatedModelSpec(_Spec):
    """The parameters of `FederatedPCA`."""

    n_components: int = Field(ge=1, description="an int of at least 1")
    aggregation: str = Field(default="power", description=f"one of {', '.join(METHODS)}")
    rounds: int | None = Field(default=None, ge=1, description="an int of at least 1")
    center: bool = Field(default=True, description="true or false")
    scale: Literal["std"] | None = Field(default=None, description="std")
    standardise: Literal["global", "site"] = Field(default="global", description="global or site")
    secure: bool = Field(default=False, description="true or false")
    tol: float = Field(default=1e-8, gt=0, strict=False, description="a positive number")
    options: dict[str, Any] | None = Field(default=None, description="options of the aggregation")
    random_state: int = Field(default=0, ge=0, description="an int of at least 0")

    @model_validator(mode="after")
    def _checked(self) -> FederatedModelSpec:
        FederatedPCA(**self.model_dump()).checked()
        return self


class FederatedOutputSpec(_Spec):
    """Where the model goes."""

    model: _Name = Field(description="the path or URL of the store to write")
    overwrite: bool = Field(default=False, description="true or false")


class FederationSpec(_Spec):
    """What the coordinator runs."""

    name: str | None = Field(default=None, description="text")
    exchange: ExchangeSpec | None = Field(default=None, description="a section of keys such as path")
    key: _Name | None = Field(default=None, description="the path of the coordinator's private key")
    sites: dict[_Name, MemberSpec] = Field(min_length=1, description="NAME: {key: …} for every site")
    model: FederatedModelSpec = Field(description="a section of keys such as n_components")
    privacy: PrivacySpec | None = Field(default=None, description="a section of keys such as epsilon")
    quorum: Annotated[int, Field(ge=1)] | None = Field(default=None, description="a number of sites, at least 1")
    timeout: float = Field(default=600.0, gt=0, strict=False, description="seconds, a positive number")
    checkpoint: _Name | None = Field(default=None, description=_PATH)
    output: FederatedOutputSpec = Field(description="a section of keys such as model")

    @model_validator(mode="after")
    def _reachable(self) -> FederationSpec:
        if any(s.key for s in self.sites.values()) and (self.exchange is None or self.key is None):
            raise ValueError("sites with a key need the sections exchange and key, of the coordinator")
        if self.quorum is not None and self.quorum > len(self.sites):
            raise ValueError(f"quorum is {self.quorum}; expected at most the {len(self.sites)} sites")
        self.estimator().checked()
        return self

    def estimator(self) -> FederatedPCA:
        """What is to be fitted to the sites."""
        return FederatedPCA(
            **self.model.model_dump(),
            privacy=None if self.privacy is None else self.privacy.to_dp(),
            quorum=self.quorum,
            timeout=self.timeout,
            checkpoint=self.checkpoint,
        )


class SiteOutputSpec(_Spec):
    """What a site keeps."""

    model: _Name = Field(description="the path or URL of the store to write the agreed model to")
    overwrite: bool = Field(default=False, description="true or false")


class SiteSpec(_Spec):
    """What a site serves."""

    name: _Name = Field(description="the name that the coordinator knows it by")
    exchange: ExchangeSpec = Field(description="a section of keys such as path")
    key: _Name = Field(description="the path of the site's private key")
    coordinator: _Name = Field(description="the coordinator's public key")
    source: SourceSpec = Field(description="a section of keys such as path")
    state: _Name | None = Field(default=None, description="the path of the file that keeps what was answered and spent")
    privacy: PrivacySpec | None = Field(default=None, description="a section of keys such as epsilon")
    patience: float | None = Field(default=None, gt=0, strict=False, description="seconds, a positive number")
    output: SiteOutputSpec | None = Field(default=None, description="a section of keys such as model")


def load_federation(path: str) -> FederationSpec:
    """The coordinator's configuration; raises InputError that names file, line and what was expected."""
    return load_spec(FederationSpec, path)


def load_site(path: str) -> SiteSpec:
    """A site's configuration; raises InputError that names file, line and what was expected."""
    return load_spec(SiteSpec, path)


def run_federation(spec: FederationSpec) -> FederatedPCA:
    """Agree with the sites of a configuration, write the model where it is another one than before, and tell the sites.

    Raises
    ------
    InputError, StoreError
        When the configuration, a key or an output cannot be used: before any site is asked.
    ConflictError
        When somebody else has published meanwhile.
    FederationError
        When fewer sites than the quorum are left; sites are told that it is over.
    """
    check_outputs([spec.output.model], overwrite=spec.output.overwrite)
    head = head_of(spec.output.model, spec.output.overwrite)
    exchange = None
    if spec.exchange is not None and spec.key is not None:
        keys = {name: s.key for name, s in spec.sites.items() if s.key is not None}
        exchange = Exchange(spec.exchange.path, load_key(spec.key), keys, spec.exchange.largest)
    sites = {name: _site(name, member, exchange) for name, member in spec.sites.items()}
    model = spec.estimator()
    over = [name for name, site in sites.items() if site.exchange is not None]
    try:
        model.fit(sites)
    except BaseException as error:
        if exchange is not None:
            exchange.end(over, Record(END, 0, {}, {"reason": str(error) or type(error).__name__}))
        raise
    if head is None or not _agree(load(spec.output.model, head), model.subspace_):
        save(model.subspace_, spec.output.model, overwrite=spec.output.overwrite, parent=head)
    if exchange is not None:
        record = subspace_record(model.subspace_, model.n_rounds_)
        exchange.end(over, replace(record, kind=END))
    return model


def serve_site(spec: SiteSpec, told: Callable[[str], None]) -> str | None:
    """Answer a coordinator until the federation is over; the place of the model where one was agreed on and is kept.

    Raises
    ------
    InputError, StoreError
        When the configuration, the key or the rows cannot be used.
    FederationError
        When the coordinator ended it without a model, or said nothing for as long as patience lasts.
    """
    privacy = None if spec.privacy is None else spec.privacy.to_dp()
    state = SiteState.load(spec.state or f"{spec.key}.state.json", privacy)
    if spec.output is not None:
        check_outputs([spec.output.model], spec.source.path, overwrite=spec.output.overwrite)
    key, X = load_key(spec.key), open_source(spec.source)
    last = serve(
        spec.name,
        X,
        spec.exchange.path,
        key,
        spec.coordinator,
        state,
        patience=spec.patience,
        largest=spec.exchange.largest,
        told=told,
    )
    if last is None:
        raise FederationError(f"site {spec.name}: no request of the coordinator for {spec.patience:g} s")
    if "components" not in last.arrays:
        raise FederationError(f"site {spec.name}: the coordinator gave up: {last.facts.get('reason')}")
    if spec.output is None:
        return None
    found = replace(subspace_from(last), features=X.features, provenance={"method": "FederatedPCA", "site": spec.name})
    save(found, spec.output.model, overwrite=spec.output.overwrite)
    return spec.output.model


def _agree(a: Subspace, b: Subspace) -> bool:
    """Whether two models are the same but for rounding: the same sites with the same rows."""
    if (a.k, a.n_features, a.n_samples) != (b.k, b.n_features, b.n_samples):
        return False
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("singular_values", "components", "mean")]
    return all(np.allclose(x, y, rtol=0, atol=_SAME * np.nanmax(np.abs(x)), equal_nan=True) for x, y in pairs)


def _site(name: str, member: MemberSpec, exchange: Exchange | None) -> Site:
    if member.address is None:
        return Site(exchange=exchange, name=name)
    try:
        security = None if member.tls is None else member.tls.security()
    except InputError as error:
        raise InputError(f"sites.{name}: {error}") from error
    return Site(member.source, name=name, address=member.address, security=security)
