"""Records as pages: what a contact sheet, a video and the command show."""

import av
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flowkit._cv2 import cv2
from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, UsageError
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.networks.checkpoints import BEST, Checkpoint, write_checkpoint
from flowkit.networks.streams import build_net
from flowkit.pictures.colors import colorize, draw_arrows, wheel_legend
from flowkit.pictures.filters import filter_sheet
from flowkit.pictures.overlay import draw_classes
from flowkit.pictures.sheets import Look, contact_sheet, full_scale, video_pages, write_view
from flowkit.records.layout import Storage
from flowkit.records.reading import open_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.synthetic import write_videos
from flowkit.video.sources import Source
from flowkit_cli.view import view

FORWARD, BACKWARD = Series("forward", 1), Series("backward", 1)


def constant(x, y, size):
    return np.full((*size, 2), (x, y), np.float32)


def turning(count, size):
    """Fields of 4 px, each one to another side."""
    angles = 0.3 + 2 * np.pi * np.arange(count) / count
    return [constant(4 * np.cos(angle), 4 * np.sin(angle), size) for angle in angles]


def write_record(out, fields, *, id="jump/a", size=(240, 320), rgb=True, pack=False, fps=12.5):
    """A record of gray frames 20, 40, 60 ... with the fields given by their series."""
    step, one = max((series.step, len(some)) for series, some in fields.items())
    storage = Storage(format="npy", rgb=rgb, pack=pack)
    with RecordWriter(out, id, storage, tuple(fields)) as writer:
        for index in range(step + one):
            writer.add_frame(np.full((*size, 3), 20 * (index + 1) % 256, np.uint8))
        for series, some in fields.items():
            for field in some:
                writer.add_field(series, field)
        request = {"method": {"name": "dis"}, **storage.identity()}
        writer.commit({"fps": fps, "request": request})
    return open_record(out / id)


@pytest.fixture
def record(tmp_path):
    return write_record(tmp_path, {FORWARD: turning(6, (240, 320))})


def count_of(page, color):
    """How many pixels of the page have a color within a level."""
    return int((np.abs(page.astype(int) - np.array(color)) <= 1).all(axis=2).sum())


def holds(page, picture):
    """Whether the picture is on the page, pixel by pixel, wherever."""
    score = cv2.matchTemplate(page, picture, cv2.TM_SQDIFF)
    y, x = np.unravel_index(score.argmin(), score.shape)
    return np.array_equal(page[y : y + picture.shape[0], x : x + picture.shape[1]], picture)


def color_of(field, max_px):
    return colorize(field, max_px=max_px)[0, 0].tolist()


def scale_of(tmp_path, field):
    return full_scale(write_record(tmp_path, {FORWARD: [field]}, rgb=False, size=field.shape[:2]))


def test_full_scale_is_the_99th_percentile_rounded_up_to_two_digits(tmp_path):
    field = constant(3.14159, 0, (50, 40))
    field[0, :10] = 200  # half a percent: wild vectors
    assert scale_of(tmp_path, field) == 3.2


def test_full_scale_of_a_small_mover_on_a_still_ground_is_its_motion(tmp_path):
    field = constant(0, 0, (50, 40))
    field[10:12, 10:14] = 0, 7
    assert scale_of(tmp_path, field) == 7


def test_full_scale_where_nothing_moves_is_a_pixel(tmp_path):
    assert scale_of(tmp_path, constant(0, 0, (50, 40))) == 1


def test_full_scale_leaves_out_what_is_unknown(tmp_path):
    field = constant(0.25, 0, (50, 40))
    field[:20], field[20:30] = np.nan, 1e10
    assert scale_of(tmp_path, field) == 0.25


def test_full_scale_is_one_for_all_fields(tmp_path):
    fields = [constant(length, 0, (50, 40)) for length in (1, 2, 9)]
    assert full_scale(write_record(tmp_path, {FORWARD: fields}, size=(50, 40))) == 9


def test_sheet_shows_frame_and_field_of_equally_spaced_moments(record):
    page = contact_sheet(record, Look(max_px=4), moments=2)
    panel = 240 * 320
    shown = [
        index
        for index in range(6)
        if count_of(page, color_of(record.fields(index, 1)[0], 4)) > 0.95 * panel
    ]
    assert shown == [1, 4]  # the middles of the halves
    frames = [
        index for index in range(7) if count_of(page, record.frame(index)[0, 0]) > 0.95 * panel
    ]
    assert frames == [1, 4]


