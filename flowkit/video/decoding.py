"""Decode the video stream of a file with PyAV, and collect every sign that frames are missing.

No container simply states its number of frames: headers count empty chunks (J-HMDB) and frames
that an edit list cuts away, a truncated file looks complete to its own reader, and a decoder that
meets damage goes on with what it has. So the frames expected are counted from the packets and the
container's index, and what else speaks of damage is collected beside them: decoding errors,
packets and frames marked corrupt, and, where no index tells how many packets there should be, the
errors in FFmpeg's log.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from flowkit.errors import VideoError
from flowkit.video.image_folders import MAX_FRAME_MPX

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of the family

# Formats whose files hold their own frames. FFmpeg's others are left out whatever a file is called:
# playlists and descriptions name further files, addresses or patterns of names (concat, hls, dash,
# sdp, imf, image2, vobsub, avisynth, ...); devices and network sessions have no end; text has no
# frames. The last four are sound, of which the error can then say so.
DEMUXERS = (
    f"{MP4} matroska webm avi mpegts mpeg mpegvideo m4v h261 h263 h264 hevc vvc av1 obu evc ivf "
    "vc1 vc1test dirac cavsvideo avs2 avs3 flv asf ogg rm dv mxf gxf nut yuv4mpegpipe nsv swf wtv "
    "ty mjpeg mjpeg_2000 gif apng webp_pipe jpeg_pipe png_pipe bmp_pipe 4xm bink film_cpk flic "
    "ipmovie mlv nuv pva roq smk vivo aac flac mp3 wav"
).split()
REFUSED = "not on whitelist"  # FFmpeg's words, in its log
PADDING_PX = 1 << 20  # more than any decoder adds to the sides of an allowed frame
OPENING = {
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "file",
    "codec_whitelist": "none",  # FFmpeg's look at the streams decodes nothing
}

LOG_ERRORS = "errors in FFmpeg's log"
SIGNS = ("decoding errors", "corrupt packets", "corrupt frames", LOG_ERRORS)


@dataclass
class Findings:
    """What a reader learns of a video on its way; final once `complete`, at the last image."""

    expected: int | None = None  # frames; None where the file cannot say
    damage: list[str] = field(default_factory=list)  # its signs, each in words
    complete: bool = False


def open_stream(
    path: Path,
    findings: Findings,
    *,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> tuple[InputContainer, VideoStream]:
    """Open the file at the absolute `path` and choose its video stream; `decode_images` closes it.

    Nothing is decoded yet, and no other file is opened. VideoError if FFmpeg cannot open it, if its
    format is none of `DEMUXERS`, if it has no video stream, one of unknown codec, or one that
    declares frames of more than `max_frame_mpx` megapixels.
    """
    container = None
    log: list[tuple[str, str]] = []
    try:
        with ffmpeg_errors() as log:
            container = av.open(str(path), container_options=OPENING, metadata_errors="replace")
        findings.damage += [
            f"FFmpeg says on opening: {words}"
            for name, words in log
            if name == container.format.name != MP4  # MP4's complains of harmless things
            and REFUSED not in words  # a bare stream's decoder is called as its container
        ][:1]
        return container, video_stream(container, path, max_frame_mpx)
    except av.FFmpegError as error:
        if unfit := [name for name, words in log if REFUSED in words and "Format" in words]:
            raise VideoError(
                f"{path}: expected a file that holds its own frames, but its format is "
                f"{unfit[0]!r}: playlists, lists of files, streams and text are not opened"
            ) from error
        words = "the file is empty" if path.stat().st_size == 0 else words_of(error)
        reason = "; ".join([words, *findings.damage])
        raise VideoError(f"{path}: expected a video, but it cannot be opened: {reason}") from error
    except VideoError:
        if container is not None:
            container.close()
        raise


def video_stream(container: InputContainer, path: Path | str, max_frame_mpx: float) -> VideoStream:
    """The first video stream that is no cover picture; VideoError as of `open_stream`."""
    kinds = [
        "cover picture" if stream.disposition & Disposition.attached_pic else stream.type
        for stream in container.streams
    ]
    if "video" not in kinds:
        found = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())
        raise VideoError(
            f"{path}: expected a video stream, found none (streams: {found or 'none'})"
        )
    stream = cast(VideoStream, container.streams[kinds.index("video")])
    if stream.codec_context is None:
        raise VideoError(f"{path}: the codec of its video stream is unknown to FFmpeg: convert it")
    check_size(path, (stream.codec_context.height, stream.codec_context.width), max_frame_mpx)
    # Where no header declares the size, or a later one another, the decoder meets it first.
    stream.codec_context.options = {"max_pixels": str(_most_px(max_frame_mpx))}
    # Which frames survive damage depends on the number of threads, so there is one.
    stream.codec_context.thread_count = 1
    return stream


def _most_px(max_frame_mpx: float) -> int:
    """The limit of a decoder, which counts the pixels that it pads, too."""
    return int(max_frame_mpx * 1e6) + PADDING_PX


def check_size(path: Path | str, size: tuple[int, int], max_frame_mpx: float) -> None:
    """Refuse with VideoError frames of a `size` (H, W) that is more than `max_frame_mpx`."""
    height, width = size
    if height * width > max_frame_mpx * 1e6:
        raise VideoError(
            f"{path}: expected frames of at most {max_frame_mpx:g} megapixels, got "
            f"{height * width / 1e6:.4g} ({width}x{height} px): --max-frame-mpx allows more"
        )


def decode_images(
    container: InputContainer, stream: VideoStream, findings: Findings, max_frame_mpx: float
) -> Generator[np.ndarray, None, None]:
    """The frames, upright, uint8 (H, W, 3) BGR, as cv2.VideoCapture gives them bit for bit.

    Except that wide colors (BT.2020, HLG, PQ, Display P3) stay as they are stored: docs/videos.md.
    Closes the container at the end, and when it is closed itself before.
    """
    path = Path(container.name)
    reformatter = VideoReformatter()  # one for all: each sets up its own tables, 4 times slower
    with container:
        for frame in _decode(container, stream, findings, max_frame_mpx):
            check_size(path, (frame.height, frame.width), max_frame_mpx)
            yield upright_image(frame, reformatter)


def upright_image(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """A decoded frame, upright, uint8 (H, W, 3) BGR."""
    bgr = reformatter.reformat(
        frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1
    )
    image = bgr.to_ndarray()  # (H, W, 3), a view of FFmpeg's lines, padded ones perhaps
    if frame.rotation % 90 == 0:
        image = np.rot90(image, frame.rotation // 90 % 4)
    # a frame that was BGR already is the decoder's own: never hand that out
    return np.array(image, order="C", copy=True if bgr is frame else None)


def _decode(
    container: InputContainer, stream: VideoStream, findings: Findings, max_frame_mpx: float
) -> Iterator[VideoFrame]:
    """The frames of `stream` in order of display; what they tell of the file goes to `findings`."""
    is_indexed = container.format.name in ("avi", MP4)
    listening = nullcontext if is_indexed else ffmpeg_errors
    codec = stream.codec_context.codec.canonical_name
    counts: Counter[str] = Counter()
    first_words: dict[str, str] = {}
    packets = container.demux(stream)
    at_end = False
    while not at_end:
        frames: list[VideoFrame] = []
        with listening() as log:
            try:
                packet = next(packets, None)  # None also after an error
                at_end = packet is None
                if packet is None:
                    frames = stream.decode(None)  # what the decoder still holds
                elif packet.size > 0:  # no empty chunk, and not the flush that PyAV adds
                    shown = not packet.is_discard and _is_shown(packet, codec)
                    counts["packets" if shown else "packets not shown"] += 1
                    counts["corrupt packets"] += packet.is_corrupt
                    frames = stream.decode(packet)
            except av.BlockingIOError:
                packets = container.demux(stream)  # "try again": MPEG-TS between long junk
            except av.FFmpegError as error:
                counts["decoding errors"] += 1
                words = words_of(error)
                size = stream.codec_context.height * stream.codec_context.width
                if not 0 < size <= _most_px(max_frame_mpx):  # a decoder that was refused a frame
                    words += "; are its frames larger than --max-frame-mpx allows?"
                first_words.setdefault("decoding errors", words)
        for name, words in log or ():
            counts[LOG_ERRORS] += 1
            first_words.setdefault(LOG_ERRORS, f"{name}: {words}")
        for frame in frames:
            counts["frames"] += 1
            counts["corrupt frames"] += frame.is_corrupt
            counts["interlaced frames"] += frame.interlaced_frame
            yield frame
    is_broken = bool(findings.damage or counts[LOG_ERRORS])
    findings.expected = _promised_frames(container, stream, counts, is_broken=is_broken)
    for sign in SIGNS:
        if counts[sign]:
            words = f" (first: {first_words[sign]})" if sign in first_words else ""
            findings.damage.append(f"{sign}: {counts[sign]:,}{words}")
    findings.complete = True


def _is_shown(packet: Packet, codec: str) -> bool:
    """False for VP8's frames that only serve as reference (RFC 6386, section 9.1: show_frame)."""
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _promised_frames(
    container: InputContainer, stream: VideoStream, counts: Counter[str], *, is_broken: bool
) -> int | None:
    """How many frames packets and index promise together; None where the file cannot say."""
    has_sample_table = container.format.name == MP4 and stream.frames > 0
    if is_broken and not has_sample_table:
        return None  # nobody knows what was in the hole, or in an index at the lost end
    indexed = sum(entry.size > 0 for entry in stream.index_entries)
    promised = max(counts["packets"], indexed - counts["packets not shown"])
    # Interlaced H.264 holds a frame in one packet or, as two fields, in two: in any mixture.
    if counts["interlaced frames"] and counts["frames"] < promised <= 2 * counts["frames"]:
        return None
    return promised


def words_of(error: av.FFmpegError) -> str:
    return error.strerror or str(error)


_listeners = 0
_listeners_lock = threading.Lock()
_log_settings: tuple[int | None, bool] = (None, True)


@contextmanager
def ffmpeg_errors() -> Iterator[list[tuple[str, str]]]:
    """The errors (who, words) that FFmpeg logs meanwhile in this thread, there on the way out.

    FFmpeg has one log for the whole process. It is listened to here alone, call by call, and left
    as it was found: a listener in Python beside a decoder with threads of its own can deadlock.
    """
    global _listeners, _log_settings
    with _listeners_lock:
        if not _listeners:
            _log_settings = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(av.logging.ERROR)
            av.logging.set_skip_repeated(False)
        _listeners += 1
    errors: list[tuple[str, str]] = []
    try:
        with av.logging.Capture() as lines:
            yield errors
    finally:
        errors += ((name, text.strip()) for level, name, text in lines if level <= av.logging.ERROR)
        with _listeners_lock:
            _listeners -= 1
            if not _listeners:
                av.logging.set_level(_log_settings[0])
                av.logging.set_skip_repeated(_log_settings[1])
