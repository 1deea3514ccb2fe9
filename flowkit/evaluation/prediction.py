"""What trained streams see in a raw video: its flow computed as that of their training, fused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowkit.errors import UsageError
from flowkit.evaluation.held_records import HeldRecord, looks_of
from flowkit.evaluation.scoring import Scorer
from flowkit.flow.method import FlowMethod
from flowkit.records.reading import Record
from flowkit.scores.files import Scores, softmax
from flowkit.scores.fusion import FUSIONS, Fusion, fuse
from flowkit.video.image_folders import MAX_FRAME_MPX


@dataclass(frozen=True)
class Prediction:
    """What a video shows: all classes, most likely first, with their probabilities, float64 (K,).

    `streams` has each stream's own most likely class and its probability; `frames` is the length.
    The probabilities of a fusion by SVM are the softmax of its margins: good for ordering.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    streams: dict[str, tuple[str, float]]
    frames: int

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities."""
        return list(zip(self.classes, self.probabilities.tolist(), strict=True))[:count]


class Predictor:
    """Trained streams by name, and the fusion of them (one stream needs none), ready for videos.

    A video with frames of more than `max_frame_mpx` megapixels is refused. UsageError where the
    streams do not know the same classes, or were trained on different flow or flow that flowkit
    cannot compute. Streams that were trained on flow of one's own code are given it as `own`.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        fusion: Fusion | None = None,
        *,
        max_frame_mpx: float = MAX_FRAME_MPX,
        own: FlowMethod | None = None,
    ) -> None:
        if not scorers or (fusion is None) == (len(scorers) > 1):
            raise UsageError(
                "expected one stream, or several and their fusion, "
                f"got {len(scorers)} and {'none' if fusion is None else 'a fusion'}"
            )
        self.scorers, self.fusion = dict(scorers), fusion
        known = [scorer.known for scorer in self.scorers.values()]
        if fusion is not None and FUSIONS[fusion.method].is_linear:
            self.classes = fusion.classes  # classes that were only added in training are left out
        elif all(set(classes) == set(known[0]) for classes in known):
            self.classes = known[0]
        else:
            counts = (f"{one.path} has {len(one.known)}" for one in self.scorers.values())
            raise UsageError(f"expected streams of the same classes: {', '.join(counts)}")
        for scorer in self.scorers.values():
            scorer.columns(self.classes)
        streams = ((one.checkpoint, one.views.moments) for one in self.scorers.values())
        self.looks = looks_of(streams, max_frame_mpx=max_frame_mpx, own=own)

    def predict(self, path: str | os.PathLike[str]) -> Prediction:
        """What the video at `path` shows; VideoError where it is damaged or too short."""
        return self.predict_record(self.hold(path))

    def predict_record(self, record: Record) -> Prediction:
        """The same of a record that holds what the streams look at."""
        found = {
            name: Scores(
                ("video",),
                self.classes,
                np.stack(list(scorer.score([record], self.classes))),
                meta={"kind": scorer.views.kind},
            )
            for name, scorer in self.scorers.items()
        }
        fused = next(iter(found.values())) if self.fusion is None else fuse(found, self.fusion)
        classes, probabilities = _ranked(fused)
        streams = {}
        for name, scores in found.items():
            names, values = _ranked(scores)
            streams[name] = (names[0], float(values[0]))
        return Prediction(classes, probabilities, streams, record.frame_count)

    def hold(self, path: str | os.PathLike[str], *, whole: bool = False) -> HeldRecord:
        """What the streams look at in a video, as a record in memory.

        With `whole` all frames, and the field from each of them to the next, are in it, too.
        """
        return replace(self.looks, whole=whole).hold(Path(path))


def _ranked(scores: Scores) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of the one video of `scores`, most likely first, and their probabilities.

    Between equals the class whose name comes first is more likely.
    """
    [values] = softmax(scores)
    order = sorted(range(len(values)), key=lambda k: (-values[k], scores.classes[k]))
    return tuple(scores.classes[k] for k in order), values[order]
