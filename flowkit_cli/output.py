"""The only writer of standard output and of progress: bars, quiet lines, JSON lines."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

QUIET_LINE_S = 30  # between two lines of progress where no terminal shows a bar


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error."""
    click.echo(text, err=True)


def result(text: str) -> None:
    """One line of a command's result, on standard output."""
    click.echo(text)


def json_line(value: dict[str, Any]) -> None:
    """One JSON object on a line of standard output, at once, so that a pipeline can follow."""
    click.echo(json.dumps(value))
    sys.stdout.flush()


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 video", "13,320 videos"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """A time to read: "8.1 s", "12 min", "4 h 12 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Progress over videos on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread beside this one: workers are forked
        self.total, self.quiet = total, quiet
        self.videos = self.failed = 0
        self.frames = 0  # of all videos
        self._frames_of: dict[str, int] = {}
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, unit="video", disable=True if quiet else None, smoothing=0.05)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def frames_of(self, video: str, frames: int) -> None:
        """`video` has come to `frames` frames."""
        self.frames += frames - self._frames_of.get(video, 0)
        self._frames_of[video] = frames
        self._show()

    def finished(self, *, failed: bool) -> None:
        """One more video is done or has failed."""
        self.videos += 1
        self.failed += failed
        self.bar.update()
        self._show()

    def line(self, text: str) -> None:
        """A line that does not tear the bar."""
        self.bar.write(text, file=sys.stderr)

    def _show(self) -> None:
        elapsed = time.monotonic() - self.start
        rate = self.frames / max(elapsed, 1e-9)
        self.bar.set_postfix_str(f"{rate:.0f} frames/s, {self.failed} failed", refresh=False)
        if self.quiet or not self.bar.disable or time.monotonic() - self.last_line < QUIET_LINE_S:
            return
        self.last_line = time.monotonic()
        left = elapsed / self.videos * (self.total - self.videos) if self.videos else None
        self.line(
            f"{self.videos:,} of {count(self.total, 'video')}, {self.failed} failed, "
            f"{rate:.0f} frames/s" + (f", {duration(left)} left" if left is not None else "")
        )
