"""Flow stacks: fields to a network's 2L channels x1 y1 x2 y2 ..., in every form of the 2014 paper.

Simonyan & Zisserman 2014, sections 3 and 3.1; docs/stacks.md states what the paper leaves open. The
sign of x under a flip lives here, in `flip`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from flowkit.data import trajectories
from flowkit.data.clips import Clip, View
from flowkit.errors import RecordError, UsageError
from flowkit.fields import resize

if TYPE_CHECKING:
    import torch

    from flowkit.records.reading import Record
    from flowkit.series import Direction

    Array = TypeVar("Array", np.ndarray, torch.Tensor)  # (B, ...) or one sample

# How the fields of a clip are stacked; the names are what `StackForm.mode` may be.
STACKINGS = {
    "flow": "every field at the same pixel",
    "trajectory": "every field along the path of the pixel",
}
PART = 32  # samples that a GPU stacks at a time: trajectories take some 36 MB for each


@dataclass(frozen=True)
class StackForm:
    """What a network's input is made of: options that belong to a trained network.

    `length` is L, the fields of a stack. `mode` "flow" takes every field at the same pixel (eq. 1),
    "trajectory" along the path of the pixel (eq. 2). `bidirectional` takes L/2 fields forward from
    the clip's middle frame and L/2 back from it. `mean_subtract` takes off each field's own mean
    vector. `step` is the number of frames that a field spans. UsageError for what cannot be.
    """

    length: int = 10
    mode: str = "flow"
    bidirectional: bool = False
    mean_subtract: bool = True
    step: int = 1

    def __post_init__(self) -> None:
        if self.mode not in STACKINGS:
            raise UsageError(f"expected a mode of {' or '.join(STACKINGS)}, got {self.mode!r}")
        if self.length < 1 or self.step < 1:
            raise UsageError(
                f"expected L and a step of at least 1, got {self.length} and {self.step}"
            )
        if self.bidirectional and self.length % 2:
            raise UsageError(
                f"expected an even L for a bi-directional stack, half of it each way, "
                f"got {self.length}"
            )

    @property
    def channels(self) -> int:
        """2L."""
        return 2 * self.length

    @property
    def least_frames(self) -> int:
        """Frames that a video must have: those of one field, for fields are looped."""
        return self.step + 1

    @property
    def about(self) -> str:
        """It in words: "L = 10, flow stacking, mean subtracted"."""
        direction = "bi-directional, " if self.bidirectional else ""
        mean = "mean subtracted" if self.mean_subtract else "mean kept"
        return f"L = {self.length}, {self.mode} stacking, {direction}{mean}"

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What each channel is: "x1", "y1", "x2", ...; backward fields are "x-1", "y-1", ..."""
        ahead = self.length // 2 if self.bidirectional else self.length
        fields = [*range(1, ahead + 1), *(-n for n in range(1, self.length - ahead + 1))]
        return tuple(f"{axis}{number}" for number in fields for axis in "xy")


