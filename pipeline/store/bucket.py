"""`Bucket`: an object store that obeys conditional writes, with errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.errors import StoreError

__all__ = ["Bucket", "Moved"]


class Moved(Exception):
    """An object is not as it was when it was read: somebody else has written it."""


@dataclass(frozen=True)
class Bucket:
    """The objects below a URL, opened with `obstore`; keys are relative to it."""

    store: Any
    place: str

    def get(self, key: str) -> tuple[bytes | None, Any]:
        """An object and its stamp; (None, None) where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        with self._answered("read"):
            try:
                found = obstore.get(self.store.store, key)
                return bytes(found.bytes()), _stamp(found.meta)
            except (NotFoundError, FileNotFoundError):
                return None, None

    def stamp(self, key: str) -> Any:
        """What tells whether an object is still as it is now; None where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        with self._answered("read"):
            try:
                return _stamp(obstore.head(self.store.store, key))
            except (NotFoundError, FileNotFoundError):
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whatever was there."""
        import obstore

        with self._answered("written", "; what was stored before is as it was"):
            obstore.put(self.store.store, key, data)

    def swap(self, key: str, data: bytes, stamp: Any, what: str) -> None:
        """Write an object on condition that it still has a stamp (None: that it is not there).

        Raises Moved where it has another one, and StoreError, which tells `what`, where it is not known whether it
        was written: an answer that was lost is looked for.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

        mode: Any = "create" if stamp is None else stamp
        try:
            obstore.put(self.store.store, key, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError, NotFoundError) as error:
            raise Moved from error
        except (BaseError, OSError) as error:
            try:
                kept, _ = self.get(key)
            except StoreError:
                kept = None
            if kept == data:
                return
            raise StoreError(
                f"it is not known whether {what} of {self.place} was published ({str(error).splitlines()[0]}): look "
                "before doing it again"
            ) from error

    def listed(self, prefix: str | None) -> list[Any]:
        """What `obstore` tells of all objects below a prefix."""
        import obstore

        with self._answered("read"):
            return [o for batch in obstore.list(self.store.store, prefix) for o in batch]

    def last_written(self, prefix: str) -> dict[str, datetime]:
        """When something was last written below each name right below a prefix."""
        latest: dict[str, datetime] = {}
        for o in self.listed(prefix):
            name = "/".join(o["path"].split("/")[:2])
            latest[name] = max(latest.get(name, o["last_modified"]), o["last_modified"])
        return latest

    def delete(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        import obstore

        keys = [o["path"] for o in self.listed(prefix)]
        if keys:
            with self._answered("tidied"):
                obstore.delete(self.store.store, keys)

    @contextmanager
    def _answered(self, done: str, after: str = "") -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            raise StoreError(f"{self.place} cannot be {done}: {str(error).splitlines()[0][:300]}{after}") from error


def _stamp(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
