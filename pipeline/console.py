"""What people see while work goes on: one line a pass on stderr, a moving bar on a terminal, plain text in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.progress import Progress, listening

__all__ = ["say", "showing_progress"]

_PLAIN_EVERY = 5.0  # seconds between two lines of a pass in a log


def say(message: str) -> None:
    """Tell a person something, in one line on stderr."""
    print(" ".join(message.split()), file=sys.stderr, flush=True)


@contextmanager
def showing_progress(quiet: bool = False) -> Iterator[None]:
    """While inside, show how far every walk is: a bar a pass on a terminal, lines of text otherwise, or nothing."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _bars() as listener, listening(listener):
            yield
    else:
        lines = PlainLines()
        with listening(lines):
            yield
        lines.close()


@dataclass
class Pace:
    """How fast the current pass goes; a pass starts where the one before it ended."""

    clock: Callable[[], float] = time.monotonic
    pass_number: int = -1
    blocks: int = 0
    started: float = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()

    def begins(self, now: Progress) -> bool:
        """Take note of how far the walk is; True when this is the first news of a pass."""
        new = now.pass_number != self.pass_number or now.blocks < self.blocks
        if new:
            self.started += self.seconds
        self.pass_number, self.blocks = now.pass_number, now.blocks
        self.seconds = self.clock() - self.started
        return new

    def speed(self, now: Progress) -> str:
        """Decoded bytes a second, in words."""
        return f"{now.nbytes / max(self.seconds, 1e-9) / 1e9:.2g} GB/s" if now.nbytes else ""

    def left(self, now: Progress) -> str:
        """Time to the end of the pass at this speed, in words; the time it took once it is over."""
        if now.share >= 1:
            return _minutes(self.seconds)
        return f"{_minutes(self.seconds * (1 / now.share - 1))} left" if now.share else ""


@dataclass
class PlainLines:
    """A listener for a log: a line every few seconds and one at the end of each pass.

    The end is told when work goes on after it, so that work that fails at once says nothing but its error.
    """

    pace: Pace = field(default_factory=Pace)
    told: float = 0.0
    ended: str | None = None
    tell: Callable[[str], None] = say

    def __call__(self, now: Progress) -> None:
        if self.pace.begins(now):
            self.close()
            self.told = 0.0
        parts = (f"{now.blocks}/{now.n_blocks} blocks", self.pace.speed(now), self.pace.left(now))
        line = f"{_title(now)}: {', '.join(filter(None, parts))}"
        if now.share >= 1:
            self.ended = line
        elif self.pace.seconds - self.told >= _PLAIN_EVERY:
            self.told = self.pace.seconds
            self.tell(line)

    def close(self) -> None:
        """Tell the end of the last pass."""
        if self.ended:
            self.tell(self.ended)
        self.ended = None


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[news]}"))
    pace = Pace()
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def listener(now: Progress) -> None:
            if pace.begins(now):
                bars.add_task(_title(now), total=now.n_blocks, news="")
            parts = (f"{now.blocks}/{now.n_blocks} blocks", pace.speed(now), pace.left(now))
            bars.update(bars.task_ids[-1], completed=now.blocks, news="  ".join(filter(None, parts)))

        yield listener


def _title(now: Progress) -> str:
    if now.pass_number == 0:
        return "a sample"
    return f"pass {now.pass_number}" + (f" of {now.passes}" if now.passes else "")


def _minutes(seconds: float) -> str:
    """
    >>> _minutes(12.4), _minutes(3700)
    ('0:12', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
