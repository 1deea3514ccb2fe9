"""Open one video, iterate its frames, and account for every frame that it promises.

A video is a file that FFmpeg reads or a folder of numbered images. Damage that leaves no sign and
decodes to the full number of frames (a few changed bytes) cannot be seen.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from av.video.stream import VideoStream

from flowkit.documents import read_plain_file
from flowkit.errors import VideoError
from flowkit.image_files import decode_image, image_size
from flowkit.video.containers import signs_of_loss
from flowkit.video.decoding import Findings, check_size, decode_images, open_stream
from flowkit.video.image_folders import (
    MAX_FRAME_MPX,
    describe_groups,
    frame_files,
    image_groups,
)

MOST_FPS = 1000.0  # believed of an average: that of raw DV comes out as 60,000


class Account(NamedTuple):
    """Frames promised (None where the file cannot say) and frames got."""

    expected: int | None
    decoded: int


class Video:
    """An open video, as `open_video` gives it: its size, its rate, and its frames in one pass.

    `size` is (H, W), `fps` in frames per second or None where none is stated. `account` and
    `damage` are known once `frames` is exhausted; `damage` is None if every frame promised came,
    else one line that says what is missing. Frames are uint8 (H, W, 3). VideoError where there is
    not one. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        path: Path | str,
        images: Generator[np.ndarray, None, None],
        findings: Findings,
        *,
        fps: float | None,
        keep_damaged: bool,
    ) -> None:
        first = next(images, None)
        if first is None:
            signs = "".join(f"; {sign}" for sign in findings.damage)
            raise VideoError(f"{path}: expected a video, but not one frame can be decoded{signs}")
        self.path = path
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        self.fps = fps
        self.account: Account | None = None
        self.damage: str | None = None
        self._images = images  # the owner of the file, kept alive
        self._frames: Iterator[np.ndarray] | None = chain((first,), images)
        self._findings = findings
        self._keep_damaged = keep_damaged

    def __repr__(self) -> str:
        height, width = self.size
        return f"Video({os.fspath(self.path)!r}, {width}x{height}, fps={self.fps})"

    def frames(self, *, any_size: bool = False) -> Iterator[np.ndarray]:
        """Every frame, uint8 (H, W, 3) BGR, contiguous and the caller's own, in order of display.

        At the end the account is made: VideoError if it shows damage, unless the video was opened
        with `keep_damaged`. VideoError also where a frame has another size than those before it,
        unless it may have `any_size`, and where the frames were taken before.
        """
        if self._frames is None:
            raise VideoError(f"{self.path}: its frames were taken already: open it again")
        frames, self._frames = self._frames, None
        decoded = 0
        for image in frames:
            if image.shape[:2] != self.size and not any_size:
                raise VideoError(
                    f"{self.path}: expected frames of one size, but frame {decoded} is "
                    f"{image.shape[:2]} and those before it {self.size} (height, width): "
                    "--resize makes them one, or split the video"
                )
            decoded += 1
            yield image
        if not self._findings.complete:
            raise VideoError(f"{self.path}: closed after {decoded} frames, before its end")
        self.account = Account(self._findings.expected, decoded)
        self.damage = _damage(self.account, self._findings.damage)
        if self.damage and not self._keep_damaged:
            raise VideoError(
                f"{self.path}: damaged: {self.damage} (extract --keep-damaged, in Python "
                "keep_damaged=True, takes the frames there are)"
            )

    def close(self) -> None:
        """Let go of the file; further calls do nothing."""
        self._images.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _damage(account: Account, signs: list[str]) -> str | None:
    """The damage in one line, or None if the account is even and nothing else was seen."""
    expected, decoded = account
    if expected in (None, decoded) and not signs:
        return None
    of_expected = "" if expected is None else f" of {expected}"
    noun = "frame" if expected is None and decoded == 1 else "frames"
    return "; ".join([f"{decoded}{of_expected} {noun} decoded", *signs])


