"""Sources: every video under the inputs, each with a place of its own, and nothing else."""

import errno
import io
import os
import random
import re
from pathlib import Path

import pytest

from flowkit.errors import UsageError, VideoError
from flowkit.video.image_folders import frame_files
from flowkit.video.reading import open_video
from flowkit.video.sources import Source, find_videos, natural_key


def touch(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(*inputs, **options) -> list[str]:
    return [source.id for source in find_videos(inputs, **options).sources]


def write_list(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes(os.fsencode("".join(line + end for line in lines)))
    return path


# --- folders --------------------------------------------------------------------------------------


def test_ids_are_paths_below_the_folder_in_natural_order(tmp_path):
    touch(tmp_path, "run/v_10.avi", "run/v_2.avi", "jump/a.b.mp4", "top.webm", "jump/deep/c.MKV")
    found = find_videos([tmp_path])
    wanted = ["jump/a.b", "jump/deep/c", "run/v_2", "run/v_10", "top"]
    assert [source.id for source in found.sources] == wanted
    assert found.sources[0] == Source(tmp_path / "jump/a.b.mp4", "jump/a.b")
    assert found.passed_over == {}


def test_natural_order_is_that_of_texts_and_numbers_in_turn():
    def parts(text):
        return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", text))]

    draw = random.Random(0)
    texts = {"".join(draw.choices("a_0129/\udc80é", k=draw.randrange(12))) for _ in range(3000)}
    assert sorted(texts, key=natural_key) == sorted(texts, key=lambda text: (parts(text), text))


def test_relative_input_gives_absolute_paths(tmp_path, monkeypatch):
    touch(tmp_path, "videos/a.avi", "-b.avi")
    monkeypatch.chdir(tmp_path)
    assert find_videos(["videos"]).sources == (Source(tmp_path / "videos/a.avi", "a"),)
    assert find_videos(["-b.avi"]).sources == (Source(tmp_path / "-b.avi", "-b"),)


def test_everything_else_is_counted(tmp_path):
    touch(tmp_path, "a.avi", "notes.TXT", "b.csv", "c/d.csv", "README", "._a.avi", ".cache/x.avi")
    touch(tmp_path, "c/photo.jpg")
    found = find_videos([tmp_path])
    assert [source.id for source in found.sources] == ["a"]
    counts = {".csv": 2, ".jpg": 1, ".txt": 1, "hidden": 2, "no extension": 1}
    assert found.passed_over == counts


def test_links_are_followed_and_a_loop_is_passed_over(tmp_path):
    touch(tmp_path, "real/a.avi", "videos/b.avi")
    (tmp_path / "videos/linked").symlink_to(tmp_path / "real")
    (tmp_path / "videos/loop").symlink_to(tmp_path / "videos")
    found = find_videos([tmp_path / "videos"])
    assert [source.id for source in found.sources] == ["b", "linked/a"]
    assert found.sources[1].path == tmp_path / "videos/linked/a.avi"
    assert found.passed_over == {"link loop": 1}


def test_link_to_a_video_that_is_gone_is_kept_to_fail_by_name(tmp_path):
    (tmp_path / "gone.avi").symlink_to(tmp_path / "nowhere")
    assert ids(tmp_path) == ["gone"]


def test_a_link_to_itself_is_kept_to_fail_by_name_and_stops_nothing(tmp_path):
    touch(tmp_path, "a.avi")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "round").symlink_to("round")
    found = find_videos([tmp_path])
    assert [source.id for source in found.sources] == ["a", "loop"]
    assert found.passed_over == {"broken link": 1}
    for place in (tmp_path / "loop.mp4", write_list(tmp_path / "list.txt", f"{tmp_path}/loop.mp4")):
        assert ids(place) == ["loop"]
    with pytest.raises(VideoError, match=r"loop.mp4: expected a video file"):
        open_video(tmp_path / "loop.mp4")


def test_folder_that_cannot_be_read_is_kept_to_fail_by_name(tmp_path, monkeypatch):
    touch(tmp_path, "a.avi", "shut/b.avi")

    def shut(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", shut)
    assert ids(tmp_path) == ["a", "shut"]
    with pytest.raises(UsageError, match="shut: cannot be read: Permission denied"):
        find_videos([tmp_path / "shut"])


# --- records among the videos ---------------------------------------------------------------------


def touch_record(folder: Path, *names: str) -> None:
    touch(folder, "img_00001.jpg", "img_00002.jpg", *names)
    (folder / "record.json").write_text('{"format": "flowkit flow record", "version": 9}')


def test_flow_records_are_no_sources_unless_they_are_named(tmp_path):
    touch(tmp_path, "jump/a.avi")
    touch_record(tmp_path / "flow/jump/a", "b.avi")
    touch_record(tmp_path / "own/records/a")
    touch(tmp_path, *(f"own/{part}/a/frame00000{k}.jpg" for part in "uv" for k in "12"))
    touch(tmp_path, *(f"own/jpegs_256/a/frame00000{k}.jpg" for k in "12"), "own/run.avi")
    found = find_videos([tmp_path])
    assert [source.id for source in found.sources] == ["jump/a", "own/run"]
    assert found.passed_over == {"flow record": 1}
    assert ids(tmp_path / "flow/jump/a", root=tmp_path / "flow") == ["jump/a/b"]


def test_planes_of_another_tool_are_not_taken_for_flowkits(tmp_path):
    """Only a sidecar makes them a record: u/ and v/ may hold anything."""
    touch(tmp_path, *(f"{part}/a/frame00000{k}.jpg" for part in ("u", "v") for k in "12"))
    touch(tmp_path, "records/a/record.json")
    assert ids(tmp_path) == ["u/a", "v/a"]


def test_the_output_folder_is_not_entered(tmp_path):
    touch(tmp_path, "videos/a.avi", "videos/flow/b.avi", "videos/flow/.incomplete/c.avi")
    for out in (tmp_path / "videos/flow", tmp_path / "videos/../videos/flow"):
        assert ids(tmp_path / "videos", out=out) == ["a"]
    assert ids(tmp_path / "videos/flow", out=tmp_path / "videos/flow") == ["b"]


# --- folders of frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("img_00001.jpg", "img_00002.jpg"),
        ("image_00001.png", "image_00002.png"),
        ("frame000001.jpeg", "frame000002.jpeg"),
        ("00001.bmp", "00002.bmp"),
        ("1.JPG", "2.JPG"),
    ],
)
def test_folder_of_numbered_frames_is_one_source(tmp_path, names):
    touch(tmp_path, *(f"jump/clip.1/{name}" for name in names))
    found = find_videos([tmp_path])
    assert found.sources == (Source(tmp_path / "jump/clip.1", "jump/clip.1"),)
    assert found.passed_over == {}


