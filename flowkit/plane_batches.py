"""Training batches as bytes: workers decode planes, and a device makes the flow stacks of them.

A worker then does nothing but read and decode, and a batch travels in 8 bits. Floats, rescaling,
means, paths, crops and flips are arithmetic on the device, the same as in `flowkit.stacks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from flowkit import planes
from flowkit.clips import Clip, View
from flowkit.errors import RecordError
from flowkit.quantize import CODES
from flowkit.stacks import StackForm, field_places, stack_batch

if TYPE_CHECKING:
    from flowkit.records import Record


class PlaneClip(NamedTuple):
    """The planes of one clip: uint8 (halves, fields, 2, H, W), and lo and hi of each in px.

    Halves are the forward fields and, for a bi-directional stack, the backward ones.
    """

    codes: torch.Tensor
    ranges: torch.Tensor  # float32 (halves, fields, 2, 2)
    view: View


class PlaneGroup(NamedTuple):
    """Clips of a batch that have one frame size and one crop size, stacked."""

    places: list[int]  # in the batch
    codes: torch.Tensor  # uint8 (n, halves, fields, 2, H, W)
    ranges: torch.Tensor
    views: list[View]


def read_planes(record: Record, clip: Clip, view: View, form: StackForm) -> PlaneClip:
    """Read the planes of a clip; RecordError where the record holds floats and no planes."""
    halves = field_places(record, clip, form)
    codes = np.empty((len(halves), len(halves[0][1]), 2, *record.size), np.uint8)
    ranges = np.empty((*codes.shape[:2], 2, 2), np.float32)
    for half, (direction, places) in enumerate(halves):
        series = record.find_series(direction, form.step)
        if series.ranges is None:
            raise RecordError(f"{record.path}: holds floats: only 8-bit planes travel as bytes")
        names = tuple(series.files.values())
        files = iter(record.read([(name, place) for place in places for name in names]))
        for k, place in enumerate(places):
            codes[half, k] = planes.decode_planes(
                [next(files) for _ in names],
                record.format,
                record.size,
                where=f"{record.path}: {names[0] % (place + 1)}",
            )
        ranges[half] = series.ranges[places]
    return PlaneClip(torch.from_numpy(codes), torch.from_numpy(ranges), view)


def group_planes(clips: list[PlaneClip]) -> list[PlaneGroup]:
    """The clips of a batch by frame size and crop size, which may differ among videos."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, clip in enumerate(clips):
        key = (clip.codes.shape, clip.view.frame, clip.view.height, clip.view.width)
        alike.setdefault(key, []).append(place)
    return [
        PlaneGroup(
            places,
            torch.stack([clips[place].codes for place in places]),
            torch.stack([clips[place].ranges for place in places]),
            [clips[place].view for place in places],
        )
        for places in alike.values()
    ]


def stack_planes(
    groups: list[PlaneGroup],
    *,
    form: StackForm,
    size: tuple[int, int],
    device: torch.device | str,
) -> torch.Tensor:
    """The flow stacks of a batch on `device`: float32 (B, 2L, h, w) in px, `size` being (h, w).

    Equal to `flowkit.stacks.flow_stack` of each clip, to rounding (where nothing is rescaled).
    """
    batch = sum(len(group.places) for group in groups)
    stacked = torch.empty((batch, form.channels, *size), device=device)
    for group in groups:
        codes = group.codes.to(device, non_blocking=True)
        ranges = group.ranges.to(device, non_blocking=True)
        fields = _rescale(_values(codes, ranges), group.views[0].frame)
        made = stack_batch(
            *(half.permute(0, 1, 3, 4, 2).contiguous() for half in fields.unbind(1)),
            mode=form.mode,
            mean_subtract=form.mean_subtract,
            views=group.views,
        )
        stacked[group.places] = _rescale(made.unflatten(1, (-1, 2)), size).flatten(1, 2)
    return stacked


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