def open_video(
    path: str | os.PathLike[str],
    *,
    keep_damaged: bool = False,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> Video:
    """Open the video file, or the folder of numbered images, at `path`; no other file is opened.

    VideoError if there is none, if it is a list of other files, if it has no video stream, if its
    codec is unknown, if its frames have more than `max_frame_mpx` megapixels (seen before one is
    decoded), or if not one frame can be decoded. With `keep_damaged`, damage is no error but a line
    in `Video.damage`.
    """
    place = Path(os.path.abspath(path))  # FFmpeg reads a relative "a:b.avi" as protocol "a"
    if place.is_dir():
        return _open_folder(place, keep_damaged, max_frame_mpx)
    if not place.is_file():
        raise VideoError(
            f"{place}: expected a video file or a folder of frames, found neither",
            absent=not place.exists(),
        )
    return _open_file(place, keep_damaged, max_frame_mpx)


def _open_file(path: Path, keep_damaged: bool, max_frame_mpx: float) -> Video:
    try:
        findings = Findings(damage=signs_of_loss(path))
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror}") from error
    container, stream = open_stream(path, findings, max_frame_mpx=max_frame_mpx)
    images = decode_images(container, stream, findings, max_frame_mpx)
    return Video(path, images, findings, fps=frame_rate(stream), keep_damaged=keep_damaged)


def frame_rate(stream: VideoStream) -> float | None:
    """Frames per second: the average that FFmpeg has, or where that is beyond belief, its guess."""
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    return next((rate for rate in rates if rate <= MOST_FPS), rates[0] if rates else None)


def _open_folder(folder: Path, keep_damaged: bool, max_frame_mpx: float) -> Video:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise VideoError(f"{folder}: cannot be read: {error.strerror}") from error
    files = frame_files(names)
    if not files:
        raise VideoError(
            f"{folder}: expected numbered images of one name (img_00001.jpg, img_00002.jpg, ...), "
            f"found {describe_groups(image_groups(names))}"
        )
    findings = Findings(expected=files[-1][0] - files[0][0] + 1)
    breaks = [(a, b) for (m, a), (n, b) in pairwise(files) if n != m + 1]
    if breaks:
        words = f"{breaks[0][0]} is followed by {breaks[0][1]}"
        if not keep_damaged:
            raise VideoError(f"{folder}: expected images numbered without a gap, but {words}")
        findings.damage.append(f"breaks in the numbers: {len(breaks)} (first: {words})")
    paths = [folder / name for _, name in files]
    images = _read_images(paths, findings, keep_damaged, max_frame_mpx)
    return Video(folder, images, findings, fps=None, keep_damaged=keep_damaged)


def _read_images(
    paths: list[Path], findings: Findings, keep_damaged: bool, max_frame_mpx: float
) -> Generator[np.ndarray, None, None]:
    """The images at `paths`, uint8 (H, W, 3) BGR; VideoError names the one that is damaged."""
    problems = []
    for path in paths:
        data = read_plain_file(path, error=VideoError)  # cv2.imread takes no name beyond UTF-8
        image, problem = None, "no JPEG, PNG or BMP"
        if (size := image_size(data)) is not None:
            check_size(path, size, max_frame_mpx)
            image, problem = _image_as_far_as_it_goes(data)
        if problem and not keep_damaged:
            raise VideoError(
                f"{path}: expected an image, but it cannot be decoded: {problem} "
                "(--keep-damaged takes what there is)"
            )
        if problem:
            problems.append(f"{path.name}: {problem}")
        if image is not None:
            yield image
    if problems:
        findings.damage.append(f"damaged images: {len(problems):,} (first: {problems[0]})")
    findings.complete = True


def _image_as_far_as_it_goes(data: bytes) -> tuple[np.ndarray | None, str]:
    """The pixels that an image file has, if it has any, and what is wrong with it, or ""."""
    try:
        return decode_image(data, upright=True), ""
    except ValueError as error:
        problem = str(error)
    with suppress(ValueError):
        return decode_image(data, damaged=True, upright=True), problem
    return None, problem