def test_sheet_has_a_row_for_every_so_many_columns(record):
    narrow, wide = (contact_sheet(record, moments=6, columns=columns) for columns in (2, 3))
    cell = wide.shape[1] - narrow.shape[1]
    assert cell >= 320
    assert (narrow.shape[0] - wide.shape[0]) >= 2 * 240  # three rows and two


def test_sheet_of_fewer_fields_than_moments_shows_each_once(record):
    np.testing.assert_array_equal(
        contact_sheet(record, moments=99), contact_sheet(record, moments=6)
    )


def test_sheet_without_frames_shows_the_fields_alone(tmp_path, record):
    fields = {FORWARD: turning(6, (240, 320))}
    bare = contact_sheet(write_record(tmp_path, fields, id="bare", rgb=False), Look(max_px=4))
    full = contact_sheet(record, Look(max_px=4))
    assert full.shape[0] - bare.shape[0] >= 2 * 240
    for field in fields[FORWARD]:
        assert count_of(bare, color_of(field, 4)) > 0.95 * 240 * 320


def test_backward_field_stands_below_the_later_frame_where_it_starts(tmp_path):
    there, back = constant(3, 0, (240, 320)), constant(-3, 0, (240, 320))
    record = write_record(tmp_path, {FORWARD: [there], BACKWARD: [back]})
    for direction, frame, other, field in (("forward", 0, 1, there), ("backward", 1, 0, back)):
        page = contact_sheet(record, Look(direction=direction, max_px=3))
        assert count_of(page, record.frame(frame)[0, 0]) > 0.95 * 240 * 320
        assert count_of(page, record.frame(other)[0, 0]) < 500
        assert count_of(page, color_of(field, 3)) > 0.95 * 240 * 320


def test_step_chooses_among_the_stored_ones(tmp_path):
    fields = {
        FORWARD: [constant(1, 0, (240, 320))] * 3,
        Series("forward", 2): [constant(0, 2, (240, 320))] * 2,
    }
    record = write_record(tmp_path, fields)
    page = contact_sheet(record, Look(step=2, max_px=2))
    assert count_of(page, color_of(fields[Series("forward", 2)][0], 2)) > 1.9 * 240 * 320
    assert count_of(page, color_of(fields[FORWARD][0], 2)) < 500


def test_what_is_not_stored_is_refused(record):
    with pytest.raises(RecordError, match="holds no backward fields of step 1"):
        contact_sheet(record, Look(direction="backward"))


def test_arrows_lie_on_the_dimmed_frame(record):
    page = contact_sheet(record, Look(style="arrows", max_px=4), moments=1)
    panel = draw_arrows(record.frame(3), record.fields(3, 1)[0], max_px=4)
    assert holds(page, panel)


def test_the_legend_of_the_scale_is_on_every_page(record):
    for max_px in (10, 20):
        assert holds(contact_sheet(record, Look(max_px=max_px)), wheel_legend(96, max_px))
        assert holds(next(video_pages(record, Look(max_px=max_px))), wheel_legend(72, max_px))


def test_long_and_undecodable_names_do_not_push_the_legend_off(tmp_path):
    fields = {FORWARD: turning(2, (48, 64))}
    pages = [
        contact_sheet(write_record(tmp_path, fields, id=name, size=(48, 64)), Look(max_px=4))
        for name in ("a", "b" * 200, "undecodable \udcff")
    ]
    assert len({page.shape for page in pages}) == 1
    for page in pages[1:]:
        np.testing.assert_array_equal(page[:110, -112:], pages[0][:110, -112:])


def test_letters_beyond_the_font_are_shown_as_their_transcript(tmp_path):
    fields = {FORWARD: turning(2, (48, 64))}
    own, transcript = (
        write_record(tmp_path, fields, id=name, size=(48, 64)) for name in ("über_跳", "über_Tiao")
    )
    np.testing.assert_array_equal(contact_sheet(own), contact_sheet(transcript))
    for page, other in zip(video_pages(own), video_pages(transcript), strict=True):
        np.testing.assert_array_equal(page, other)


