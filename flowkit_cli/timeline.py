"""What `flowkit predict --timeline` does with one video: rows, segments, and maybe a film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.errors import UsageError
from flowkit_cli import output

if TYPE_CHECKING:
    from flowkit.evaluation.prediction import Predictor
    from flowkit.evaluation.timeline import Segment, Spans
    from flowkit.records.reading import Record

ENDINGS = {".csv": "a table of windows (.csv)", ".jsonl": "a list of windows (.jsonl)"}


def check_timeline(timeline: Path, inputs: list[str]) -> None:
    """UsageError for a name of another ending, and where writing it would replace another file."""
    if timeline.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"--timeline {timeline}: expected a name that ends in {' or '.join(ENDINGS)}"
        )
    output.check_out("--timeline", timeline, ENDINGS[timeline.suffix.lower()], inputs)


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
    from flowkit.documents import replacing
    from flowkit.evaluation.timeline import Segments, predict_windows, row_writer
    from flowkit.pictures.overlay import write_film

    segments = Segments()
    with replacing(timeline) as part, part.open("w", encoding="utf-8", newline="") as file:
        write = row_writer(file, timeline.suffix.lower(), predictor.classes)

        def parts() -> Iterator[tuple[Record, float, list[tuple[str, float]]]]:
            for one in predict_windows(predictor, path, spans, whole=out is not None):
                write(one)
                if ended := segments.add(one):
                    _tell(path, ended, as_json=as_json)
                yield one.record, one.start_s, one.found.top(len(predictor.classes))

        if out is None:
            for _ in parts():
                pass
        else:
            write_film(parts(), out, top=top)
    if last := segments.finish():
        _tell(path, last, as_json=as_json)
    output.say(f"wrote {timeline}" + (f" and {out}" if out else ""))


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
