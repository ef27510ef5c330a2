"""`Head`: what the root `zarr.json` of a stored model says, and the one way to read and write it.

The root holds the metadata of every array (consolidated, as xarray reads them) and our own record: version, the
chunk files with their sizes and checksums, which files of earlier versions are still there for their readers, the
history with its tags, and which versions have left it.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pipeline.errors import StoreError

__all__ = ["ROOT", "SLOTS", "VERSIONS", "Chunk", "Earlier", "Head", "Version", "found"]

ROOT = "zarr.json"
VERSIONS = "versions"  # the folder of the versions, each a group of its own
# Three namings of chunk files that never share a key: versions take turns, so that a new one never touches the
# chunks of the one before, which somebody may have opened and not read yet.
SLOTS = (
    {"name": "default", "separator": "/"},
    {"name": "v2", "separator": "/"},
    {"name": "default", "separator": "."},
)
GRACE = 1.0  # seconds that a reader has, at the least, after its version was replaced
_FORMAT = 1
_RECORD, _CHECKSUM = "publication", "checksum"
_VARIABLES = ("components", "mean", "singular_values", "residual", "angle_bound")
_WAY_OUT = "restore it from a copy or save the model again"


@dataclass(frozen=True)
class Chunk:
    """Size in bytes and CRC-32 of one chunk file.

    >>> Chunk.of(b"123456789")
    Chunk(size=9, crc=3421780262)
    """

    size: int
    crc: int

    @classmethod
    def of(cls, data: bytes) -> Chunk:
        """The record of these bytes."""
        return cls(len(data), zlib.crc32(data))


@dataclass(frozen=True)
class Earlier:
    """A version that was replaced: its slot, when (seconds since 1970), and the keys of its chunks."""

    slot: int
    retired: float
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Version:
    """One entry of a history.

    Parameters
    ----------
    number : int
        1, 2, …: never used twice.
    id : str
        32 hex digits.
    parent : str or None
        The id of the version that this one was made from or in the place of.
    created : str
        UTC time, ISO 8601.
    kind : str
        'fit', 'update', …: what made it.
    path : str
        Where in the store it lies, as a group that `xarray.open_zarr` opens; '' for the root itself.
    """

    number: int
    id: str
    parent: str | None
    created: str
    kind: str
    path: str

    @classmethod
    def after(cls, head: Head | None, kind: str, path: str = VERSIONS) -> Version:
        """The next one, made now."""
        id, number = uuid4().hex, 1 + max((v.number for v in head.history), default=head.version) if head else 1
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        where = f"{path}/{number}-{id[:12]}" if path else ""
        return cls(number, id, head.id if head else None, created, kind, where)


@dataclass(frozen=True)
class Head:
    """One published version of a model, and the history that led to it."""

    document: Mapping[str, Any]
    id: str
    chunks: Mapping[str, Chunk]
    version: int = 1
    slot: int = 0
    earlier: tuple[Earlier, ...] = field(default=())
    history: tuple[Version, ...] = field(default=())
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tag to id."""
    gone: Mapping[str, float] = field(default_factory=dict)
    """Paths of versions that have left the history, and until when (seconds since 1970) their files stay."""

    @classmethod
    def parse(cls, raw: bytes | None, place: str) -> Head:
        """Read a root; raises StoreError when there is none, it is no model's, or it is damaged."""
        if raw is None:
            raise StoreError(f"{place} is not a model: it has no {ROOT}")
        document = _json_object(raw, place)
        attributes = document.get("attributes")
        if document.get("node_type") != "group" or not isinstance(attributes, dict) or _RECORD not in attributes:
            raise StoreError(f"{place} is not a model: {_what_it_is(document)}")
        checksum = attributes.pop(_CHECKSUM, None)
        if checksum != _checksum(document):
            raise StoreError(f"{place} is damaged: {ROOT} does not fit its checksum; {_WAY_OUT}")
        try:
            record = json.loads(attributes.pop(_RECORD))
            if any("/" in name or name.startswith(".") for name in document["consolidated_metadata"]["metadata"]):
                raise ValueError("a name that leads elsewhere")
            if record["format"] != _FORMAT:
                raise StoreError(f"{place} was written by a newer version of this package: upgrade to read it")
            head = cls(
                document=document,
                id=str(record["id"]),
                chunks={str(key): Chunk(int(size), int(crc)) for key, (size, crc) in record["chunks"].items()},
                version=int(record["version"]),
                slot=int(record["slot"]),
                earlier=tuple(Earlier(e["slot"], e["retired"], tuple(e["keys"])) for e in record["earlier"]),
                history=tuple(_checked(Version(*entry)) for entry in record.get("history", ())),
                tags={str(name): str(id) for name, id in record.get("tags", {}).items()},
                gone={str(path): float(until) for path, until in record.get("gone", {}).items()},
            )
            return head if head.history else replace(head, history=(_first(head),))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{place} is damaged: the record in {ROOT} is unreadable; {_WAY_OUT}") from error

    def dump(self) -> bytes:
        """The root as it is stored."""
        record = {
            "format": _FORMAT,
            "version": self.version,
            "id": self.id,
            "slot": self.slot,
            "chunks": {key: [chunk.size, chunk.crc] for key, chunk in self.chunks.items()},
            "earlier": [{"slot": e.slot, "retired": e.retired, "keys": e.keys} for e in self.earlier],
            "history": [astuple(v) for v in self.history],
            "tags": dict(self.tags),
            "gone": dict(self.gone),
        }
        document = {**self.document, "attributes": {**self.document["attributes"], _RECORD: json.dumps(record)}}
        document["attributes"][_CHECKSUM] = _checksum(document)
        return json.dumps(document, indent=2).encode()

    @property
    def alone(self) -> Head:
        """The same version without what came before: what is stored beside."""
        return replace(self, earlier=(), history=tuple(v for v in self.history if v.id == self.id), tags={}, gone={})

    @property
    def pointer(self) -> Head:
        """What names this version, and its arrays no more, as a root of its own."""
        about = f"model: open the group {self.entry.path}" if self.entry else "model"
        document = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"title": about},
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}},
        }
        return replace(self, document=document, chunks={}, earlier=())

    @property
    def entry(self) -> Version | None:
        """Its place in the history."""
        return next((v for v in self.history if v.id == self.id), None)

    def find(self, version: int | str, place: str) -> Version:
        """A version by its number, a tag, or the first digits of its id; raises StoreError when there is none."""
        return found(version, self.history, self.tags, place)

    def in_slot(self, slot: int) -> tuple[Head, dict[str, str]]:
        """The same version with its chunks named as in another slot; new names by old ones."""
        document = copy.deepcopy(dict(self.document))
        other = replace(self, document=document, slot=slot, chunks={}, earlier=())
        for meta in other.members.values():
            name, separator = SLOTS[slot]["name"], SLOTS[slot]["separator"]
            meta["chunk_key_encoding"] = {"name": name, "configuration": {"separator": separator}}  # type: ignore[index]
        renamed = dict(zip(self._every_key(), other._every_key(), strict=True))
        return replace(other, chunks={renamed[key]: chunk for key, chunk in self.chunks.items()}), renamed

    @property
    def members(self) -> Mapping[str, Mapping[str, Any]]:
        """The metadata of each array."""
        return self.document["consolidated_metadata"]["metadata"]

    @property
    def next_slot(self) -> int:
        """The slot that neither this version nor the one before uses."""
        used = {self.slot, *(e.slot for e in self.earlier[:1])}
        return next(slot for slot in range(len(SLOTS)) if slot not in used)

    def succession(self, now: float) -> tuple[Earlier, ...]:
        """The earlier versions of the version that replaces this one now."""
        return (Earlier(self.slot, now, tuple(self.chunks)), *self.earlier[:1])

    def wait(self, now: float) -> float:
        """Seconds until `next_slot` is free of readers."""
        busy = [e.retired + GRACE - now for e in self.earlier if e.slot == self.next_slot]
        return min(max(*busy, 0.0), GRACE) if busy else 0.0

    def kept(self, now: float) -> set[str]:
        """The keys that this version, the one before and those replaced a moment ago need."""
        young = [e.keys for i, e in enumerate(self.earlier) if i == 0 or now < e.retired + GRACE]
        return {*self.chunks, *itertools.chain(*young)}

    def expected(self) -> set[str]:
        """The chunk keys that the arrays' shapes ask for.

        Raises StoreError before it counts any when the shapes ask for more or fewer than the record has.
        """
        grids = [_grid(meta) for meta in self.members.values()]
        count = sum(math.prod(grid) for grid in grids if grid is not None)
        if count != len(self.chunks):
            raise StoreError(f"the arrays ask for {count} chunks, the record in {ROOT} has {len(self.chunks)}")
        return set(self._every_key())

    def _every_key(self) -> Iterator[str]:
        for name, meta in self.members.items():
            grid = _grid(meta)
            if grid is not None:
                yield from self._keys(name, grid)

    def _keys(self, name: str, grid: tuple[int, ...]) -> Iterator[str]:
        encoding = self.members[name]["chunk_key_encoding"]
        separator = encoding["configuration"]["separator"]
        prefix = ["c"] if encoding["name"] == "default" else []
        for place in itertools.product(*map(range, grid)):
            yield f"{name}/{separator.join([*prefix, *map(str, place)])}"