def test_classes_below_a_video_are_shown_as_their_transcript_and_end_before_their_bars():
    np.testing.assert_array_equal(
        draw_classes([("跳", 0.6)], 480), draw_classes([("Tiao", 0.6)], 480)
    )
    short, long = (draw_classes([("b" * length, 0.6)], 480) for length in (1, 200))
    np.testing.assert_array_equal(short[:, 232:], long[:, 232:])
    assert short.shape[0] % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 45), (2, 2), (1, 301), (1080, 1920)])
def test_any_size_gives_pages_of_one_even_size(tmp_path, size):
    record = write_record(tmp_path, {FORWARD: turning(2, size)}, size=size)
    pages = list(video_pages(record))
    assert len(pages) == 2
    assert len({page.shape for page in pages}) == 1
    assert pages[0].shape[0] % 2 == pages[0].shape[1] % 2 == 0
    assert max(pages[0].shape) < 2100
    assert contact_sheet(record).shape[2] == 3


def test_mp4_plays_every_field_at_the_rate_of_the_record(tmp_path, record):
    out = tmp_path / "new folder" / "a.mp4"
    write_view(record, out, Look(max_px=4))
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12.5
        shown = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(shown) == 6
    for index, page in enumerate(shown):
        left, right = page[120, 160].astype(int), page[120, 500].astype(int)
        assert np.abs(left - record.frame(index)[0, 0]).max() < 8
        assert np.abs(right - color_of(record.fields(index, 1)[0], 4)).max() < 16


def test_gif_shows_every_field_in_its_color(tmp_path, record):
    write_view(record, tmp_path / "a.gif", Look(max_px=4))
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 6
        assert image.info["duration"] == 80
        for index in range(6):
            image.seek(index)
            page = np.asarray(image.convert("RGB"))[..., ::-1].astype(float)
            right = page[100:140, 480:520].mean(axis=(0, 1))  # of dithered colors
            assert (
                np.abs(right - color_of(record.fields(index, 1)[0], 4)).max() < 40
            )  # of 256 colors


def test_png_is_the_contact_sheet(tmp_path, record):
    write_view(record, tmp_path / "a.PNG", moments=3, columns=2)
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "a.PNG")), contact_sheet(record, moments=3, columns=2)
    )


@pytest.mark.parametrize(("given", "expected"), [(None, 25), (10, 10)])
def test_rate_where_the_record_has_none(tmp_path, given, expected):
    fields = {FORWARD: turning(2, (48, 64))}
    record = write_record(tmp_path, fields, size=(48, 64), fps=None)
    write_view(record, tmp_path / "a.mp4", fps=given)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == expected


def test_a_pack_is_shown_like_its_folder(tmp_path, record):
    packed = write_record(
        tmp_path / "packs", {FORWARD: turning(6, (240, 320))}, id="jump/a", pack=True
    )
    np.testing.assert_array_equal(contact_sheet(packed), contact_sheet(record))