def test_folder_of_frames_given_itself_is_called_by_its_name(tmp_path):
    touch(tmp_path, "clip/1.png", "clip/2.png")
    assert ids(tmp_path / "clip") == ["clip"]
    assert ids(tmp_path / "clip", root=tmp_path / "clip") == ["clip"]
    assert ids(tmp_path / "clip", root=tmp_path.parent) == [f"{tmp_path.name}/clip"]


def test_frames_of_a_flow_record_are_its_images(tmp_path):
    stems = ("img", "flow_x", "flow_y")
    touch(tmp_path, *(f"a/{stem}_0000{k}.jpg" for stem in stems for k in (1, 2)), "a/record.json")
    # A file of that name that is not flowkit's makes no record of the folder.
    found = find_videos([tmp_path])
    assert found.sources == (Source(tmp_path / "a", "a"),)
    assert found.passed_over == {".jpg": 4, ".json": 1}


def test_pictures_that_are_no_frames_are_passed_over(tmp_path):
    touch(tmp_path, "a.avi", "1.jpg", "2.jpg")  # beside a video
    touch(
        tmp_path, "d/photo1.jpg", "e/left1.jpg", "e/right2.jpg", "f/1.jpg", "f/2.jpg", "f/x/b.avi"
    )
    touch(tmp_path, "f/1.jpg", "f/2.jpg", "f/cover1.jpg", "f/x/b.avi")
    found = find_videos([tmp_path])
    assert [source.id for source in found.sources] == ["a", "f/x/b"]
    assert found.passed_over == {".jpg": 8}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["img_1.jpg", "img_2.jpg", "cover1.jpg"], "found 2 images like img_1.jpg and cover1.jpg"),
        (["1.jpg", "2.jpeg", "3.jpeg"], "found 2 images like 2.jpeg and 1.jpg"),
        (["1.jpg", "2.png"], r"found (1.jpg and 2.png|2.png and 1.jpg)"),
        (["a1.jpg", "a2.jpg", "b1.jpg", "b2.jpg"], "2 images like (a1.jpg and 2|b1.jpg and 2)"),
    ],
)
def test_folder_of_frames_of_more_than_one_kind_is_kept_to_fail_by_name(tmp_path, names, reason):
    touch(tmp_path, "a.avi", *(f"b/{name}" for name in names))
    found = find_videos([tmp_path])
    assert [source.id for source in found.sources] == ["a", "b"]
    assert found.passed_over == {}
    with pytest.raises(VideoError, match=reason):
        open_video(tmp_path / "b")


