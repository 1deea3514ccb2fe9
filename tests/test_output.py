"""What commands write where: no input, no file of another kind is replaced; names are escaped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_records import write_record
from made_runs import write_run
from made_videos import moving_texture, write_video
from PIL import Image

from flowkit.data.splits import Split, Video, write_split
from flowkit.errors import UsageError
from flowkit.pictures.sheets import Look, write_view
from flowkit.records.reading import SIDECAR
from flowkit.scores.files import Scores, write_scores
from flowkit.video.sources import find_videos
from flowkit_cli import output
from flowkit_cli.extract import extract
from flowkit_cli.main import cli
from flowkit_cli.output import KINDS, Failures, check_out

FIELDS = np.zeros((12, 8, 9, 2), np.float32)


def run(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


@pytest.fixture
def levels(monkeypatch):
    """-q and -v as they were, after the test."""
    monkeypatch.setattr(output, "quiet", 0)
    monkeypatch.setattr(output, "verbose", 0)


def make_scores(path):
    values = np.float32([[0.9, 0.1], [0.2, 0.8]])
    meta = {"kind": "softmax", "part": "test", "split": "made-1"}
    write_scores(path, Scores(("a", "b"), ("x", "y"), values, np.array([0, 1]), meta))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_not_replaced(tmp_path, kind):
    out = tmp_path / "".join(["out", *output.ENDING.findall(kind)])
    check_out("--out", out, kind)
    out.write_bytes(b"")
    check_out("--out", out, kind)
    for text in (b"Dear diary", b'{"format": "flowkit checkpoint"}', b"PK\x03\x04 some zip"):
        out.write_bytes(text)
        with pytest.raises(UsageError, match="there is a file that is not"):
            check_out("--out", out, kind)


def test_a_name_ends_as_its_kind_does():
    check_out("--out", Path("a.HTML"), "a page (.html)")
    check_out("--out", Path("/dev/null"), "an .npz")
    for kind, ending in (("an .npz", "npz"), ("a page (.html)", "html")):
        with pytest.raises(UsageError, match=f"expected a name that ends in .{ending}"):
            check_out("--out", Path("fused"), kind)


@pytest.mark.parametrize("ending", [".png", ".gif", ".mp4"])
def test_a_picture_or_film_is_replaced_only_where_flowkit_made_it(tmp_path, ending):
    out, record = tmp_path / f"a{ending}", write_record(tmp_path, "a", FIELDS)
    write_view(record, out, Look())
    check_out("--out", out, f"a {ending}")
    if ending == ".mp4":
        write_video(out, moving_texture(3, size=(32, 32)))
    else:
        Image.new("RGB", (32, 32)).save(out)
    with pytest.raises(UsageError, match=r"not a .* of flowkit's"):
        check_out("--out", out, f"a {ending}")


def test_a_pipe_is_not_written_to(tmp_path):
    os.mkfifo(tmp_path / "a")
    for kind in KINDS:
        with pytest.raises(UsageError, match="got a named pipe"):
            check_out("--out", tmp_path / "a", kind)


def test_an_input_is_not_replaced_under_any_name(tmp_path):
    scores = make_scores(tmp_path / "a.npz")
    (tmp_path / "link.npz").symlink_to(scores)
    os.link(scores, tmp_path / "hard.npz")
    for name in ("a.npz", "link.npz", "hard.npz", f"../{tmp_path.name}/a.npz"):
        with pytest.raises(UsageError, match="is an input"):
            check_out("--out", tmp_path / name, "an .npz", [scores])
    check_out("--out", tmp_path / "b.npz", "an .npz", [scores])


def test_nothing_is_put_into_a_record_or_in_place_of_a_folder(tmp_path):
    record = write_record(tmp_path, "a", FIELDS).path
    with pytest.raises(UsageError, match="lies in a flow record"):
        check_out("--out", record / "a.png", "a .png")
    with pytest.raises(UsageError, match="got a folder"):
        check_out("--out", tmp_path, "a .png")


def test_commands_ask_before_they_write(tmp_path):
    scores, record = make_scores(tmp_path / "s.npz"), write_record(tmp_path, "a", FIELDS).path
    video = tmp_path / "v.gif"
    video.write_bytes(b"GIF89a, an input of another program")
    other = make_scores(tmp_path / "other.npz")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments in (
        ("report", scores, "--out", scores),
        ("report", scores, "--out", record / SIDECAR),
        ("fuse", scores, other, "--out", scores),
        ("fuse", scores, other, "--out", tmp_path / "f.npz", "--fitted", other),
        ("stack", record, "--L", "2", "--out", record / SIDECAR),
        ("view", record, "--out", record / "flow_00001.png"),
        ("split", "make", tmp_path, "--out", scores, "--overwrite"),
        ("predict", video, "--out", video),
    ):
        assert isinstance(run(*arguments).exception, UsageError), arguments
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_checkpoint_is_not_replaced_by_its_export(tmp_path):
    write_run(tmp_path)
    found = run("export", tmp_path, "--out", tmp_path / "best.json")
    assert isinstance(found.exception, UsageError) and "is an input" in str(found.exception)


def test_a_folder_to_write_to_is_none_of_a_records_and_no_file(tmp_path):
    record = write_record(tmp_path, "a", FIELDS).path
    split = tmp_path / "split.json"
    write_split(split, Split("made", ("a",), (Video("a", "a", "g"),), (), ()))
    for out, message in ((record / "lists", "lies in the flow record"), (split, "got a file")):
        for command in (
            ("split", "export", split, "--records", tmp_path, "--out", out),
            ("train", "temporal", "--records", tmp_path, "--split", split, "--out", out),
            ("train", "svm", "--split", split, "--out", out),
        ):
            error = run(*command).exception
            assert isinstance(error, UsageError) and message in str(error), command


def test_failures_may_lie_in_the_folder_that_a_command_makes(tmp_path):
    with Failures(tmp_path / "flow/failed.tsv", [], tmp_path / "flow") as failures:
        failures.add(tmp_path / "a.mp4", "why")
    assert (tmp_path / "flow/failed.tsv").read_text().endswith("\twhy\n")
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        Failures(tmp_path / "no/failed.tsv", [], tmp_path / "flow")


def test_progress_tells_what_it_counts_and_no_rate_of_frames_that_there_are_not(capsys):
    with output.ProgressBar(3, "record") as progress:
        progress.last_line -= output.QUIET_LINE_S
        progress.finished(failed=False)
        progress.last_line -= output.QUIET_LINE_S
        progress.frames_of("a", 5)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("1 of 3 records, 0 failed, ") and "frames/s" not in first
    assert "frames/s, 0 failed" in second


def test_a_line_does_not_tear_the_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.ProgressBar(2) as progress:
        assert not progress.bar.disable
        capsys.readouterr()
        output.result("an answer")
        out, err = capsys.readouterr()
    assert out == "an answer\n"
    assert err.startswith("\r ") and " 0/2 " in err, "cleared, and shown again"


# --- failures -------------------------------------------------------------------------------------

ODD = (
    "new\nline",
    "tab\tin it",
    "esc\x1b[31mred",
    "back\\slash\\n",
    "\u202eturned",
    "a 2",
    "plain",
)


def test_failures_are_the_list_of_the_next_run(tmp_path):
    videos = [write_video(tmp_path / f"{name}.mp4", moving_texture(2)) for name in ODD]
    failed = tmp_path / "failed.tsv"
    with Failures(failed, videos) as failures:
        for video in videos:
            failures.add(video, "first\nsecond line of a reason 7")
    lines = failed.read_text().splitlines()
    assert len(lines) == len(ODD) and not set("\x1b\u202e") & set(failed.read_text())
    assert all(line.endswith("\tfirst\\nsecond line of a reason 7") for line in lines)
    assert {source.path for source in find_videos([failed]).sources} == set(videos)
    with pytest.raises(UsageError, match="is an input"):
        Failures(failed, [failed])


def test_names_that_are_no_text_are_in_the_failures_as_they_are(tmp_path):
    video = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    with Failures(tmp_path / "failed.txt", []) as failures:
        failures.add(video, "reason")
    assert b"caf\xe9.mp4\treason" in (tmp_path / "failed.txt").read_bytes()


def test_failures_are_opened_before_any_work_and_a_users_file_stays(tmp_path):
    write_video(tmp_path / "a.mp4", moving_texture(3))
    mine = tmp_path / "list.txt"
    mine.write_text(f"{tmp_path}/a.mp4\n")
    for inputs, failures in ((mine, mine), (tmp_path / "a.mp4", mine), (mine, "no/such/f.tsv")):
        arguments = [str(inputs), "--out", str(tmp_path / "flow"), "--failures", str(failures)]
        found = CliRunner().invoke(extract, [*arguments, "--method", "dis"])
        assert isinstance(found.exception, UsageError)
    assert mine.read_text() == f"{tmp_path}/a.mp4\n"
    assert not list(tmp_path.glob("flow/*"))


def test_each_failure_is_written_at_once(tmp_path):
    with Failures(tmp_path / "f", []) as failures:
        failures.add(tmp_path / "a.mp4", "reason")
        assert (tmp_path / "f").read_text() == f"{tmp_path}/a.mp4\treason\n"


# --- the terminal ---------------------------------------------------------------------------------


def test_no_control_character_of_a_name_reaches_the_terminal(capsys):
    for write in (output.say, output.result, output.error):
        write("bad\x1b[31m\x07\x9b\u202e\r.mp4")
        written = "".join(capsys.readouterr())
        assert written == "bad\\x1b[31m\\x07\\x9b\\u202e\\r.mp4\n"
    output.error("two\nlines")
    assert capsys.readouterr().err == "two\\nlines\n"
    output.say("über 跳 👩‍👩")
    assert capsys.readouterr().err == "über 跳 👩‍👩\n"


@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_stand_before_and_behind_the_command(tmp_path, levels, before):
    write_record(tmp_path, "a", FIELDS)

    def said(option):
        place = (option, "verify") if before else ("verify", option)
        return run(*place, tmp_path, "-j", "1").output

    assert said("-q") == ""
    assert "1 sound" in said("-v")
    assert output.verbose == 1 and output.quiet == 0


def test_quiet_still_tells_what_is_broken(tmp_path, levels):
    record = write_record(tmp_path, "a", FIELDS).path
    (record / "flow_00002.npy").unlink()
    found = run("-q", "verify", tmp_path, "-j", "1")
    assert found.exit_code == 1 and found.output.count("\n") == 1 and "missing" in found.output


CLOSED = """
import os, sys
sys.argv[1:] = ["info", "--json", sys.argv[2]]
os.close({})
from flowkit_cli.main import main
main()
"""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_no_crash_and_nothing_else_takes_its_number(tmp_path, number):
    write_record(tmp_path, "a", FIELDS)
    command = [sys.executable, "-c", CLOSED.format(number), "-", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    if number != 1:
        assert json.loads(done.stdout)["frames"] == 13


def test_a_record_that_cannot_be_packed_or_unpacked_costs_itself(tmp_path, levels):
    for id in "abc":
        write_record(tmp_path, id, FIELDS)
    (tmp_path / "b" / "mine.txt").write_text("mine")
    result = run("pack", tmp_path)
    assert result.exit_code == 1 and "2 records packed" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b", "c.zip"]
    (tmp_path / "a.zip").write_bytes(b"PK" + (tmp_path / "a.zip").read_bytes()[2:-9])
    result = run("unpack", tmp_path)
    assert result.exit_code == 1 and "1 record unpacked" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b", "c"]


def test_a_line_end_in_a_name_makes_no_second_line(tmp_path):
    write_record(tmp_path / "x\ny", "a", FIELDS)
    result = run("info", tmp_path / "x\ny")
    assert result.stdout.count("\n") == 1 and r"x\ny/a" in result.stdout
