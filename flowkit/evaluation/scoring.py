"""What a trained stream says of videos: a checkpoint and test views to `Scores`, resumable.

Simonyan & Zisserman 2014, section 5: a video's scores are the mean over moments of equal spacing
and ten views of each. A video is asked alone, in passes of its own, so its scores depend on nothing
but the checkpoint, the views and its record.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from flowkit.data.clips import View, moment_views, view_set
from flowkit.data.datasets import TestClips
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import Look, input_channels, look_at, spaced_places
from flowkit.data.origins import origin_of
from flowkit.data.record_folders import Missing, RecordFolder
from flowkit.data.splits import Split, Video, read_split
from flowkit.data.stacks import StackForm, flip
from flowkit.documents import differences, listed
from flowkit.errors import SplitError, UsageError
from flowkit.evaluation.views import TestViews, default_views
from flowkit.networks.checkpoints import checkpoint_path, load_net
from flowkit.networks.own import check_sizes
from flowkit.networks.streams import StreamNet
from flowkit.networks.table import OwnNet, net_facts
from flowkit.networks.towers import make_convolutional
from flowkit.records.reading import Record
from flowkit.scores.files import PLACED, Scores, read_scores, write_scores
from flowkit.training.loop import SPLIT_FILE

log = logging.getLogger(__name__)

PASS_INPUTS = 50  # views of one forward pass
SAVE_S = 60.0  # seconds between two writings of what is done so far

Part = Literal["test", "heldout"]


Places = tuple[Look, ...]  # what each input of a network looks at


class _Pass(NamedTuple):
    """Some places of a record that are read together, each with the moments that it stands for."""

    record: Record
    places: list[tuple[Places, int]]
    is_last: bool


class Scorer:
    """A trained stream that is ready to say what it sees in records.

    `path` is a checkpoint or a run's folder. Of several tasks the first is asked, which is the one
    that counts: of the others, test videos were trained on, too. CheckpointError where there is no
    checkpoint, UsageError for `pass_inputs` (what a device is given at a time) below 1. A network
    of own code is given as `own`, as `load_net` takes it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        views: TestViews | None = None,
        device: torch.device | str = "cpu",
        pass_inputs: int = PASS_INPUTS,
        own: OwnNet | None = None,
    ) -> None:
        if pass_inputs < 1:
            raise UsageError(f"expected at least one input of a pass, got {pass_inputs}")
        self.path = checkpoint_path(path)
        self.checkpoint, net = load_net(path, own=own)
        self.own = own
        self.several = self.checkpoint.several
        self.task, self.known = next(iter(self.checkpoint.tasks.items()))
        self.views, self.pass_inputs = views or default_views(self.checkpoint), pass_inputs
        self.weights = _digest_weights(net)
        if self.views.crops == "whole":
            make_convolutional(net)
            if isinstance(net, StreamNet) and own is not None:
                [channels] = input_channels(self.checkpoint.inputs).values()
                check_sizes(net, (channels, self.checkpoint.crop, self.checkpoint.crop + 1))
        self.device = torch.device(device)
        self.net = net.to(self.device)

    def __repr__(self) -> str:
        shown = f"{self.checkpoint.net}, {'+'.join(self.checkpoint.inputs)}, {self.device}"
        return f"Scorer({os.fspath(self.path)!r}, {shown}, {len(self.known)} classes)"

    @property
    def unknown(self) -> str | None:
        """The checkpoint, or what it started from, that does not say what it was trained on."""
        origin = self.checkpoint.trained_on
        if origin is None:
            return str(self.path)
        return listed(origin.unknown) if origin.unknown else None

    def seen(self, videos: Sequence[Video]) -> list[str]:
        """The ids of those videos that the network was trained on, or others of their source.

        By what the checkpoint says; of one that 0.1.0 wrote, by the split in its folder.
        """
        if self.checkpoint.trained_on is not None:
            return self.checkpoint.trained_on.seen(videos)
        own = self.path.with_name(SPLIT_FILE)
        return origin_of(read_split(own).train).seen(videos) if own.exists() else []

    def columns(self, classes: Sequence[str]) -> list[int]:
        """The places of classes among the logits; UsageError for one that it does not know."""
        if unknown := [name for name in classes if name not in self.known]:
            raise UsageError(
                f"{self.path}: was not trained on {len(unknown)} of {len(classes)} classes: "
                f"{listed(unknown)}"
            )
        return [self.known.index(name) for name in classes]

    def places(self, video: str, frame_count: int) -> list[Places]:
        """Where a video of so many frames is looked at, by moment; short ones repeat some."""
        return spaced_places(
            self.checkpoint.inputs, video, frame_count, self.views.moments, self.several
        )

    def score(
        self, records: Iterable[Record], classes: Sequence[str] | None = None, *, readers: int = 1
    ) -> Iterator[np.ndarray]:
        """The values of each record, float32 (K,), in order; `readers` threads read ahead.

        They are of `classes` in their order, by default all that the network knows; others are
        left out before the softmax. UsageError for a class that it does not know, RecordError for a
        record that lacks what the network takes.
        """
        columns = self.columns(self.known if classes is None else classes)
        passes = (one for record in records for one in self._passes(record))
        total = np.zeros(len(columns))
        for one, inputs in _read_ahead(self._read, passes, readers):
            total += self._ask(one, inputs, columns)
            if one.is_last:
                yield (total / self.views.moments).astype(np.float32)
                total = np.zeros(len(columns))

    def describe(self) -> dict[str, Any]:
        """What scores files tell of how they were made, and resuming compares; JSON values."""
        checkpoint, views = self.checkpoint, self.views
        form = "".join(
            f", L = {form.length}" if isinstance(form, StackForm) else f", {form.about}"
            for form in checkpoint.inputs.values()
            if form != FrameForm()
        )
        if checkpoint.towers is not None:
            form += f", {checkpoint.towers.about}"
        if checkpoint.hidden:
            form += f", hidden layer of {checkpoint.hidden:,}"
        shown = f"{views.moments} x {view_set(views.crops).count} views"
        return {
            "kind": views.kind,
            "stream": checkpoint.stream,
            "about": f"{checkpoint.net}{form}, step {checkpoint.step:,}, {shown}",
            "nets": checkpoint.net.split("+"),
            "checkpoint": {
                "file": self.path.name,
                "step": checkpoint.step,
                "weights": self.weights,
            },
            "views": asdict(views) | {"placed": PLACED},
        }

    def _views(self, record: Record) -> list[View]:
        crop, short_side = self.checkpoint.crop, self.checkpoint.short_side
        return moment_views(self.views.crops, record.size, crop=crop, short_side=short_side)

    def _passes(self, record: Record) -> Iterator[_Pass]:
        """The distinct places of a record by the number that are read and asked together."""
        places = list(Counter(self.places(record.name, record.frame_count)).items())
        size = max(1, self.pass_inputs // (len(self._views(record)) * self._frames))
        for first in range(0, len(places), size):
            last = first + size
            yield _Pass(record, places[first:last], is_last=last >= len(places))

    @property
    def _frames(self) -> int:
        """The images that a sample costs: 1, of joined towers its moments, of I3D all it sees."""
        if self.several is not None:
            return self.several.frames
        [form] = self.checkpoint.inputs.values()
        return max(form.length, 1) if net_facts(self.checkpoint.net).over_time else 1

    def _read(self, one: _Pass) -> list[torch.Tensor]:
        """The whole rescaled stacks or frames of a pass: float32 (places, C, H, W) per input.

        Joined towers take (places, T, C, H, W). The views are cut on the device: ten of them have
        six times as many values.
        """
        record = one.record
        frame = self._views(record)[0].frame
        whole = View(frame, 0, 0, *frame)
        read = []
        for number, form in enumerate(self.checkpoint.inputs.values()):
            seen = [
                look_at(record, clip, [whole], form)[0]
                for places, _ in one.places
                for clip in places[number]
            ]
            found = torch.from_numpy(np.stack(seen))
            read.append(found if self.several is None else found.unflatten(0, (-1, self._frames)))
        return read

    def logits(
        self, record: Record, *, readers: int = 1
    ) -> Iterator[tuple[list[Places], torch.Tensor]]:
        """Pass by pass over a record, its distinct places and the logits of their V views.

        They are float32 (places V, K) on the device, of all tasks, the views of a place together.
        """
        for one, inputs in _read_ahead(self._read, self._passes(record), readers):
            yield [places for places, _ in one.places], self._forward(one, inputs)

    @torch.inference_mode()
    def _forward(self, one: _Pass, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The logits of all views of a pass, (places V, K)."""
        views = self._views(one.record)
        cuts = []
        for whole, form in zip(inputs, self.checkpoint.inputs.values(), strict=True):
            whole = whole.to(self.device)
            is_flow = isinstance(form, StackForm)
            cut = torch.stack([_cut(whole, view, is_flow=is_flow) for view in views], 1)
            cuts.append(cut.flatten(0, 1).split(max(1, self.pass_inputs // self._frames)))
        return torch.cat([self.net(*parts) for parts in zip(*cuts, strict=True)])

    @torch.inference_mode()
    def _ask(self, one: _Pass, inputs: list[torch.Tensor], columns: list[int]) -> np.ndarray:
        """The sum over the moments of a pass of the mean over views: float64 (K,)."""
        logits = self._forward(one, inputs)
        values = self.net.split_logits(logits)[self.task][:, columns].double()
        if self.views.kind == "softmax":
            values = values.softmax(1)
        moments = values.unflatten(0, (len(one.places), -1)).mean(1).cpu().numpy()  # (places, K)
        if self.views.average == "vote":
            moments = np.eye(moments.shape[1])[moments.argmax(1)]
        return np.array([times for _, times in one.places], np.float64) @ moments


def _cut(whole: torch.Tensor, view: View, *, is_flow: bool) -> torch.Tensor:
    """One view of whole frames or stacks: (..., C, H, W) -> (..., C, h, w)."""
    cut = whole[..., view.top : view.top + view.height, view.left : view.left + view.width]
    if not view.flip:
        return cut
    return flip(cut) if is_flow else cut.flip(-1)


def score_part(
    scorer: Scorer,
    split: Split,
    records: RecordFolder,
    part: Part,
    out: Path,
    *,
    missing: Missing = "error",
    readers: int = 1,
) -> Iterator[tuple[int, int]]:
    """Score a part of a split and write the scores file `out`; yields (videos done, videos).

    What is done is kept beside `out`, as a scores file of fewer videos, every minute and whenever
    this ends, for whatever reason: the next call goes on there. A finished `out` that was made the
    same way is left as it is, and nothing is yielded. RecordError, before any work, where a record
    is not what the network was trained on.
    """
    clips = _open_clips(scorer, split, records, part, missing)
    if clips.skipped:
        log.info("%s: %d videos have no record and are left out", out, clips.skipped)
    videos = [video.id for video in clips.videos]
    meta = scorer.describe() | {"part": part, "split": split.name}
    if scorer.unknown is None:
        meta["unseen"] = True
    meta["data"] = _digest_data(split.classes, clips)
    partial = out.with_suffix(".partial.npz")
    if _read_alike(out, meta) is not None:
        return
    rows = _read_alike(partial, meta) or {}
    waiting = [place for place, video in enumerate(videos) if video not in rows]
    saved = time.monotonic()
    try:
        if rows:
            yield len(rows), len(videos)
        left = (clips.records[place] for place in waiting)
        values = scorer.score(left, split.classes, readers=readers)
        for place, row in zip(waiting, values, strict=True):
            rows[videos[place]] = row
            if time.monotonic() - saved >= SAVE_S:
                _write_rows(partial, rows, clips, split.classes, meta)
                saved = time.monotonic()
            yield len(rows), len(videos)
        _write_rows(out, rows, clips, split.classes, meta)
        partial.unlink(missing_ok=True)
    finally:
        if 0 < len(rows) < len(videos):
            _write_rows(partial, rows, clips, split.classes, meta)


def _open_clips(
    scorer: Scorer, split: Split, records: RecordFolder, part: Part, missing: Missing
) -> TestClips:
    """The videos of a part with their records, found, opened and checked before any work."""
    if not split.part(part):
        raise SplitError(f"{split.name}: its {part} part is empty")
    if seen := scorer.seen(split.part(part)):
        raise UsageError(
            f"{scorer.path}: was trained on {len(seen)} of the {part} videos of "
            f"{split.name}: {listed(seen)} (or on others of their source)"
        )
    scorer.columns(split.classes)
    checkpoint = scorer.checkpoint
    clips = TestClips(
        split,
        records,
        inputs=checkpoint.inputs,
        part=part,
        crop=checkpoint.crop,
        short_side=checkpoint.short_side,
        missing=missing,
    )
    for record in clips.records:
        checkpoint.check_record(record)
    return clips


def _write_rows(
    path: Path,
    rows: Mapping[str, np.ndarray],
    clips: TestClips,
    classes: tuple[str, ...],
    meta: dict[str, Any],
) -> None:
    """Write the rows of the videos that are done, in the order of the part."""
    done = [place for place, video in enumerate(clips.videos) if video.id in rows]
    ids = tuple(clips.videos[place].id for place in done)
    values = np.stack([rows[id] for id in ids])
    labels = np.array([clips.labels[place] for place in done])
    write_scores(path, Scores(ids, classes, values, labels, meta))


def _read_ahead(
    read: Callable[[_Pass], list[torch.Tensor]], passes: Iterable[_Pass], readers: int
) -> Iterator[tuple[_Pass, list[torch.Tensor]]]:
    """Every pass with what `read` makes of it, in order, some of them read ahead in threads."""
    waiting: deque[tuple[_Pass, Future[list[torch.Tensor]]]] = deque()
    pool = ThreadPoolExecutor(max(1, readers))
    try:
        for one in passes:
            waiting.append((one, pool.submit(read, one)))
            if len(waiting) > readers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_alike(path: Path, meta: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The values by video in a scores file that was made as `meta` says; None if there is none."""
    if not path.exists():
        return None
    scores = read_scores(path)
    if found := differences(scores.meta, json.loads(json.dumps(meta))):
        log.info("%s: is made again, for it differs: %s", path, "; ".join(found))
        return None
    return dict(zip(scores.videos, scores.values, strict=True))


def _digest_weights(net: torch.nn.Module) -> str:
    """A number of the weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_data(classes: Sequence[str], clips: TestClips) -> str:
    """A number of the classes, of the videos with their labels, and how records were made."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for video, label, record in zip(clips.videos, clips.labels, clips.records, strict=True):
        sidecar = record.sidecar
        made = [sidecar.get("request"), sidecar.get("foreign"), record.size, record.frame_count]
        digest.update(json.dumps([video.id, label, made]).encode())
    return digest.hexdigest()[:16]
