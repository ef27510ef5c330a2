"""Secure sums: the coordinator learns what all sites' numbers add up to, and no number of a single one.

Every pair of sites shares a secret (X25519), from which both draw the same masks (HKDF, ChaCha20); one adds them
and the other takes them away, in fixed-point integers modulo 2^64, so that they vanish in the sum and nowhere else
(Bonawitz et al. 2017, with one mask a pair). Where a site is gone after the masks were fixed, those that are left tell
the seeds that they shared with it in this round. This holds against a coordinator that is curious, not against one
that lies about who is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import FederationError, InputError
from pipeline.federation.record import Record

if TYPE_CHECKING:
    from pipeline.federation.circle import Circle
    from pipeline.federation.local import Local

__all__ = ["advertise", "masked", "recover", "summed"]

_BITS = 62
_LEAST = 2  # sites whose sum may be told

Additive = Callable[["Local", Record], Record]


def advertise(local: Local, request: Record, tell: Additive) -> Record:
    """A site's first answer: its numbers stay with it; its public key and their magnitude go out."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    reply = tell(local, replace(request, kind=request.facts["inner"]))
    key = X25519PrivateKey.generate()
    numbers = np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in additive(reply, request).values()])
    if not np.isfinite(numbers).all():
        raise InputError("a secure sum needs numbers at every feature: leave out features without values")
    local.memory["secure"] = {"key": key.private_bytes_raw(), "numbers": numbers, "round": request.round}
    exponent = math.frexp(float(np.abs(numbers).max(initial=0.0)))[1]
    public = np.frombuffer(key.public_key().public_bytes_raw(), np.uint8)
    return Record("advertise", request.round, {"key": public}, {"exponent": exponent})


def masked(local: Local, request: Record) -> Record:
    """A site's second answer: its numbers as integers modulo 2^64, with the masks of all pairs."""
    held = _held(local, request)
    names, me = list(request.facts["names"]), str(request.facts["me"])
    if len(names) < _LEAST or names.count(me) != 1 or len(set(names)) != len(names):
        raise FederationError(f"a sum of {len(set(names))} sites is not told")
    total = _fixed(held["numbers"], int(request.facts["shift"]))
    keys = request.arrays["keys"]
    held["seeds"] = {
        name: _seed(held["key"], keys[i].tobytes(), request, me, name) for i, name in enumerate(names) if name != me
    }
    for name, seed in held["seeds"].items():
        total = total + _mask(seed, total.size) if me < name else total - _mask(seed, total.size)
    held["numbers"] = None  # once is enough: a second sum of other sites would tell the difference
    return Record("masked", request.round, {"sum": total})


def recover(local: Local, request: Record) -> Record:
    """A site's third answer, where others are gone: the seeds that it shared with these in this round, once."""
    held = _held(local, request)
    gone, seeds = list(request.facts["gone"]), held.pop("seeds", None)
    if seeds is None:
        raise FederationError("the seeds of a round are told once")
    if len(seeds) + 1 - len(gone) < max(_LEAST, int(request.facts["quorum"])) or not set(gone) <= set(seeds):
        raise FederationError("too few sites are left: nothing is told")
    return Record("recover", request.round, {"seeds": np.stack([np.frombuffer(seeds[n], np.uint8) for n in gone])})


def summed(circle: Circle, request: Record, among: Sequence[str] | None) -> dict[str, Record]:
    """The sum over all sites as if it were the reply of one, under a name that tells which sites are in it."""
    if request.kind != "moments":
        parts = _sum(circle, request, among)
        return _reply(circle, request, parts)
    first = _sum(circle, request, among)
    mean = first["sums"] / first["n"]
    # Once more, about the mean, so that nothing cancels.
    again = _sum(circle, replace(request, arrays={**request.arrays, "centre": mean}), among)
    if again["n"] != first["n"]:
        return summed(circle, request, among)  # a site went in between
    shift = again["sums"] / again["n"]
    arrays = {"mean": mean + shift, "squares": np.maximum(again["squares"] - again["n"] * shift**2, 0.0)}
    return _named(circle, Record("moments", request.round, arrays, {"n": float(again["n"][0])}))


def additive(reply: Record, request: Record) -> dict[str, np.ndarray]:
    """What of a reply adds up."""
    n = np.array([float(reply.facts["n"])])
    if reply.kind == "moments":
        gap = reply.arrays["mean"] - request.arrays.get("centre", 0.0)
        return {"n": n, "sums": n * gap, "squares": reply.arrays["squares"] + n * gap**2}
    if reply.kind == "product":
        return {"n": n, "rounding": np.array([reply.facts["rounding"]]), "product": reply.arrays["product"]}
    if reply.kind == "consensus":
        return {"n": n, "given": n * reply.arrays["given"]}
    raise FederationError(f"answers {reply.kind!r} do not add up")


