"""Training batches as bytes: workers decode planes, and a device makes the flow stacks of them.

A worker then does nothing but read, decode and crop, and a batch travels in 8 bits. Floats,
rescaling, paths and flips are arithmetic on the device, the same as in `flowkit.data.stacks`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from flowkit.data.clips import Clip, View
from flowkit.data.kept_memory import Kept, KeptMemory
from flowkit.data.stacks import StackForm, field_places, stack_batch
from flowkit.errors import RecordError
from flowkit.quantize import CODES
from flowkit.records import formats

if TYPE_CHECKING:
    from flowkit.records.reading import Record


class PlaneClip(NamedTuple):
    """Where the planes of one view of a clip are to be read; no pixels."""

    record: Record
    clip: Clip
    view: View
    form: StackForm


class PlaneGroup(NamedTuple):
    """Clips of a batch that have one frame size and one crop size, read.

    Halves are the forward fields and, for a bi-directional stack, the backward ones. Planes are
    cut to their views, (h, w), where nothing is asked of the rest: no path and no other size. Then
    there are the `means` of the whole ones.
    """

    places: list[int]  # rows of the batch
    codes: torch.Tensor | Kept  # uint8 (n, halves, fields, 2, H, W)
    ranges: torch.Tensor  # float32 (n, halves, fields, 2, 2): lo and hi of each plane in px
    views: list[View]
    means: torch.Tensor | None = None  # float64 (n, halves, fields, 2): of the codes


class PlaneSample(NamedTuple):
    """The clips of one sample, to be read as planes with those of its batch; no pixels."""

    clips: list[PlaneClip]


class PlaneBatch(NamedTuple):
    """The flow of a batch as planes, where others have a tensor of stacks: `stack_planes` makes it.

    Its rows are the clips of the samples in turn, each in one of the groups.
    """

    groups: list[PlaneGroup]

    @property
    def rows(self) -> int:
        """The number of clips."""
        return sum(len(group.places) for group in self.groups)


def read_batch(clips: list[PlaneClip], memory: KeptMemory | None = None) -> PlaneBatch:
    """Read the clips of a batch, by frame size and crop size, which may differ among videos.

    Planes are decoded into kept `memory`, or, without room there, into the new one that a worker's
    batch travels in. RecordError where a record holds floats and no planes.
    """
    if memory is not None:
        memory.begin_batch()
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, (record, _, view, form) in enumerate(clips):
        key = (record.size, form, view.frame, view.height, view.width)
        alike.setdefault(key, []).append(place)
    return PlaneBatch([_read_group(clips, places, memory) for places in alike.values()])


def join_batches(parts: list[PlaneBatch], memory: KeptMemory) -> PlaneBatch:
    """One batch of several, the rows in their order; planes stay where they are in `memory`."""
    groups, first = [], 0
    for part in parts:
        for group in part.groups:
            codes = group.codes
            if not isinstance(codes, torch.Tensor):
                codes = memory.open(codes)
            places = [first + place for place in group.places]
            groups.append(group._replace(places=places, codes=codes))
        first += part.rows
    return PlaneBatch(groups)


def _read_group(clips: list[PlaneClip], places: list[int], memory: KeptMemory | None) -> PlaneGroup:
    first = clips[places[0]]
    form, size = first.form, first.record.size
    halves = 2 if form.bidirectional else 1
    planes = (halves, form.length // halves, 2)
    is_cut = form.mode == "flow" and first.view.frame == size
    shape = (len(places), *planes, *((first.view.height, first.view.width) if is_cut else size))
    room = memory.take(shape) if memory is not None else None
    codes: torch.Tensor | Kept
    if room is None:
        codes = _empty_bytes(shape)
        values = codes.numpy()
    else:
        values, codes = room
    ranges = torch.empty(*shape[:4], 2)
    means = torch.zeros(shape[:4], dtype=torch.float64) if is_cut else None
    for number, place in enumerate(places):
        mean = None if means is None else means[number].numpy()
        read_planes(clips[place], values[number], ranges[number].numpy(), mean)
    return PlaneGroup(places, codes, ranges, [clips[place].view for place in places], means)


def read_planes(
    address: PlaneClip, codes: np.ndarray, ranges: np.ndarray, means: np.ndarray | None = None
) -> None:
    """Read the planes of a clip into `codes`, uint8 (halves, fields, 2, H, W), and their `ranges`.

    With `means`, float64 (halves, fields, 2), planes are cut to the view, which lies in frames of
    their own size, and the mean codes of the whole ones, of exact sums, are written there, if the
    form subtracts them. RecordError where the record holds floats and no planes.
    """
    from flowkit._cv2 import cv2

    record, clip, view, form = address
    rows, columns = slice(None), slice(None)
    if means is not None:
        rows = slice(view.top, view.top + view.height)
        columns = slice(view.left, view.left + view.width)
    for half, (direction, places) in enumerate(field_places(record, clip, form)):
        series = record.find_series(direction, form.step)
        if series.ranges is None:
            raise RecordError(f"{record.path}: holds floats: only 8-bit planes travel as bytes")
        files = record.read_fields(series, places)
        for field, (data, where) in enumerate(files):
            pair = formats.decode_planes(data, record.format, record.size, where=where)
            for component, plane in enumerate(pair):  # still in the processor's cache
                codes[half, field, component] = plane[rows, columns]
                if means is not None and form.mean_subtract:
                    means[half, field, component] = cv2.sumElems(plane)[0] / plane.size
        ranges[half] = series.ranges[places]


def _empty_bytes(shape: tuple[int, ...]) -> torch.Tensor:
    """Uninitialized uint8; in a loader's worker in shared memory, as torch's own collation does."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.uint8))  # NumPy asks for huge pages
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # type: ignore[call-overload]