def flow_stack(
    record: Record,
    clip: Clip,
    view: View | None = None,
    *,
    form: StackForm | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The stack of a clip of a record, float32 (2L, h, w) in px; see `flow_stacks`.

    Without a view it is the whole frame at the size it is stored at. `size` (H, W) rescales the
    crop. RecordError where the record lacks the fields or they are not finite numbers, UsageError
    where clip and form do not fit together.
    """
    view = view or View(record.size, 0, 0, *record.size)
    return flow_stacks(record, clip, [view], form=form, size=size)[0]


def flow_stacks(
    record: Record,
    clip: Clip,
    views: Sequence[View],
    *,
    form: StackForm | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The stack of one clip in several views of one frame and size: float32 (V, 2L, h, w) in px.

    Fields are read once, rescaled as vectors to the views' frame, stacked (`stack`, default form of
    the clip's length), cropped, rescaled as vectors to `size` (H, W) where that is given, and
    flipped. RecordError where the record lacks the fields or they are not finite numbers.
    """
    form = form or StackForm(clip.length, step=clip.step)
    halves = field_places(record, clip, form)
    parts = [_read(record, places, direction, form.step) for direction, places in halves]
    frame = views[0].frame
    _check_crops(views, frame)
    if frame != record.size:
        parts = [np.stack([resize(field, frame) for field in part]) for part in parts]
    one_crop = len({(view.top, view.left, view.height, view.width) for view in views}) == 1
    crop = views[0] if one_crop else View(frame, 0, 0, *frame)
    whole = stack(*parts, mode=form.mode, mean_subtract=form.mean_subtract, crop=crop)
    stacks = []
    for view in views:
        top, left = view.top - crop.top, view.left - crop.left
        cut = whole[:, top : top + view.height, left : left + view.width]
        if size is not None and size != cut.shape[1:]:
            cut = _resize_stack(cut, size)
        stacks.append(flip(cut) if view.flip else cut)
    return stacks[0][None] if len(stacks) == 1 else np.stack(stacks)


def stack(
    forward: np.ndarray,
    backward: np.ndarray | None = None,
    *,
    mode: str = "flow",
    mean_subtract: bool = True,
    crop: View | None = None,
) -> np.ndarray:
    """The stack of fields: float32 (L, H, W, 2) in px -> float32 (2L, h, w) in px, x1 y1 x2 y2 ...

    `forward` are the fields in order of time from frame t. For a bi-directional stack `backward`
    are as many fields in the order of going back from frame t, and their channels come second; each
    half follows its own path. Means are of whole fields; paths follow the fields as they are and
    may leave the `crop`, whose flip is left to `flip`. Inputs are not changed.
    """
    frame = _check_fields(forward, backward, mode, dimensions=4)
    crop = crop or View(frame, 0, 0, *frame)
    _check_crops([crop], frame)
    stacked = np.empty((_channels(forward, backward), crop.height, crop.width), np.float32)
    _stack_into(stacked, forward, backward, mode, mean_subtract, crop)
    return stacked


def stack_batch(
    forward: torch.Tensor,
    backward: torch.Tensor | None = None,
    *,
    mode: str = "flow",
    mean_subtract: bool = True,
    views: Sequence[View] | None = None,
) -> torch.Tensor:
    """The stacks of a batch on its device: float32 (B, L, H, W, 2) in px -> float32 (B, 2L, h, w).

    `views`, one a sample and all of one size, lie in the fields' frame; their flips are done, too.
    Equal to `stack` and `flip`, which do the work on the CPU, a thread a sample.
    """
    import torch

    frame = _check_fields(forward, backward, mode, dimensions=5)
    batch = len(forward)
    views = views or [View(frame, 0, 0, *frame)] * batch
    _check_crops(views, frame)
    if len(views) != batch:
        raise UsageError(f"expected a view for each of {batch} samples, got {len(views)}")
    if forward.device.type != "cpu":
        return _stack_tensors(forward, backward, mode, mean_subtract, views)

    stacked = torch.empty(batch, _channels(forward, backward), views[0].height, views[0].width)

    def stack_sample(index: int) -> None:
        back = None if backward is None else backward[index].numpy()
        sample, view = stacked[index].numpy(), views[index]
        _stack_into(sample, forward[index].numpy(), back, mode, mean_subtract, view)
        if view.flip:
            sample[:] = flip(sample)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(stack_sample, range(batch)))
    return stacked


def _channels(forward: Array, backward: Array | None) -> int:
    return 2 * forward.shape[-4] * (1 if backward is None else 2)


def _stack_into(
    stacked: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray | None,
    mode: str,
    mean_subtract: bool,
    crop: View,
) -> None:
    """Write the stack into `stacked`, contiguous (2L, h, w)."""
    halves = [forward] if backward is None else [forward, backward]
    rows, columns = _slices(crop)
    parts = stacked.reshape(len(halves), -1, 2, crop.height, crop.width)
    for half, pairs in zip(halves, parts, strict=True):
        means = _means(half) if mean_subtract else np.zeros((len(half), 2), np.float32)
        if mode == "trajectory":
            trajectories.follow(half, means, crop.top, crop.left, pairs)
        else:
            cut = half[:, rows, columns].transpose(0, 3, 1, 2)  # (L, h, w, 2) -> (L, 2, h, w)
            np.subtract(cut, means[:, :, None, None], out=pairs)


def _stack_tensors(
    forward: torch.Tensor,
    backward: torch.Tensor | None,
    mode: str,
    mean_subtract: bool,
    views: Sequence[View],
) -> torch.Tensor:
    """`stack_batch` in the operations of torch alone, on any device."""
    import torch

    parts = []
    for begin in range(0, len(forward), PART):
        part = slice(begin, begin + PART)
        back = None if backward is None else backward[part]
        parts.append(_stack_part(forward[part], back, mode, mean_subtract, views[part]))
    return torch.cat(parts)


def _stack_part(
    forward: torch.Tensor,
    backward: torch.Tensor | None,
    mode: str,
    mean_subtract: bool,
    views: Sequence[View],
) -> torch.Tensor:
    import torch

    height, width = views[0].height, views[0].width
    tops, lefts, flips = (
        torch.tensor([getattr(view, name) for view in views]).to(forward.device, non_blocking=True)
        for name in ("top", "left", "flip")
    )
    found = []
    for half in [forward] if backward is None else [forward, backward]:
        if mode == "trajectory":
            pairs = trajectories.follow_tensors(half, tops, lefts, height, width)
        else:
            cuts = [sample[:, *_slices(view)] for sample, view in zip(half, views, strict=True)]
            pairs = torch.stack(cuts).permute(0, 1, 4, 2, 3)  # -> (B, L, 2, h, w)
        found.append(pairs - _means(half)[..., None, None] if mean_subtract else pairs)
    stacked = torch.cat(found, 1).flatten(1, 2)  # (B, L, 2, h, w) -> (B, 2L, h, w)
    return torch.where(flips[:, None, None, None], flip(stacked), stacked)


