"""A long video in one pass and bounded memory: what trained streams see in each window."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.evaluation.held_records import HeldRecord
from flowkit.evaluation.held_windows import HeldWindow, Spans, hold_live_windows, hold_windows
from flowkit.evaluation.prediction import Prediction, Predictor
from flowkit.video.live import STALL_S, shown_address
from flowkit.workers.machine import usable_cores
from flowkit.workers.streamed import stream_from_child


@dataclass(frozen=True)
class Window:
    """What a part of a video shows: from `start_s` to before `end_s`, in s; `record` holds it."""

    start_s: float
    end_s: float
    found: Prediction
    record: HeldRecord


@dataclass(frozen=True)
class Segment:
    """Windows in a row with one most likely class; `probability` is the mean of theirs, 0 to 1."""

    start_s: float
    end_s: float
    class_name: str
    probability: float


def predict_windows(
    predictor: Predictor, path: str | os.PathLike[str], spans: Spans, *, whole: bool = False
) -> Iterator[Window]:
    """What a video shows in each window, in one pass; VideoError where its frames do not all come.

    The last window ends with the video, and a video shorter than a window is one. A child process
    decodes the video and computes its flow, and is a window ahead; memory holds the frames and
    fields of a window and a stride, there and here. With `whole` fields are there also where all
    streams look at frames alone. VideoError too where the video states no frame rate, is too short,
    or makes the child crash.
    """
    place = Path(path)
    return _predict(predictor, str(place), hold_windows, predictor.looks, place, spans, whole)


def predict_live(
    predictor: Predictor, address: str, spans: Spans, *, stall_s: float = STALL_S
) -> Iterator[Window]:
    """What the live stream at `address` shows in each window, as `predict_windows`, from now on.

    Times are by the rate that the stream states. The windows end with the stream; VideoError, after
    the window that ends there, where it breaks off or nothing came for `stall_s` seconds, and as of
    `video.live.open_live`.
    """
    name = shown_address(address)
    return _predict(predictor, name, hold_live_windows, predictor.looks, address, spans, stall_s)


def _predict(
    predictor: Predictor, name: str, hold: Callable[..., Iterator[HeldWindow]], *arguments: Any
) -> Iterator[Window]:
    with closing(stream_from_child(hold, *arguments, threads=usable_cores())) as held:
        while True:
            try:
                one = next(held, None)
            except FlowkitError as error:
                if isinstance(error, (VideoError, UsageError)):
                    raise
                raise VideoError(f"{name}: {error}") from error
            if one is None:
                return
            found = predictor.predict_record(one.record)
            end_s = one.start_s + one.record.frame_count / one.rate
            yield Window(one.start_s, end_s, found, one.record)


class Segments:
    """Merges windows in a row with one most likely class, each segment to where the next begins.

    `add` takes the windows in order; `finish` gives the last segment, if there was a window.
    """

    def __init__(self) -> None:
        self._name, self._start_s, self._end_s = "", 0.0, 0.0
        self._total, self._count = 0.0, 0  # of the windows of the segment that has not ended

    def add(self, one: Window) -> Segment | None:
        """Take the next window; the segment that ends where it begins, if one does."""
        [(name, chance)] = one.found.top(1)
        ended = None
        if not self._count or name != self._name:
            self._end_s = one.start_s
            ended = self.finish()
            self._name, self._start_s, self._total, self._count = name, one.start_s, 0.0, 0
        self._total, self._count, self._end_s = self._total + chance, self._count + 1, one.end_s
        return ended

    def finish(self) -> Segment | None:
        """The segment to the end of the last window."""
        if not self._count:
            return None
        return Segment(self._start_s, self._end_s, self._name, self._total / self._count)


def row_writer(file: TextIO, ending: str, classes: Sequence[str]) -> Callable[[Window], None]:
    """What writes the probabilities of a window as a row of a ".csv" or a line of a ".jsonl"."""
    order = sorted(classes)
    if ending == ".csv":
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["start_s", "end_s", *order])

    def write(one: Window) -> None:
        told = scores_of(one)
        if ending == ".csv":
            chances = [f"{told['scores'][name]:.6f}" for name in order]
            table.writerow([told["start_s"], told["end_s"], *chances])
        else:
            file.write(json.dumps(told) + "\n")

    return write


def scores_of(one: Window) -> dict[str, Any]:
    """A window as a line of JSON has it: times in s, and the probability of each class by name."""
    chances = dict(one.found.top(len(one.found.classes)))
    scores = {name: round(chances[name], 6) for name in sorted(chances)}
    return {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3), "scores": scores}
