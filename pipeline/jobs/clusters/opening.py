"""What kinds of clusters have in common: a client that is the current one for a while, and errors in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import InputError, PlanError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["client_of", "needed", "quiet", "refuse_to_stay", "started"]


@contextmanager
def client_of(cluster: Any, **options: Any) -> Iterator[Client]:
    """A client of a cluster, or of a scheduler by its address, that is the current one while inside."""
    from distributed import Client

    # Not as default: one that cannot connect would stay the default for whatever runs later.
    with Client(cluster, set_as_default=False, **options) as client, client.as_current():
        yield client


@contextmanager
def started(what: str, start: Any, **options: Any) -> Iterator[Any]:
    """A cluster that another library starts, and closes at the end; raises PlanError when it cannot be started."""
    try:
        cluster = start(**options)
    except Exception as error:  # each of these libraries, and what they call, has errors of its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise PlanError(f"the {what} cluster cannot be started: {why[:300]}") from error
    with quiet(), cluster:
        yield cluster


@contextmanager
def quiet() -> Iterator[None]:
    """What Distributed logs about connections that end is no news to people who read one sentence of ours."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def needed(module: str, extra: str) -> Any:
    """A module of an extra; raises PlanError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise PlanError(
            f"this kind of cluster needs {module.split('.')[0].replace('_', '-')}: "
            f"install it with pip install 'subspace-pipeline[{extra}]'"
        ) from error


def refuse_to_stay(why: str) -> NoReturn:
    """A job that is to go on alone needs a scheduler that does."""
    raise InputError(f"{why}: give the address of a scheduler that goes on (--scheduler ADDRESS, or cluster.address)")