def _sum(circle: Circle, request: Record, among: Sequence[str] | None) -> dict[str, np.ndarray]:
    """The parts of the sum; begins anew with those that are left where it cannot be unmasked."""
    while True:
        facts = {**request.facts, "inner": request.kind}
        told = circle.exchange(replace(request, kind="advertise", facts=facts), among)
        names = sorted(told)
        if len(names) < max(_LEAST, circle.quorum):
            raise FederationError(f"a sum of {len(names)} sites is not told: {max(_LEAST, circle.quorum)} are needed")
        exponent = max(int(told[name].facts["exponent"]) for name in names)
        shift = _BITS - math.ceil(math.log2(len(names))) - exponent
        keys = np.stack([np.asarray(told[name].arrays["key"]) for name in names])
        ask = Record("masked", request.round, {"keys": keys}, {"names": names, "shift": shift})
        ask = replace(ask, facts={**request.facts, **ask.facts})
        replies = circle.exchange(ask, names, own=True)
        gone = [name for name in names if name not in replies]
        sizes = {len(r.arrays["sum"]) for r in replies.values()}
        if len(sizes) != 1:
            raise FederationError("sites gave numbers of different lengths: they have different features")
        total = np.sum([np.asarray(r.arrays["sum"]) for r in replies.values()], axis=0, dtype=np.uint64)
        total = np.asarray(total)
        if gone and not _unmask(circle, request, total, replies, gone):
            continue
        values = np.ldexp(total.view(np.int64).astype(np.float64), -shift)
        return _parts(request, values)


def _unmask(circle: Circle, request: Record, total: np.ndarray, replies: Mapping[str, Record], gone: list[str]) -> bool:
    """Take the masks of those that are gone out of the total, in place; False where another one went meanwhile."""
    facts = {**request.facts, "gone": gone, "quorum": circle.quorum}
    told = circle.exchange(Record("recover", request.round, {}, facts), list(replies))
    if set(told) != set(replies):
        return False
    for name, reply in told.items():
        for seed, other in zip(np.asarray(reply.arrays["seeds"]), gone, strict=True):
            mask = _mask(seed.tobytes(), total.size)
            if name < other:
                total -= mask
            else:
                total += mask
    return True


def _parts(request: Record, values: np.ndarray) -> dict[str, np.ndarray]:
    rows = len(request.arrays["block"]) if "block" in request.arrays else 0
    if request.kind == "moments":
        d = (values.size - 1) // 2
        return {"n": values[:1], "sums": values[1 : 1 + d], "squares": values[1 + d :]}
    if request.kind == "product":
        return {"n": values[:1], "rounding": values[1:2], "product": values[2:].reshape(rows, -1)}
    return {"n": values[:1], "given": values[1:].reshape(rows, -1) / values[0]}


def _reply(circle: Circle, request: Record, parts: dict[str, np.ndarray]) -> dict[str, Record]:
    n = float(parts.pop("n")[0])
    facts = {"n": n, **({"rounding": abs(float(parts.pop("rounding")[0]))} if "rounding" in parts else {})}
    if request.kind == "consensus":
        facts |= {"apart": 1.0, "top": 0.0}  # of single sites: not known
    return _named(circle, Record(request.kind, request.round, parts, facts))


def _named(circle: Circle, record: Record) -> dict[str, Record]:
    return {"sum of " + ", ".join(circle.present): record}


def _held(local: Local, request: Record) -> dict[str, Any]:
    held = local.memory.get("secure", {})
    if held.get("round") != request.round or (request.kind == "masked" and held["numbers"] is None):
        raise FederationError(f"nothing is held for round {request.round}")
    return held


def _fixed(numbers: np.ndarray, shift: int) -> np.ndarray:
    steps = np.rint(np.ldexp(numbers, shift))
    if not (np.abs(steps) < 2.0**_BITS).all():
        raise FederationError("the numbers are larger than was told")
    return steps.astype(np.int64).view(np.uint64)


def _seed(private: bytes, public: bytes, request: Record, me: str, other: str) -> bytes:
    """32 bytes that two sites share in one round of one federation."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    about = "\n".join([str(request.facts.get("federation")), str(request.round), *sorted([me, other])])
    return HKDF(SHA256(), 32, salt=None, info=about.encode()).derive(shared)


def _mask(seed: bytes, size: int) -> np.ndarray:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, "<u8").astype(np.uint64)