@pytest.mark.parametrize(
    "ending",
    [".png", *(pytest.param(ending, marks=pytest.mark.slow) for ending in (".gif", ".mp4"))],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    # late enough for the encoder to have written something
    record = write_record(tmp_path, {FORWARD: turning(120, (48, 64))}, size=(48, 64))
    (record.path / "img_00113.jpg").unlink()
    out = tmp_path / "pictures" / f"a{ending}"
    out.parent.mkdir()
    out.write_bytes(b"old")
    with pytest.raises(RecordError, match=r"img_00113\.jpg: file is missing"):
        write_view(record, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_bytes() == b"old"


def test_an_extracted_video_is_shown_with_its_motion(tmp_path):
    (video,) = write_videos(tmp_path, videos_per_class=1, seed=0, classes=["up_checks"])
    request = Request(make_method("dis"), storage=Storage(bound=20.0))
    extract_video(Source(video.path, "up"), tmp_path / "flow", request)
    record = open_record(tmp_path / "flow" / "up")
    speed = float(np.abs(video.field()[..., 1]).max())
    assert full_scale(record) == pytest.approx(speed, abs=0.3)
    page = list(video_pages(record, Look(max_px=speed)))[10]
    field = page[40:200, 370:630].reshape(-1, 3)  # enlarged from 160x120
    up = colorize(video.field(), max_px=speed)[0, 0].astype(int)
    assert np.abs(np.median(field, axis=0) - up).max() < 25


def test_refuses_a_name_without_a_known_ending(tmp_path, record):
    with pytest.raises(UsageError, match=r"a\.avi: expected a name that ends in"):
        write_view(record, tmp_path / "a.avi")


def test_refuses_a_style_that_is_none():
    with pytest.raises(UsageError, match="expected a style of color, arrows, got 'fog'"):
        Look(style="fog")


def test_refuses_a_scale_that_is_none():
    with pytest.raises(UsageError, match="expected a full scale above 0 px, got nan"):
        Look(max_px=float("nan"))


def test_refuses_no_moments_and_no_columns(record):
    for wrong in ({"moments": 0}, {"columns": 0}):
        with pytest.raises(UsageError, match="expected at least 1 moment and column, got"):
            contact_sheet(record, **wrong)


def test_refuses_a_rate_that_is_none(tmp_path, record):
    with pytest.raises(UsageError, match="expected a frame rate above 0, got inf"):
        write_view(record, tmp_path / "a.mp4", fps=float("inf"))


def test_command_writes_what_it_is_asked_for_and_says_where(tmp_path, record):
    out = tmp_path / "a.png"
    options = ["--max-px", "8", "--style", "arrows", "--moments", "2", "--columns", "1"]
    done = CliRunner().invoke(view, [str(record.path), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{record.path} -> {out}\n"
    expected = contact_sheet(record, Look(style="arrows", max_px=8), moments=2, columns=1)
    np.testing.assert_array_equal(cv2.imread(str(out)), expected)


def test_command_passes_direction_step_and_rate_on(tmp_path):
    fields = {FORWARD: turning(3, (48, 64)), Series("backward", 2): turning(2, (48, 64))}
    record = write_record(tmp_path, fields, size=(48, 64))
    out = tmp_path / "a.mp4"
    options = ["--direction", "backward", "--step", "2", "--fps", "5"]
    done = CliRunner().invoke(view, [str(record.path), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 5
        assert sum(1 for _ in container.decode(video=0)) == 2


def test_command_needs_a_place_to_write_to(record):
    done = CliRunner().invoke(view, [str(record.path)])
    assert done.exit_code == 2
    assert "Missing option '--out'" in done.stderr


def test_filters_are_columns_and_channels_rows_with_zero_in_the_middle():
    filters = np.zeros((50, 4, 7, 7), np.float32)
    filters[2, 1, 3, 5] = 0.5  # the third column, the second row
    filters[4, 3, 0, 0] = -2.0
    page = filter_sheet(filters, "a run", StackForm(2).channel_names)
    assert page.shape[1] == 16 + 26 + 50 * 16 + 16  # px: 14 a filter, 2 between
    assert (page[72 + 16 + 2 * 3, 42 + 2 * 16 + 2 * 5] == 255).all()
    assert (page[72 + 3 * 16, 42 + 4 * 16] == 0).all()
    assert (page[72, 42] == 128).all()


def test_rgb_filters_are_tiles_in_color():
    filters = np.zeros((20, 3, 3, 3), np.float32)
    filters[17, 0] = 0.1  # red, the second in the second row
    page = filter_sheet(filters, "a run")
    assert page[72 + 44, 16 + 44].tolist() == [128, 128, 255]  # BGR


def test_channels_are_named_by_field_and_way():
    assert StackForm(2).channel_names == ("x1", "y1", "x2", "y2")
    assert StackForm(2, bidirectional=True).channel_names == ("x1", "y1", "x-1", "y-1")


@pytest.fixture
def run(tmp_path):
    """A temporal run of the small network, as it begins."""
    net = build_net("small", {"temporal": StackForm(2)}, {"main": 2})
    about = Checkpoint(1, "small", {"temporal": StackForm(2)}, 0.5, {"main": ("a", "b")}, 128, 112)
    write_checkpoint(tmp_path / "run", [BEST], about, net.state_dict(), {})
    return tmp_path / "run"


def test_a_run_is_viewed_as_its_filters(run, tmp_path):
    out = tmp_path / "filters.png"
    for _ in range(2):  # the second one replaces the first
        told = CliRunner().invoke(view, [str(run), "--out", str(out)])
        assert told.exit_code == 0, told.output
    with Image.open(out) as picture:
        assert picture.size == (16 + 26 + 32 * 17 + 16, 16 + 56 + 4 * 17 + 16)  # px: 5x5 thrice
    told = CliRunner().invoke(view, [str(run), "--out", str(tmp_path / "filters.mp4")])
    assert isinstance(told.exception, UsageError) and ".png" in str(told.exception)
