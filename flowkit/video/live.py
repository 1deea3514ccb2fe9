"""A stream that comes over a network, as a video without an end.

Only what is asked for by `open_live` may come from a network, and only by the protocols that its
address needs: no file, and nothing that a file names.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Generator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from flowkit.errors import UsageError, VideoError
from flowkit.video.decoding import (
    DEMUXERS,
    OPENING,
    REFUSED,
    Findings,
    check_size,
    ffmpeg_errors,
    upright_image,
    video_stream,
    words_of,
)
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import Video, frame_rate

ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/?#]+)([^?#]*)")  # scheme, host, path
STALL_S = 10.0
LOOK_S = 5.0  # of the stream, which FFmpeg looks at before it tells what is in it
WEB = "http,https,httpproxy,tcp,tls"

# By the scheme of an address, the protocols that may be used, none of which reads files. A
# playlist of the web (HLS) may name further addresses there.
LIVE_PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmp,rtmps,tcp,tls",
    "http": WEB,
    "https": WEB,
    "udp": "udp",
}
LIVE_DEMUXERS = {"rtsp": ("rtsp",), "rtsps": ("rtsp",), "http": ("hls", "mpjpeg")}
LIVE_DEMUXERS["https"] = LIVE_DEMUXERS["http"]


@dataclass
class LiveFindings(Findings):
    """What is learned of a stream on its way: `problem` says why it ended, "" for by itself."""

    problem: str = ""


def shown_address(address: str) -> str:
    """An address without what may be a secret in it: a password, and what follows a "?"."""
    match = ADDRESS.match(address)
    return f"{match[1]}://{match[2].rpartition('@')[2]}{match[3]}" if match else address


def check_address(address: str) -> str:
    """The scheme of a live stream's address; UsageError for any other text."""
    match = ADDRESS.match(address)
    scheme = match[1].lower() if match else ""
    if scheme not in LIVE_PROTOCOLS:
        schemes = ", ".join(f"{one}://" for one in LIVE_PROTOCOLS)
        raise UsageError(
            f"expected the address of a live stream ({schemes}), got {shown_address(address)!r}"
        )
    return scheme


def open_live(
    address: str, *, stall_s: float = STALL_S, max_frame_mpx: float = MAX_FRAME_MPX
) -> tuple[Video, LiveFindings]:
    """The stream at `address`, from now on, and what is learned of how it ends.

    Frames are lost on the way as they are, and that is no error. They end with the stream, where it
    breaks off, and where nothing came for `stall_s` seconds. UsageError for an address that is none
    of a live protocol, VideoError where there is no stream or one that `open_video` would refuse.
    """
    name, scheme = shown_address(address), check_address(address)
    container, stream = _open(address, name, scheme, stall_s, max_frame_mpx)
    findings = LiveFindings()
    images = _images(container, stream, name, findings, stall_s, max_frame_mpx)
    return Video(name, images, findings, fps=frame_rate(stream), keep_damaged=True), findings


def _open(
    address: str, name: str, scheme: str, stall_s: float, max_frame_mpx: float
) -> tuple[InputContainer, VideoStream]:
    demuxers = (*DEMUXERS, *LIVE_DEMUXERS.get(scheme, ()))
    options = {
        **OPENING,
        "format_whitelist": ",".join(demuxers),
        "protocol_whitelist": LIVE_PROTOCOLS[scheme],
        "rtsp_transport": "tcp",  # of UDP's packets some are lost
    }
    container = None
    try:
        with ffmpeg_errors() as log:
            container = av.open(
                address,
                container_options=options,
                metadata_errors="replace",
                timeout=(stall_s + LOOK_S, stall_s),
            )
        return container, video_stream(container, name, max_frame_mpx)
    except av.FFmpegError as error:
        words = words_of(error)
        if isinstance(error, av.ExitError):
            words = f"nothing came within {stall_s + LOOK_S:g} s"
        elif refused := [text for _, text in log if REFUSED in text]:
            words = refused[0]
        raise VideoError(f"{name}: the stream cannot be opened: {words}") from error
    except VideoError:
        if container is not None:
            container.close()
        raise


def _images(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    findings: LiveFindings,
    stall_s: float,
    max_frame_mpx: float,
) -> Generator[np.ndarray, None, None]:
    """The frames as they come, uint8 (H, W, 3) BGR; what cannot be decoded is counted."""
    reformatter = VideoReformatter()
    lost, at_end = 0, False
    with container:
        packets = container.demux(stream)
        while not at_end:
            frames: list[VideoFrame] = []
            try:
                packet = next(packets, None)
                at_end = packet is None
            except av.BlockingIOError:
                packets = container.demux(stream)  # "try again"
                continue
            except av.FFmpegError as error:
                packet, at_end = None, True
                if isinstance(error, av.ExitError):
                    findings.problem = f"nothing came for {stall_s:g} s"
                elif error.errno != errno.EIO:  # FFmpeg's, where a server closes the connection
                    findings.problem = words_of(error)
            try:
                if packet is None or packet.size:  # not the flush that PyAV adds
                    frames = stream.decode(packet)
            except av.FFmpegError:
                lost += 1
            for frame in frames:
                check_size(name, (frame.height, frame.width), max_frame_mpx)
                yield upright_image(frame, reformatter)
    if lost:
        findings.damage.append(f"packets that could not be decoded: {lost:,}")
    findings.complete = True