def test_frames_come_in_the_order_of_their_numbers():
    names = ["v1_10.jpg", "v1_9.jpg", "notes.txt", ".v1_3.jpg", "v1_.jpg"]
    assert frame_files(names) == [(9, "v1_9.jpg"), (10, "v1_10.jpg")]
    assert frame_files(["flow_x_1.jpg", "flow_y_1.jpg"]) == []
    assert frame_files([]) == []


# --- files and roots ------------------------------------------------------------------------------


def test_file_given_itself_is_called_by_its_stem_or_from_the_root(tmp_path):
    touch(tmp_path, "jump/a.avi", "jump/no extension", "jump/..avi")
    assert ids(tmp_path / "jump/a.avi") == ["a"]
    assert ids(tmp_path / "jump/a.avi", root=tmp_path) == ["jump/a"]
    assert ids(tmp_path / "jump/no extension") == ["no extension"]
    assert ids(tmp_path / "jump/..avi") == ["..avi"]


def test_folder_is_named_from_the_root_too(tmp_path):
    touch(tmp_path, "jump/a.avi", "run/a.avi", "walk/a.avi")
    assert ids(tmp_path / "jump", tmp_path / "run", root=tmp_path) == ["jump/a", "run/a"]


def test_root_is_compared_without_its_dots(tmp_path, monkeypatch):
    touch(tmp_path, "jump/a.avi")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert ids("../jump/a.avi", root="..") == ["jump/a"]


def test_path_outside_the_root(tmp_path):
    touch(tmp_path, "jump/a.avi", "run/b.avi")
    with pytest.raises(UsageError, match=r"jump/a.avi: expected a path below"):
        find_videos([tmp_path / "jump/a.avi"], root=tmp_path / "run")


def test_input_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match=r"none.avi: no such file or folder"):
        find_videos([tmp_path / "none.avi"])


def test_named_folder_without_videos_is_kept_to_fail_by_name(tmp_path):
    touch(tmp_path, "jump/a.avi", "jump/none/b.csv", "run/c.csv")
    found = find_videos([tmp_path / "jump", tmp_path / "run"])
    assert found.sources == (
        Source(tmp_path / "jump/a.avi", "a"),
        Source(tmp_path / "run", "run"),
    )
    assert ids(tmp_path / "jump", tmp_path / "run", out=tmp_path / "run") == ["a"]
    with pytest.raises(VideoError, match=r"run: expected numbered images .* found none"):
        open_video(tmp_path / "run")


