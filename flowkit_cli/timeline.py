"""What `flowkit predict` does with one video or live stream, window by window."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from flowkit.documents import replacing
from flowkit.errors import FlowkitError, UsageError
from flowkit.workers.signals import Stopped
from flowkit_cli import output

if TYPE_CHECKING:
    from flowkit.evaluation.held_windows import Spans
    from flowkit.evaluation.prediction import Predictor
    from flowkit.evaluation.timeline import Segment, Window
    from flowkit.records.reading import Record

ENDINGS = {".csv": "a table of windows (.csv)", ".jsonl": "a list of windows (.jsonl)"}
BEHIND_S = 10.0  # of a live stream, before it is told; then again when it has doubled


def check_timeline(timeline: Path, inputs: list[str]) -> None:
    """UsageError for a name of another ending, and where writing it would replace another file."""
    if timeline.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"--timeline {timeline}: expected a name that ends in {' or '.join(ENDINGS)}"
        )
    output.check_out("--timeline", timeline, ENDINGS[timeline.suffix.lower()], inputs)


def check_live(
    address: str, videos: Collection[object], timeline: Path | None, out: Path | None
) -> None:
    """UsageError for an address of no live stream, and for what does not go with one."""
    from flowkit.video.live import check_address

    check_address(address)
    if videos or out is not None:
        raise UsageError(f"--live goes with {'no VIDEO' if videos else 'no --out'}")
    if timeline is not None:
        check_timeline(timeline, [])


def tell_timeline(
    predictor: Predictor,
    path: str,
    spans: Spans,
    timeline: Path,
    out: Path | None,
    top: int,
    *,
    as_json: bool,
) -> None:
    """Write the rows of every window of a video, tell its segments as they end, write the film."""
    from flowkit.evaluation.timeline import predict_windows
    from flowkit.pictures.overlay import write_film

    windows = predict_windows(predictor, path, spans, whole=out is not None)
    with _opened(timeline) as file:
        told = _told(windows, path, file, timeline.suffix, predictor.classes, as_json=as_json)
        if out is None:
            for _ in told:
                pass
        else:
            write_film(map(_part, told), out, top=top)
    output.say(f"wrote {timeline}" + (f" and {out}" if out else ""))


def tell_live(
    predictor: Predictor,
    address: str,
    spans: Spans,
    timeline: Path | None,
    stall_s: float,
    *,
    as_json: bool,
) -> None:
    """Tell each window of a live stream as it comes, as a line of JSON.

    With `timeline` that is written there, and the segments are told. However the stream ends, by
    itself, with an error or by a signal, what was seen is written.
    """
    from flowkit.evaluation.timeline import predict_live, scores_of
    from flowkit.video.live import shown_address

    name = shown_address(address)
    windows = _watched(predict_live(predictor, address, spans, stall_s=stall_s), name)
    if timeline is None:
        for one in windows:
            output.json_line(scores_of(one))
        return
    ending: BaseException | None = None
    with _opened(timeline) as file:
        told = _told(windows, name, file, timeline.suffix, predictor.classes, as_json=as_json)
        try:
            for _ in told:
                pass
        except (FlowkitError, Stopped) as error:
            ending = error
    output.say(f"wrote {timeline}")
    if ending is not None:
        raise ending


@contextmanager
def _opened(timeline: Path) -> Iterator[TextIO]:
    with replacing(timeline) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


def _told(
    windows: Iterable[Window],
    name: str,
    file: TextIO,
    ending: str,
    classes: Iterable[str],
    *,
    as_json: bool,
) -> Iterator[Window]:
    """The windows, each written to `file`; segments are told as they end, the last one always."""
    from flowkit.evaluation.timeline import Segments, row_writer

    segments, write = Segments(), row_writer(file, ending.lower(), [*classes])
    try:
        for one in windows:
            write(one)
            if ended := segments.add(one):
                _tell(name, ended, as_json=as_json)
            yield one
    finally:
        if last := segments.finish():
            _tell(name, last, as_json=as_json)


def _part(one: Window) -> tuple[Record, float, list[tuple[str, float]]]:
    """A window as the film takes it."""
    return one.record, one.start_s, one.found.top(len(one.found.classes))


def _watched(windows: Iterable[Window], name: str) -> Iterator[Window]:
    """The windows of a live stream; says when they come ever later than the stream."""
    begun_s, told_s = 0.0, BEHIND_S / 2
    for one in windows:
        begun_s = begun_s or time.monotonic() - one.end_s
        behind_s = time.monotonic() - begun_s - one.end_s
        if behind_s > 2 * told_s:
            told_s = behind_s
            output.say(f"{name}: {behind_s:.0f} s behind: it comes faster than it is predicted")
        yield one


def _tell(path: str, segment: Segment, *, as_json: bool) -> None:
    if as_json:
        output.json_line(
            {
                "video": path,
                "start_s": round(segment.start_s, 3),
                "end_s": round(segment.end_s, 3),
                "class": segment.class_name,
                "probability": segment.probability,
            }
        )
    else:
        output.result(
            f"{path}: {segment.start_s:.2f} to {segment.end_s:.2f} s: {segment.class_name} "
            f"{segment.probability:.1%}"
        )
