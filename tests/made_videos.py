"""Small real video files for the tests: a texture that moves as told, in many containers."""

from __future__ import annotations

import os
import struct
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from flowkit._cv2 import cv2

SIZE = (72, 96)  # (H, W) of the frames unless told
X264 = "libx264" if "libx264" in av.codecs_available else None


def moving_texture(
    count: int, *, size: tuple[int, int] = SIZE, step: tuple[int, int] = (2, 1), seed: int = 0
) -> list[np.ndarray]:
    """`count` frames, uint8 (H, W, 3) BGR, of a texture that moves by `step` = (right, down) px.

    What is at (x, y) of frame t is at (x + right, y + down) of frame t + 1, to the last bit.
    """
    (height, width), (right, down) = size, step
    spare_x, spare_y = abs(right) * (count - 1), abs(down) * (count - 1)
    noise = np.random.default_rng(seed).uniform(0, 1, (height + spare_y, width + spare_x, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    texture = cv2.normalize(smooth, None, 16, 240, cv2.NORM_MINMAX).astype(np.uint8)
    frames = []
    for t in range(count):
        left = spare_x - right * t if right >= 0 else -right * t
        top = spare_y - down * t if down >= 0 else -down * t
        frames.append(texture[top : top + height, left : left + width].copy())
    return frames


def pasted_disc(frames, *, radius, step):
    """The frames with a disc of another texture that moves by `step` px, and its centers (x, y)."""
    height, width = frames[0].shape[:2]
    texture = moving_texture(1, size=(height, width), seed=3)[0]
    centers = np.array([width // 3, height // 3]) + np.outer(np.arange(len(frames)), step)
    made = []
    for frame, (x, y) in zip(frames, centers.tolist(), strict=True):
        disc = cv2.circle(np.zeros((height, width), np.uint8), (x, y), radius, 255, -1)
        made.append(np.where(disc[..., None] > 0, np.roll(texture, (y, x), axis=(0, 1)), frame))
    return made, centers


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "mpeg4",
    *,
    pixel_format: str = "yuv420p",
    rate: int = 25,
    options: dict[str, str] | None = None,
    index_first: bool = False,
    tags: dict[str, int] | None = None,
) -> Path:
    """Encode BGR `frames` of one size into the container that the name of `path` asks for.

    `index_first` puts an MP4's index before its frames, as for streaming; `tags` name the colors by
    PyAV's attributes and the numbers of ITU-T H.273.
    """
    muxing = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pixel_format
        stream.height, stream.width = frames[0].shape[:2]
        for name, number in (tags or {}).items():
            setattr(stream.codec_context, name, number)
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_fragments(path: Path, frames: Sequence[np.ndarray], *, each: int) -> Path:
    """An MPEG-4 MP4 in fragments of `each` frames, as recorders and streams write it."""
    muxing = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": str(each)})
        stream.height, stream.width = frames[0].shape[:2]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode())
    return path


def top_boxes(path: Path) -> list[bytes]:
    """The boxes at the top of an MP4, each whole."""
    data, at, boxes = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        boxes.append(data[at : at + length])
        at += length
    return boxes


def write_images(folder: Path, frames: Sequence[np.ndarray], name: str = "img_{:05d}.png") -> Path:
    """Write `frames` as images that are numbered from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(frames, 1):
        path = folder / name.format(number)
        path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return folder


def write_sound(path: Path) -> Path:
    """A tenth of a second of silence as .wav: a file that FFmpeg opens, with no video stream."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return path


def write_motion_jpeg(path: Path, frames: Iterable[np.ndarray]) -> Path:
    """Bare JPEG images in a row, as some cameras send them; their sizes may differ."""
    path.write_bytes(b"".join(cv2.imencode(".jpg", image)[1].tobytes() for image in frames))
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Have the MP4 at `path` shown turned clockwise, by the matrix in its track header."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, section 8.3.2, version 0
    one = 1 << 16
    matrix = (cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def refer_to(path: Path, other: Path) -> Path:
    """Have the MP4 at `path` say that its samples are in the file `other`, by a Macintosh alias."""
    name = os.fsencode(other).replace(b"/", b":")
    record = struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + b"\xff\xff\0\0"
    alias = bytes(4 + 150) + record
    entry = struct.pack(">I4s", 8 + len(alias), b"alis") + alias
    data = bytearray(path.read_bytes())
    at = data.index(b"dref") + 4 + 8  # ISO/IEC 14496-12, section 8.7.2: its only entry
    data[at : at + 12] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(box) - 4
        (length,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", length + len(entry) - 12)
    path.write_bytes(data)
    return path


def start_late(path: Path, seconds: float) -> Path:
    """Have the MP4 at `path` begin so many seconds later, by its edit list; its samples stay."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16  # the first edit's media time; section 8.6.6, version 0
    scale_at = data.index(b"mdhd") + 16
    (scale,) = struct.unpack(">I", data[scale_at : scale_at + 4])
    (start,) = struct.unpack(">i", data[at : at + 4])
    data[at : at + 4] = struct.pack(">i", start + round(seconds * scale))
    path.write_bytes(data)
    return path


def write_hidden_frames(path: Path, frames: Sequence[np.ndarray], hidden: set[int]) -> Path:
    """VP8 in which the frames numbered `hidden` only serve as reference (show_frame is 0)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        pictures = [av.VideoFrame.from_ndarray(image, "bgr24") for image in frames]
        packets = [packet for picture in [*pictures, None] for packet in stream.encode(picture)]
        for number, packet in enumerate(packets):
            data = bytearray(bytes(packet))
            if number in hidden:
                data[0] &= ~0x10
            changed = av.Packet(bytes(data))
            changed.stream, changed.time_base = stream, packet.time_base
            changed.pts, changed.dts = packet.pts, packet.dts
            changed.is_keyframe = packet.is_keyframe
            container.mux(changed)
    return path


def write_field_pictures(path: Path, count: int) -> Path:
    """H.264 of `count` frames, 16x32, each as two field pictures: two packets a frame.

    A hand-made stream (ITU-T H.264, section 7.3) of raw macroblocks, since no encoder at hand
    writes field pictures.
    """
    rng = np.random.default_rng(0)
    level = [(77, 8), (0, 8), (30, 8)]  # main profile, level 3
    sequence = _bits(*level, 0, 0, 2, 1, (0, 1), 0, 0, (0, 1), (0, 1), (1, 1), (0, 1), (0, 1))
    picture = _bits(0, 0, (0, 1), (0, 1), 0, 0, 0, (0, 1), (0, 2), 0, 0, 0, (0, 1), (0, 1), (0, 1))
    data = _unit(0x67, sequence) + _unit(0x68, picture)
    for number in range(count):
        raw = bytes(rng.integers(1, 255, 768, np.uint8))
        top = _bits(0, 7, 0, (0, 4), (1, 1), (0, 1), number % 2, (0, 2), 0, 25, stop=False)
        bottom = _bits(0, 7, 0, (0, 4), (1, 1), (1, 1), (0, 1), 0, 25, stop=False)
        data += _unit(0x65, top + raw[:384] + b"\x80") + _unit(0x61, bottom + raw[384:] + b"\x80")
    path.write_bytes(data)
    return path


def _bits(*values: int | tuple[int, int], stop: bool = True) -> bytes:
    """Bits of H.264 syntax: (value, width) as it is, a bare number as Exp-Golomb code."""
    text = ""
    for value in values:
        if isinstance(value, tuple):
            text += format(value[0], f"0{value[1]}b")
        else:
            code = format(value + 1, "b")
            text += "0" * (len(code) - 1) + code
    text += "1" if stop else ""
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _unit(header: int, payload: bytes) -> bytes:
    """A NAL unit with its start code; a 3 keeps what looks like a start code from being one."""
    data = bytearray()
    for byte in payload:
        if data[-2:] == b"\0\0" and byte <= 3:
            data.append(3)
        data.append(byte)
    return b"\0\0\0\1" + bytes([header]) + bytes(data)