def test_nothing_found_says_what_was_passed_over(tmp_path):
    touch(tmp_path, "a.csv", "b.csv", "c.txt")
    with pytest.raises(UsageError, match=r"found none \(passed over: 2 .csv, 1 .txt\)"):
        find_videos([tmp_path])
    with pytest.raises(UsageError, match=r"found none \(passed over: nothing\)"):
        find_videos([])


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".txt", ".lst", ".LIST"])
def test_list_of_paths(tmp_path, end, suffix):
    touch(tmp_path, "jump/a.avi", "run/b c.avi")
    lines = ["jump/a.avi", "", "# a remark", f"{tmp_path}/run/b c.avi", "  "]
    listed = write_list(tmp_path / f"list{suffix}", *lines, end=end)
    assert ids(listed, root=tmp_path) == ["jump/a", "run/b c"]


def test_relative_lines_are_looked_for_from_the_working_directory_first(tmp_path, monkeypatch):
    touch(tmp_path, "here/a.avi", "root/a.avi", "root/b.avi")
    listed = write_list(tmp_path / "list.txt", "a.avi")
    monkeypatch.chdir(tmp_path / "here")
    assert find_videos([listed]).sources[0].path == tmp_path / "here/a.avi"
    listed = write_list(tmp_path / "list.txt", "a.avi", "b.avi")
    with pytest.raises(UsageError, match="below the root"):
        find_videos([listed], root=tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    assert ids(listed, root=tmp_path / "root") == ["a", "b"]


def test_mark_of_byte_order_is_no_part_of_the_first_name(tmp_path):
    touch(tmp_path, "a.avi")
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + os.fsencode(tmp_path / "a.avi") + b"\r\n")
    assert ids(listed) == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lists_of_two_byte_letters_are_read_by_their_mark(tmp_path, encoding):
    touch(tmp_path, "\u00fc.avi", "\u8df3.avi")
    listed = tmp_path / "list.txt"
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    text = f"{mark}{tmp_path}/\u00fc.avi\r\n{tmp_path}/\u8df3.avi\r\n"
    listed.write_bytes(text.encode(encoding))
    assert ids(listed) == ["\u00fc", "\u8df3"]
    listed.write_bytes(text.encode(encoding)[:-1])
    with pytest.raises(UsageError, match=r"list.txt: damaged UTF-.*save it as UTF-8"):
        find_videos([listed])


