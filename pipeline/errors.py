"""The errors of the project: each names the cause, the place and the way out.

>>> from pipeline.errors import InputError
>>> isinstance(InputError("no such dim 'tme'"), ValueError)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.subspace import Subspace

__all__ = [
    "ConflictError",
    "ConvergenceError",
    "FederationError",
    "InputError",
    "NonfiniteError",
    "PipelineError",
    "PlanError",
    "StoreError",
]


class PipelineError(Exception):
    """Base of every error that the project raises on purpose."""


class InputError(PipelineError, ValueError):
    """The data, a parameter or a file that the user gave cannot be used as it is."""


class NonfiniteError(InputError):
    """A block met a NaN or Inf while it was summarised; the driver looks up the place and names it."""


class PlanError(PipelineError):
    """The work as planned does not fit what it may use: memory, workers, a scheduler.

    Parameters
    ----------
    message : str
    needed : int, optional
        Bytes a worker that would do, where memory is what is short.
    """

    def __init__(self, message: str, needed: int | None = None) -> None:
        super().__init__(message)
        self.needed = needed

    def __reduce__(self) -> tuple[type[PlanError], tuple[str, int | None]]:
        return type(self), (str(self), self.needed)


class StoreError(PipelineError):
    """A store cannot be read or written, is damaged, or holds something else than was expected."""


class ConflictError(StoreError):
    """Somebody else has published meanwhile: nothing was written; do again what was done, from what is there now."""


class ConvergenceError(PipelineError):
    """The accuracy asked for was not reached; `subspace` is the best answer that was.

    Parameters
    ----------
    message : str
        How far the solver came and why it stopped.
    subspace : Subspace, optional
        The answer with its certificate, for callers who can use it all the same.
    """

    def __init__(self, message: str, subspace: Subspace | None = None) -> None:
        super().__init__(message)
        self.subspace = subspace

    def __reduce__(self) -> tuple[type[ConvergenceError], tuple[str, Subspace | None]]:
        return type(self), (str(self), self.subspace)


class FederationError(PipelineError):
    """Sites could not agree on a subspace."""
