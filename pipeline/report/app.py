"""`pipeline serve`: the page of a model on a small web server, read anew from the store whenever it is asked for.

Everything that the store says is escaped by the templates; a strict content security policy is the second wall, and
requests under a foreign host name are refused, so that no other site can read a page on localhost (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from http import HTTPStatus
from threading import Lock
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pipeline.drift import drift
from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.report.course import Course, Measured, course
from pipeline.report.page import Site, comparison, drawings, policy, render, sentence
from pipeline.report.samples import measured_samples, stored_scores
from pipeline.store import Version, history, load
from pipeline.subspace import Subspace

__all__ = ["LOCAL", "Exhibit", "application", "is_local", "listen"]

T = TypeVar("T")

LOCAL = ["localhost", "127.0.0.1", "[::1]"]
MOST_KEPT = 16  # pages that are kept as they were drawn
HEADERS = {
    "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Exhibit:
    """A stored model as it is shown.

    Parameters
    ----------
    model : str
        Path or URL.
    source : str, optional
        Samples whose scores and distances are shown, computed for each version that is looked at.
    scores : str, optional
        A store of scores of the version that is the head now.

    Raises
    ------
    StoreError
        When there is no model, or no scores.
    """

    model: str
    source: str | None = None
    scores: str | None = None
    _measured: dict[str, Measured] = field(default_factory=dict)
    _samples: dict[Hashable, Any] = field(default_factory=dict)
    _pages: dict[Hashable, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._drawing = Lock()  # Matplotlib draws one picture at a time
        self._scored = history(self.model).head
        self._stored = None if self.scores is None else stored_scores(self.scores)

    def course(self) -> Course:
        """The versions that there are now."""
        with self._drawing:
            return course(self.model, self._measured)

    def prepare(self) -> None:
        """Compute what takes long of the head, so that its page comes at once, and a wrong source is told of now."""
        if self.source is not None:
            told = history(self.model)
            self.shown(told.find(told.head))

    def shown(self, version: Version) -> tuple[Subspace, Any, Any]:
        """A version with its scores and distances, where there are any; its chunks are read and checked each time."""
        subspace, source = load(self.model, version.id), self.source
        if source is None:
            return subspace, self._stored if version.id == self._scored else None, None
        with self._drawing:
            return subspace, *_kept(self._samples, version.id, lambda: measured_samples(subspace, source))

    def page(self, told: Course, version: Version, up: str) -> str:
        """The page of a version, drawn once for each course of the model."""
        subspace, scores, distances = self.shown(version)
        site = Site(up, self.model, version)
        steps = tuple((step.version.id, step.tags, step.trouble) for step in told.steps)
        with self._drawing:
            key = version.id, up, told.history.head, told.earlier, steps
            return _kept(self._pages, key, lambda: render(subspace, scores, distances=distances, told=told, site=site))

    def picture(self, told: Course, version: Version, name: str) -> bytes | None:
        """One picture of a version as PNG; None where there is none of this name."""
        shown = self.shown(version)
        with self._drawing:
            draw = drawings(*shown, told).get(name)
            return None if draw is None else draw().png

    def compare(self, told: Course, a: Version, b: Version) -> str:
        """The page about what became of each mode from one version to another."""
        before, after = (load(self.model, version.id) for version in (a, b))
        names = f"version {a.number}", f"version {b.number}"
        with self._drawing:
            return comparison(before, after, drift(before, after), names, Site("./", self.model), told)


def _kept(pages: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """What was made for a key before, or is now; the oldest goes when there are too many."""
    if key not in pages:
        while len(pages) >= MOST_KEPT:
            del pages[next(iter(pages))]
        pages[key] = make()
    return pages[key]


def application(exhibit: Exhibit, hosts: list[str]) -> Starlette:
    """The web application: the head, each version, its pictures, comparisons of two.

    Parameters
    ----------
    exhibit : Exhibit
    hosts : list of str
        Host names under which it may be asked; ['*']: any.
    """

    def head(request: Request) -> Response:
        told = exhibit.course()
        return HTMLResponse(exhibit.page(told, told.history.find(told.history.head), "./"))

    def version(request: Request) -> Response:
        told = exhibit.course()
        return HTMLResponse(exhibit.page(told, _version(told, request.path_params["version"], exhibit.model), "../"))

    def picture(request: Request) -> Response:
        told, name = exhibit.course(), request.path_params["name"]
        shown = _version(told, request.path_params["version"], exhibit.model)
        png = exhibit.picture(told, shown, name)
        if png is None:
            raise HTTPException(404, f"version {shown.number} of {exhibit.model} has no picture {name!r}")
        return Response(png, media_type="image/png")

    def compare(request: Request) -> Response:
        told = exhibit.course()
        asked = [request.query_params.get(name) for name in ("a", "b")]
        if None in asked:
            raise HTTPException(400, "a comparison needs two versions: compare?a=1&b=2")
        return HTMLResponse(exhibit.compare(told, *(_version(told, str(name), exhibit.model) for name in asked)))

    def refused(request: Request, error: Exception) -> Response:
        """A page with one sentence, whatever went wrong; the versions too, where they can be read."""
        status, words = _verdict(error, request.url.path)
        try:
            told = exhibit.course()
        except Exception:
            told = None
        depth = request.url.path.count("/") - 1
        site = Site("../" * depth or "./", exhibit.model)
        return HTMLResponse(sentence(_TITLES.get(status, "This does not work"), words, site, told), status)

    def guarded(endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                return endpoint(request)
            except Exception as error:
                return refused(request, error)

        return answer

    pages = {
        "/": head,
        "/versions/{version}": version,
        "/versions/{version}/figures/{name}.png": picture,
        "/compare": compare,
    }
    return Starlette(
        routes=[Route(path, guarded(endpoint), methods=["GET"]) for path, endpoint in pages.items()],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={HTTPException: refused},
    )


_TITLES = {404: "There is no such page", 405: "This page can only be read", 500: "This page cannot be shown"}


class _Headers:
    """Middleware that gives every answer the headers that keep it harmless."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, with_headers)


def _version(told: Course, name: str, model: str) -> Version:
    try:
        return told.history.find(name, model)
    except StoreError as error:
        raise HTTPException(404, str(error)) from error


def _verdict(error: Exception, path: str) -> tuple[int, str]:
    """The status of an answer, and what a person is told."""
    if isinstance(error, HTTPException):
        plain = error.detail == HTTPStatus(error.status_code).phrase
        return error.status_code, f"{path}: {error.detail.lower()}" if plain else error.detail
    if isinstance(error, PipelineError):
        return 400 if isinstance(error, InputError) else 500, str(error)
    return 500, f"what the store holds cannot be shown ({type(error).__name__}: {error})"


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises InputError when the address is not of this machine, or the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        why = str(error.strerror).split(" (while")[0]  # asked for where, which is said already
        raise InputError(
            f"cannot listen on {host}:{port} ({why}): choose another --port, or 0 for any that is free"
        ) from error