def test_a_list_of_single_letters_may_be_utf_16_without_a_mark(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes("abcd.avi\n".encode("utf-16-le"))
    with pytest.raises(UsageError, match="save it as UTF-8"):
        find_videos([listed])


@pytest.mark.parametrize("line", ['"a b.avi"', "'a b.avi'", ' "a b.avi" ', '"a b.avi" 7'])
def test_quotes_about_a_line_are_taken_off(tmp_path, monkeypatch, line):
    touch(tmp_path, "a b.avi")
    monkeypatch.chdir(tmp_path)
    assert ids(write_list(tmp_path / "list.txt", line)) == ["a b"]


@pytest.mark.parametrize(
    "text",
    [
        "jump/a.avi\nrun/b, c.avi,\n".replace("run/b, c.avi,", '"run/b, c.avi"'),
        'class,File,label\njump,jump/a.avi,0\nrun,"run/b, c.avi",1\n',
        "class;path\r\njump;jump/a.avi\r\nrun;run/b, c.avi\r\n",
        "video\tlabel\njump/a.avi\t0\nrun/b, c.avi\t1\n",
        "jump/a.avi,0\n\nrun/b.avi,1\n".replace("run/b.avi", '"run/b, c.avi"'),
    ],
)
def test_tables_name_their_videos_in_one_column(tmp_path, monkeypatch, text):
    touch(tmp_path, "jump/a.avi", "run/b, c.avi")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text(text)
    assert ids("list.csv", root=".") == ["jump/a", "run/b, c"]


def test_tables_without_videos_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("class,file\nrun,a.avi\n")
    with pytest.raises(UsageError, match=r"list.csv: 1 of 1 paths do not exist.*: a.avi"):
        find_videos(["list.csv"])
    (tmp_path / "list.csv").write_text("x" * 200_000)
    with pytest.raises(UsageError, match=r"list.csv: expected a table"):
        find_videos(["list.csv"])


@pytest.mark.parametrize("line", ["v_x.avi 1", "v_x.avi\t12 3", "v_x.avi 1 ", " v_x.avi -1"])
def test_trailing_columns_of_integers_are_dropped(tmp_path, monkeypatch, line):
    touch(tmp_path, "v_x.avi")
    monkeypatch.chdir(tmp_path)
    assert ids(write_list(tmp_path / "list.txt", line)) == ["v_x"]


@pytest.mark.parametrize("name", ["walk 2 5", "#a.avi", " a.avi", "a.avi ", "a 1", '"a.avi"'])
def test_line_is_taken_as_it_stands_where_a_file_is_called_so(tmp_path, monkeypatch, name):
    touch(tmp_path, name, "walk", "a.avi", "a")
    monkeypatch.chdir(tmp_path)
    found = find_videos([write_list(tmp_path / "list.txt", name)])
    assert found.sources[0].path == tmp_path / name


def test_columns_are_dropped_one_by_one(tmp_path, monkeypatch):
    touch(tmp_path, "walk 2/1.jpg", "walk 2/2.jpg", "walk/1.jpg", "walk/2.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids(write_list(tmp_path / "list.txt", "walk 2 2 7")) == ["walk 2"]


def test_names_that_are_not_utf8_are_kept(tmp_path, monkeypatch):
    touch(tmp_path, b"jump\xff/a\xfe.avi")
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(b"jump\xff/a\xfe.avi")
    found = find_videos([write_list(tmp_path / "list.txt", path)], root=tmp_path)
    assert found.sources == (Source(tmp_path / path, os.fsdecode(b"jump\xff/a\xfe")),)
    assert ids(tmp_path) == [os.fsdecode(b"jump\xff/a\xfe")]


def test_paths_of_a_list_that_do_not_exist_are_counted_and_named_at_once(tmp_path, monkeypatch):
    touch(tmp_path, "a.avi")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="x: no such folder"):
        find_videos([tmp_path / "a.avi"], root=tmp_path / "x")
    (tmp_path / "x").mkdir()
    listed = write_list(tmp_path / "list.txt", "a.avi 1", *(f"gone_{k}.avi 1" for k in range(7)))
    message = (
        rf"list.txt: 7 of 8 paths do not exist, looked for from {tmp_path} and {tmp_path}/x: "
        r"gone_0.avi 1, gone_1.avi 1, gone_2.avi 1, gone_3.avi 1, gone_4.avi 1 and 2 more"
    )
    with pytest.raises(UsageError, match=message):
        find_videos([listed], root=tmp_path / "x")


def test_line_that_cannot_be_a_path_is_missing_too(tmp_path):
    listed = write_list(tmp_path / "list.txt", "x" * 5000)
    with pytest.raises(UsageError, match="1 of 1 paths do not exist"):
        find_videos([listed])


def test_list_that_is_no_plain_file_is_named_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(UsageError, match=r"list.txt: expected a plain file"):
        find_videos([tmp_path / "list.txt"])


def test_list_within_a_list(tmp_path):
    inner = write_list(tmp_path / "inner.txt", "a.avi")
    outer = write_list(tmp_path / "outer.txt", str(inner))
    with pytest.raises(UsageError, match=r"outer.txt: names a list, .*inner.txt: give that as"):
        find_videos([outer])


def test_folders_in_a_list_are_walked(tmp_path):
    touch(tmp_path, "videos/jump/a.avi")
    assert ids(write_list(tmp_path / "list.txt", f"{tmp_path}/videos")) == ["jump/a"]


def test_standard_input(tmp_path):
    touch(tmp_path, "a.avi", "b\n#.avi")
    lines = f"{tmp_path}/a.avi 3\r\n".encode()
    assert ids("-", stdin=io.BytesIO(lines)) == ["a"]
    with_nul = f"{tmp_path}/a.avi\0{tmp_path}/b\n#.avi\0".encode()
    assert ids("-", stdin=io.BytesIO(with_nul)) == ["a", "b\n#"]
    with pytest.raises(UsageError, match="standard input: 1 of 1 paths do not exist"):
        find_videos(["-"], stdin=io.BytesIO(b"none.avi\n"))


# --- one place for each ---------------------------------------------------------------------------


def test_one_file_through_two_inputs_is_one_source(tmp_path):
    touch(tmp_path, "jump/a.avi", "run/b.avi")
    listed = write_list(tmp_path / "list.txt", f"{tmp_path}/jump/a.avi", f"{tmp_path}/jump/a.avi 2")
    assert ids(tmp_path, tmp_path / "jump", listed) == ["jump/a", "run/b"]


def test_one_file_through_a_link_under_the_same_id_is_one_source(tmp_path):
    touch(tmp_path, "real/a.avi")
    (tmp_path / "other").symlink_to(tmp_path / "real")
    assert ids(tmp_path / "real", tmp_path / "other") == ["a"]


def test_two_links_to_one_video_in_two_classes_are_two_sources(tmp_path):
    touch(tmp_path, "real.avi", "videos/jump/a.avi")
    (tmp_path / "videos/run").mkdir()
    (tmp_path / "videos/run/a.avi").symlink_to(tmp_path / "videos/jump/a.avi")
    assert ids(tmp_path / "videos") == ["jump/a", "run/a"]


def test_two_files_of_one_stem_collide(tmp_path):
    touch(tmp_path, "a.avi", "a.mp4")
    message = r"/a.avi and .*/a.mp4 would both be recorded as a: rename one"
    with pytest.raises(UsageError, match=message):
        find_videos([tmp_path])


def test_two_files_of_one_name_collide_without_a_root(tmp_path):
    touch(tmp_path, "jump/a.avi", "run/a.avi")
    inputs = [tmp_path / "jump/a.avi", tmp_path / "run/a.avi"]
    with pytest.raises(UsageError, match="name their common folder as the root"):
        find_videos(inputs)
    assert ids(*inputs, root=tmp_path) == ["jump/a", "run/a"]


def test_record_inside_a_record(tmp_path):
    touch(tmp_path, "jump.avi", "jump/deep/a.avi")
    message = r"jump/deep/a, inside the record jump of .*jump.avi"
    with pytest.raises(UsageError, match=message):
        find_videos([tmp_path])


# --- real data ------------------------------------------------------------------------------------


def test_every_real_clip_is_found(real_data):
    found = find_videos([real_data / "jhmdb10"])
    assert len(found.sources) == 468
    assert found.passed_over == {".csv": 1, ".txt": 3}


def test_real_table_names_its_clips(real_data):
    root = real_data / "ucf101"
    rows = (root / "clips.csv").read_text().splitlines()[1:]
    there = [row for row in rows if (root / row.partition(",")[0]).exists()]
    if len(there) < len(rows):
        pytest.skip(f"{len(there)} of {len(rows)} clips of the table are there")
    assert len(ids(root / "clips.csv", root=root)) == len(rows) > 0


def test_real_list_names_its_clips(real_data):
    root = real_data / "jhmdb10"
    train = ids(root / "jhmdb10_trainlist01.txt", root=root)
    test = ids(root / "jhmdb10_testlist01.txt", root=root)
    assert (len(train), len(test)) == (330, 138)
    assert sorted(train + test) == sorted(ids(root))