def found(version: int | str, history: Sequence[Version], tags: Mapping[str, str], place: str) -> Version:
    """A version of a history by its number, a tag, or the first digits of its id; raises StoreError without one."""
    text = str(version)
    wanted = tags.get(text, text)
    by_number = [v for v in history if str(v.number) == text]
    by_id = [v for v in history if v.id == wanted or (len(wanted) >= 4 and v.id.startswith(wanted))]
    matches = by_number or by_id
    if len(matches) != 1:
        known = ", ".join([*(str(v.number) for v in history), *tags]) or "none"
        raise StoreError(f"{place} has no version {text!r}: it has {known}")
    return matches[0]


def _first(head: Head) -> Version:
    """The entry of a model that was written before there were histories."""
    created = str(head.document["attributes"].get("created", "1970-01-01T00:00:00+00:00"))
    return _checked(Version(head.version, head.id, None, created, "fit", f"{VERSIONS}/{head.version}-{head.id[:12]}"))


def _checked(version: Version) -> Version:
    """An entry whose path leads nowhere else."""
    if version.path not in ("", f"{VERSIONS}/{version.number}-{version.id[:12]}") or not version.id.isalnum():
        raise ValueError("a path that leads elsewhere")
    return version


def _grid(meta: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Number of chunks along each dim; None without dims: such a value lies in the metadata."""
    chunks = meta["chunk_grid"]["configuration"]["chunk_shape"]
    if not meta["shape"]:
        return None
    return tuple(-(-int(n) // int(c)) for n, c in zip(meta["shape"], chunks, strict=True))


def _json_object(raw: bytes, place: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{place} is damaged: {ROOT} is not JSON; {_WAY_OUT}") from error
    return document if isinstance(document, dict) else {}


def _what_it_is(document: Mapping[str, Any]) -> str:
    if document.get("node_type") == "array":
        return "it is a Zarr array"
    consolidated = document.get("consolidated_metadata")
    members = consolidated.get("metadata", {}) if isinstance(consolidated, dict) else {}
    missing = [name for name in _VARIABLES if name not in members]
    if missing:
        return f"its {ROOT} lists no {', '.join(missing)}"
    way_out = "read it with xarray.open_zarr and Subspace.from_dataset if it is whole"
    return f"its {ROOT} tells of no version: it is half written, damaged or not ours; {way_out}"


def _checksum(document: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(document, sort_keys=True).encode()):08x}"