def stack_planes(
    planes: PlaneBatch,
    *,
    form: StackForm,
    size: tuple[int, int],
    device: torch.device | str,
) -> torch.Tensor:
    """The flow stacks of a batch on `device`: float32 (B, 2L, h, w) in px, `size` being (h, w).

    Equal to `flowkit.data.stacks.flow_stack` of each clip, to rounding (where nothing is rescaled).
    """
    stacked = torch.empty((planes.rows, form.channels, *size), device=device)
    for group in planes.groups:
        assert isinstance(group.codes, torch.Tensor), "kept memory is opened before"
        codes = group.codes.to(device, non_blocking=True)
        if group.means is None:
            ranges = group.ranges.to(device, non_blocking=True)
            fields = _rescale(_values(codes, ranges), group.views[0].frame)
            made = stack_batch(
                *(half.permute(0, 1, 3, 4, 2).contiguous() for half in fields.unbind(1)),
                mode=form.mode,
                mean_subtract=form.mean_subtract,
                views=group.views,
            ).unflatten(1, (-1, 2))
        else:
            means = group.means if form.mean_subtract else None
            flips = torch.tensor([view.flip for view in group.views])
            made = _cut_fields(codes, group.ranges, means, flips).flatten(1, 2)
        first, count = group.places[0], len(group.places)
        run = group.places == list(range(first, first + count))
        where = (
            slice(first, first + count)
            if run
            else torch.tensor(group.places).to(device, non_blocking=True)
        )
        stacked[where] = _rescale(made, size).flatten(1, 2)
    return stacked


def _cut_fields(
    codes: torch.Tensor, ranges: torch.Tensor, means: torch.Tensor | None, flips: torch.Tensor
) -> torch.Tensor:
    """Fields (n, halves, fields, 2, h, w) in px of codes that are cut, less the mean of each plane.

    Those of the samples with `flips`, (n,), are mirrored. Few passes over the pixels, on the device
    of `codes`: a training makes a gigabyte of them a step. All else is on the CPU, and computed
    there: nothing waits for a GPU. With `means`, (code - mean) (hi - lo) / 255, lo cancels.
    """

    def send(values: torch.Tensor) -> torch.Tensor:
        return values.to(codes.device, non_blocking=True)

    flips = flips.view(-1, *[1] * 5)
    lo, hi = (end[..., None, None] for end in ranges.double().unbind(-1))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]
    sign = torch.where(flips, sign, 1.0)  # of x and y
    scale = sign * (hi - lo) / CODES
    base = sign * lo if means is None else -means[..., None, None] * scale
    values = torch.where(send(flips), codes.flip(-1), codes) * send(scale.float())
    values += send(base.float())
    if means is None:  # zero is exact
        values.masked_fill_(values.abs() < send((1e-6 * (hi - lo)).float()), 0.0)
    return values


def _values(codes: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """The px values of codes: uint8 (..., 2, H, W) and (..., 2, 2) -> float32; zero is exact."""
    lo, hi = (end[..., None, None] for end in ranges.unbind(-1))
    values = torch.addcmul(lo, codes.float(), (hi - lo) / CODES)
    return values.masked_fill_(values.abs() < 1e-6 * (hi - lo), 0.0)


def _rescale(fields: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Fields (..., 2, H, W) at another size (H, W), as vectors; bilinear, half-pixel centers."""
    height, width = fields.shape[-2:]
    if (height, width) == size:
        return fields
    flat = interpolate(fields.flatten(0, -4), size=size, mode="bilinear", align_corners=False)
    factors = flat.new_tensor([size[1] / width, size[0] / height])[:, None, None]
    return (flat * factors).unflatten(0, fields.shape[:-3])
