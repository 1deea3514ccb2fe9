"""What a network sees of a moment: the streams that it takes, in order, and the form of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from flowkit.data.clips import STREAMS, Clip, Stream, View, spaced_clips, spaced_starts
from flowkit.data.frames import FrameForm, frame_stacks
from flowkit.data.moments import Moments
from flowkit.data.stacks import StackForm, flow_stacks
from flowkit.errors import UsageError

if TYPE_CHECKING:
    from flowkit.records.reading import Record

# Stream -> the form of what it takes: frames of the spatial one, a flow stack of the temporal one.
Inputs = Mapping[Stream, FrameForm | StackForm]
TEMPORAL: Inputs = {"temporal": StackForm()}  # the default of data sets

# What an input looks at: the clip of each moment of a sample; of a stream alone, one.
Look = tuple[Clip, ...]


def check_inputs(inputs: Inputs) -> dict[Stream, FrameForm | StackForm]:
    """The same inputs in the order of STREAMS; UsageError where they are none or do not fit."""
    if not inputs or not set(inputs) <= set(STREAMS):
        raise UsageError(f"expected streams of {' and '.join(STREAMS)}, got {', '.join(inputs)}")
    for stream, form in inputs.items():
        kind = FrameForm if stream == "spatial" else StackForm
        if not isinstance(form, kind):
            raise UsageError(
                f"expected a {kind.__name__} of the {stream} stream, which says what it looks at, "
                f"got {form}"
            )
    frames = inputs.get("spatial")
    if len(inputs) > 1 and isinstance(frames, FrameForm) and not frames.is_single:
        raise UsageError(
            f"expected a single frame beside the flow, got {frames.about}: its stream goes alone"
        )
    return {stream: inputs[stream] for stream in STREAMS if stream in inputs}


def flow_form(inputs: Inputs) -> StackForm | None:
    """The form of the flow stacks among inputs, None where there are none."""
    form = inputs.get("temporal")
    return form if isinstance(form, StackForm) else None


def stream_name(inputs: Inputs) -> str:
    """What the scores of inputs are called: "spatial", "frames", "rgb-diff", "temporal"."""
    names = (f.name if isinstance(f, FrameForm) else stream for stream, f in inputs.items())
    return "+".join(names)


def input_channels(inputs: Inputs) -> dict[Stream, int]:
    """The channels of each stream's input: 3 of a frame, 3N of a stack of them, 2L of flow."""
    return {stream: form.channels for stream, form in inputs.items()}


def look_at(
    record: Record,
    clip: Clip,
    views: Sequence[View],
    form: FrameForm | StackForm,
    *,
    size: tuple[int, int] | None = None,
    color: np.ndarray | None = None,
) -> np.ndarray:
    """What an input sees of a clip in several views: float32 (V, C, h, w).

    `size` (H, W) rescales the crops; `color` is added to frames (`augment.frame_input`), never to
    flow. RecordError where the record lacks frames or fields, or a file of it is damaged.
    """
    if isinstance(form, FrameForm):
        return frame_stacks(record, clip, views, form=form, size=size, color=color)
    return flow_stacks(record, clip, views, form=form, size=size)


def spaced_places(
    inputs: Inputs, video: str, frame_count: int, moments: int, several: Moments | None = None
) -> list[tuple[Look, ...]]:
    """Where each input looks at each of `moments` of a video, in the inputs' order.

    With `several`, each is a sample of some moments around it, and frames are the middle ones of
    the clips.
    """
    flow = flow_form(inputs)
    if several is not None and flow is not None:
        count = frame_count - flow.step
        samples = several.spaced(video, count, flow, moments)
        return [sample_looks(inputs, clips, count) for clips in samples]
    columns = [_spaced(form, video, frame_count, moments) for form in inputs.values()]
    return [tuple((clip,) for clip in clips) for clips in zip(*columns, strict=True)]


def _spaced(form: FrameForm | StackForm, video: str, frame_count: int, moments: int) -> list[Clip]:
    """The clip of each moment."""
    length, step = form.length, form.step
    if isinstance(form, StackForm):
        return spaced_clips(video, frame_count - step, length, moments=moments, step=step)
    starts = spaced_starts(frame_count, length * step, moments)
    return [Clip(video, start, length, step) for start in starts]


def sample_looks(inputs: Inputs, clips: tuple[Clip, ...], field_count: int) -> tuple[Look, ...]:
    """What each input looks at of a sample: its clips, or the middle frame of each."""
    frames = tuple(Clip(clip.video, clip.frame(field_count), 0) for clip in clips)
    return tuple(frames if isinstance(form, FrameForm) else clips for form in inputs.values())


def inputs_to_json(inputs: Inputs) -> dict[str, Any]:
    """The inputs as JSON values, null for a single frame; `inputs_from_json` reads them."""
    return {
        stream: None if form == FrameForm() else asdict(form) for stream, form in inputs.items()
    }


def inputs_from_json(data: Mapping[Any, Any]) -> dict[Stream, FrameForm | StackForm]:
    """The inputs that `inputs_to_json` wrote; TypeError or UsageError for anything else."""
    read: dict[Stream, FrameForm | StackForm] = {}
    for stream, form in data.items():
        if form is None:
            read[stream] = FrameForm()
        else:
            read[stream] = FrameForm(**form) if stream == "spatial" else StackForm(**form)
    return check_inputs(read)
