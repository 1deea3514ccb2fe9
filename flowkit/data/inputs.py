"""What a network sees of a moment: the streams that it takes, in order, and the form of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flowkit.data.clips import STREAMS, Clip, Stream, spaced_clips, spaced_frames
from flowkit.data.moments import Moments
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError

# Stream -> the form of its stacks, or None for a single frame, which is what "spatial" takes.
Inputs = Mapping[Stream, StackForm | None]
TEMPORAL: Inputs = {"temporal": StackForm()}  # the default of data sets

RGB_CHANNELS = 3
# What an input looks at: frames or clips, one of each moment of a sample; of a stream alone, one.
Look = tuple[int, ...] | tuple[Clip, ...]


def check_inputs(inputs: Inputs) -> dict[Stream, StackForm | None]:
    """The same inputs in the order of STREAMS; UsageError where they are none or do not fit."""
    if not inputs or not set(inputs) <= set(STREAMS):
        raise UsageError(f"expected streams of {' and '.join(STREAMS)}, got {', '.join(inputs)}")
    for stream, form in inputs.items():
        if (form is None) != (stream == "spatial"):
            raise UsageError(
                "expected the form of a stack for the temporal stream and none for the spatial, "
                f"got {form} for the {stream} stream"
            )
    return {stream: inputs[stream] for stream in STREAMS if stream in inputs}


def input_channels(inputs: Inputs) -> dict[Stream, int]:
    """The channels of each stream's input: 3 of a frame, 2L of a stack."""
    return {s: RGB_CHANNELS if form is None else form.channels for s, form in inputs.items()}


def spaced_places(
    inputs: Inputs, video: str, frame_count: int, moments: int, several: Moments | None = None
) -> list[tuple[Look, ...]]:
    """Where each input looks at each of `moments` of a video, in the inputs' order.

    With `several`, each is a sample of some moments around it, and frames are the middle ones of
    the clips.
    """
    form = inputs.get("temporal")
    if several is not None and form is not None:
        count = frame_count - form.step
        samples = several.spaced(video, count, form, moments)
        return [sample_looks(inputs, clips, count) for clips in samples]
    columns: list[list[Look]] = [
        [(frame,) for frame in spaced_frames(frame_count, moments)]
        if form is None
        else [
            (clip,)
            for clip in spaced_clips(
                video, frame_count - form.step, form.length, moments=moments, step=form.step
            )
        ]
        for form in inputs.values()
    ]
    return list(zip(*columns, strict=True))


def sample_looks(inputs: Inputs, clips: tuple[Clip, ...], field_count: int) -> tuple[Look, ...]:
    """What each input looks at of a sample: its clips, or the middle frame of each."""
    frames = tuple(clip.frame(field_count) for clip in clips)
    return tuple(frames if form is None else clips for form in inputs.values())


def inputs_to_json(inputs: Inputs) -> dict[str, Any]:
    """The inputs as JSON values; `inputs_from_json` reads them."""
    return {stream: None if form is None else asdict(form) for stream, form in inputs.items()}


def inputs_from_json(data: Mapping[Any, Any]) -> dict[Stream, StackForm | None]:
    """The inputs that `inputs_to_json` wrote; TypeError or UsageError for anything else."""
    return check_inputs(
        {s: None if form is None else StackForm(**form) for s, form in data.items()}
    )
