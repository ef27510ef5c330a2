"""No secrets in files: where settings hold one, so that they can be refused before anybody copies or sends them.

>>> secret_in({"cluster": {"address": "tls://host:8786"}})
>>> secret_in({"cluster": {"options": {"password": "x"}}})
('cluster', 'options', 'password')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["WAY_OUT", "secret_in"]

WAY_OUT = "is a secret, which must not stand here: give it by the environment, or name a file that only its owner reads"
_NAMED = re.compile(r"(passw(or)?d|passphrase|secret|token|credential|api_?key|access_?key)s?(_id)?$", re.IGNORECASE)
# A variable that is given a value, a user with a password in an address, the content of a key.
_WRITTEN = re.compile(
    r"(?i:passw(or)?d|secret|token|api_?key|access_?key)\w*\s*=\s*[\"']?(?![$\s\"'])\S"
    r"|://[^/\s:@]*:(?!\$)[^/\s@]+@|PRIVATE KEY-----"
)


def secret_in(settings: Any, above: tuple[Any, ...] = (), seen: frozenset[int] = frozenset()) -> tuple[Any, ...] | None:
    """The place of the first setting that is a secret, by its name or by what is written there; None without one."""
    if isinstance(settings, str):
        return above if _WRITTEN.search(settings) else None
    if not isinstance(settings, Mapping | list) or id(settings) in seen:  # YAML can hold what holds itself
        return None
    for key, value in settings.items() if isinstance(settings, Mapping) else enumerate(settings):
        # Kubernetes writes a variable of the environment as a name and a value.
        name = settings.get("name") if isinstance(settings, Mapping) and key == "value" else key
        place = (*above, key)
        if _NAMED.search(str(name)) and isinstance(value, str | int | float) and not isinstance(value, bool):
            return place
        below = secret_in(value, place, seen | {id(settings)})
        if below is not None:
            return below
    return None