def flip(stacked: Array) -> Array:
    """Stacks (..., 2L, h, w) of the mirrored video: columns reversed, every x negated; a copy."""
    mirrored = stacked[..., ::-1].copy() if isinstance(stacked, np.ndarray) else stacked.flip(-1)
    mirrored[..., 0::2, :, :] *= -1
    return mirrored


def field_places(record: Record, clip: Clip, form: StackForm) -> list[tuple[Direction, list[int]]]:
    """Which fields of a record make the stack of a clip: those of each half, in its order."""
    if (form.length, form.step) != (clip.length, clip.step):
        raise UsageError(
            f"expected a clip of {form.length} fields of step {form.step}, "
            f"got {clip.length} of {clip.step}"
        )
    count = record.field_count("forward", form.step)
    if not form.bidirectional:
        return [("forward", clip.fields(count))]
    ahead, back = clip.halves(count)
    return [("forward", ahead), ("backward", back)]


def _read(record: Record, places: list[int], direction: Direction, step: int) -> np.ndarray:
    """The fields of a record at `places`, in any order and maybe repeated: float32 (L, H, W, 2)."""
    wanted = sorted(set(places))
    ends = [k for k in range(1, len(wanted)) if wanted[k] != wanted[k - 1] + 1]
    runs = [
        record.fields(wanted[first], last - first, direction=direction, step=step)
        for first, last in pairwise([0, *ends, len(wanted)])
    ]
    fields = runs[0] if len(runs) == 1 else np.concatenate(runs)
    stored_as_floats = record.find_series(direction, step).ranges is None
    if stored_as_floats and not np.isfinite(fields).all():
        raise RecordError(f"{record.path}: expected finite displacements, got NaN or infinity")
    return fields if wanted == places else fields[np.searchsorted(wanted, places)]


def _means(fields: Array) -> Array:
    """The mean vector of each field: (..., L, H, W, 2) -> (..., L, 2) float32, summed in double.

    The sum of each column is added to that of the mirrored column first, so that a field and its
    mirror image have the same mean bit for bit, but for the sign of x.
    """
    height, width = fields.shape[-3:-1]
    if isinstance(fields, np.ndarray):
        columns = fields.sum(axis=-3, dtype=np.float64)
        total = (columns + columns[..., ::-1, :]).sum(axis=-2)
        return (total / (2 * height * width)).astype(np.float32)
    columns = fields.double().sum(-3)
    return ((columns + columns.flip(-2)).sum(-2) / (2 * height * width)).float()


def _resize_stack(stacked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The stack (2L, h, w) at another size (H, W), its values scaled as vectors are; bilinear."""
    from flowkit._cv2 import cv2

    scales = (size[1] / stacked.shape[2], size[0] / stacked.shape[1])  # scales of x and of y
    resized = np.empty((len(stacked), *size), np.float32)
    for channel, plane in enumerate(stacked):
        at_size = cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        np.multiply(at_size, np.float32(scales[channel % 2]), out=resized[channel])
    return resized


def _slices(crop: View) -> tuple[slice, slice]:
    return slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)


def _check_fields(
    forward: Array, backward: Array | None, mode: str, *, dimensions: int
) -> tuple[int, int]:
    """The frame size (H, W) of fields, (..., L, H, W, 2); UsageError unless they fit together."""
    wanted = "(B, L, H, W, 2)" if dimensions == 5 else "(L, H, W, 2)"
    for half in (forward,) if backward is None else (forward, backward):
        fits = half.shape == forward.shape and half.ndim == dimensions and half.shape[-1] == 2
        if not fits or "float32" not in str(half.dtype):
            raise UsageError(
                f"expected fields, float32 {wanted}, forward and backward of one shape, "
                f"got {half.dtype} {tuple(half.shape)}"
            )
    if mode not in STACKINGS:
        raise UsageError(f"expected a mode of {' or '.join(STACKINGS)}, got {mode!r}")
    return forward.shape[-3], forward.shape[-2]


def _check_crops(crops: Sequence[View], frame: tuple[int, int]) -> None:
    for crop in crops:
        if crop.frame != frame:
            raise UsageError(f"expected a crop of a frame of {frame}, got one of {crop.frame}")
    if len({(crop.height, crop.width) for crop in crops}) > 1:
        raise UsageError("expected crops of one size, got several")
