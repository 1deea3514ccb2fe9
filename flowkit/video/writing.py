"""Frames to a video file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction

import numpy as np

BIT_RATE = {"b": "4000000"}  # bits/s: compression is hardly seen at these sizes


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    codec: str = "libx264",
    container_format: str | None = None,
    options: dict[str, str] = BIT_RATE,
    comment: str = "",
) -> None:
    """Encode `frames`, each uint8 (H, W, 3) BGR of one even size, as a video file by PyAV.

    The container is the one that the name's ending asks for unless `container_format` names it;
    `options` go to the encoder, `comment` to the file's metadata. The same
    frames give the same bytes, however many cores there are.
    """
    import av

    # an absolute path, for a relative one with a colon would be read as a protocol
    with av.open(os.path.abspath(path), "w", format=container_format) as container:
        rate = Fraction(fps).limit_denominator(65535)
        if comment:
            container.metadata["comment"] = comment
        if codec == "libx264":  # its output varies from run to run with macroblock trees
            options = {"mbtree": "0", **options}
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream), f"{codec} is no video codec"
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1  # some encoders' output depends on it
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
