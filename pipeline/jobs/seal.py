"""Signed messages: a record, who it is from and what it answers, under an Ed25519 signature that is checked first."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import FederationError, InputError
from pipeline.federation.record import Record, pack, unpack

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["digest", "load_key", "load_public", "make_key", "opened", "public_text", "sealed"]

_DOMAIN = b"subspace-pipeline sealed 1\n"
_SIGNATURE = 64


def make_key(path: str | PathLike[str]) -> str:
    """Write a new private key, readable by its owner only, and give its public part as text.

    Raises InputError where something is there already.
    """
    from cryptography.hazmat.primitives import serialization

    _crypto()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise InputError(f"{path} exists: a key is not replaced, choose another path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return public_text(key)


def load_key(path: str | PathLike[str]) -> Ed25519PrivateKey:
    """The private key in a PEM file; raises InputError where there is none."""
    _crypto()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"the key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds no private key: make one with 'pipeline site key {path}'") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} holds no Ed25519 key: make one with 'pipeline site key PATH'")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """The public part of a key, as configurations name it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def load_public(text: str) -> Ed25519PublicKey:
    """The inverse of `public_text`; raises InputError for what is no key."""
    _crypto()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError:
        raise InputError(f"{text!r} is no public key: take what 'pipeline site key' printed") from None


def sealed(record: Record, key: Ed25519PrivateKey, **envelope: Any) -> bytes:
    """The bytes of a record with its envelope (sender, sequence, what it answers), signed."""
    body = pack(replace(record, facts={**record.facts, "envelope": envelope}))
    return body + key.sign(_DOMAIN + body)


def opened(data: bytes, public: str, **envelope: Any) -> Record:
    """The record in signed bytes; nothing is parsed before the signature fits.

    Parameters
    ----------
    data : bytes
    public : str
        The key that it must be signed with.
    **envelope
        What must stand on the envelope.

    Raises
    ------
    FederationError
        When the signature does not fit, it is no message, or was meant for another place.
    """
    _crypto()
    from cryptography.exceptions import InvalidSignature

    if len(data) < _SIGNATURE:
        raise FederationError("refused: too short to be signed")
    body, signature = data[:-_SIGNATURE], data[-_SIGNATURE:]
    try:
        load_public(public).verify(signature, _DOMAIN + body)
    except InvalidSignature:
        raise FederationError("refused: not signed with the key that is known for its sender") from None
    record = unpack(body)
    found = dict(record.facts.get("envelope", {}))
    for name, expected in envelope.items():
        if found.get(name) != expected:
            raise FederationError(f"refused: its {name} is {found.get(name)!r}, not {expected!r}")
    return record


def digest(data: bytes) -> str:
    """What a reply names the request by."""
    return hashlib.sha256(data).hexdigest()


def _crypto() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise InputError("signed messages need cryptography: pip install 'subspace-pipeline[federation]'") from error
