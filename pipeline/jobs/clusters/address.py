"""`Address`: a scheduler that is running, over TLS with certificates where it asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import InputError, PlanError
from pipeline.jobs.clusters.opening import quiet
from pipeline.jobs.spec import ClusterSpec, TLSSpec, _Name

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Address"]

_PATIENCE = "10s"


class Address(ClusterSpec):
    """Where the scheduler listens, and the certificates; without any those of Dask's own configuration are taken."""

    kind: Literal["address"] = "address"
    address: _Name = Field(description="the address of a scheduler, such as tcp://host:8786")
    tls: TLSSpec | None = Field(default=None, description="a section of the keys ca, cert and key")

    @model_validator(mode="before")
    @classmethod
    def _nothing_local(cls, settings: Any) -> Any:
        if {"threads_per_worker", "memory_limit", "workers"} & set(settings):
            raise ValueError(
                "workers, threads_per_worker and memory_limit are for a local cluster: leave them out with address"
            )
        return settings

    @model_validator(mode="after")
    def _encrypted(self) -> Address:
        if self.tls is not None and not self.address.startswith("tls://"):
            raise ValueError(f"tls is for an address such as tls://host:8786: {self.address} is not encrypted")
        return self

    @contextmanager
    def client(self, stays: bool = False) -> Iterator[Client]:
        """Connect; raises PlanError when the scheduler does not answer within ten seconds."""
        from distributed import Client, Security
        from distributed.comm import resolve_address

        security = Security() if self.tls is None else self.tls.security()
        if self.address.startswith("tls://") and security.get_connection_args("client")["ssl_context"] is None:
            raise InputError(
                f"{self.address} asks for certificates: give cluster.tls (ca, cert and key), or set Dask's own "
                "distributed.comm.tls (DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like)"
            )
        way_out = "check that it runs and that the address is right"
        if self.address.startswith("tls://"):
            way_out = "check that it runs, that the address is right, and that one authority signed both certificates"
        try:
            resolve_address(self.address)  # a client of what is no address takes long to give up, with a traceback
            with quiet():
                # Not as default: one that cannot connect would stay the default for whatever runs later.
                client = Client(self.address, timeout=_PATIENCE, set_as_default=False, security=security)
        except Exception as error:  # a connection that ends half way ends in any of many errors
            raise PlanError(f"the scheduler at {self.address} does not answer: {way_out}") from error
        with client, client.as_current():
            yield client

    def shown(self) -> str:
        """The address."""
        return self.address
