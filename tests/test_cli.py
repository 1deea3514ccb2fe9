"""The command line as people and pipelines use it: whole runs, exit statuses, signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import run_here
from made_videos import moving_texture, write_motion_jpeg, write_sound, write_video

import flowkit
from flowkit.extraction.throughput import WIDER
from flowkit.records.unfinished import DEAD_S, MARK
from flowkit_cli import output
from flowkit_cli.main import COMMANDS, main
from flowkit_cli.man_pages import man_pages
from flowkit_cli.reference import reference

FLOWKIT = [sys.executable, "-m", "flowkit_cli.main"]
PRETENDED = [sys.executable, str(Path(__file__).with_name("pretended_gpu.py"))]
DOCS, MAN = (Path(__file__).parents[1] / name for name in ("docs", "man"))


@dataclass(frozen=True)
class Way:
    """Where `flowkit extract` computes: in its workers, or in the flow process of a GPU."""

    program: list[str]
    quick: tuple[str, ...]
    slow: tuple[str, ...]
    kills: int


WORKERS = ("--method", "farneback-opencv", "--farneback-iterations", "40", "-j", "2")
GPU = ("--gpu", "--method", "farneback")
WAYS = {
    "workers": Way(FLOWKIT, ("--method", "dis"), WORKERS, kills=10),
    "gpu": Way(PRETENDED, GPU, (*GPU, "--farneback-iterations", "16", "-j", "2"), kills=2),
}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request) -> Way:
    return WAYS[request.param]


def run(*arguments, cwd, stdin=b"", env=None, program=FLOWKIT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*program, *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def three_videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for name in ("jump/a.mp4", "jump/b.avi", "run/a.mkv"):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / "videos" / name, moving_texture(5, seed=len(name)))
    return folder


@pytest.fixture
def workplace(three_videos, tmp_path) -> Path:
    shutil.copytree(three_videos, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_extract_info_verify_pack_unpack(workplace):
    done = run("extract", "videos", "--method", "dis", cwd=workplace)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"3 done, 0 there already, 0 failed; 15 frames, 12 fields" in done.stderr
    records = sorted(str(p.parent.relative_to(workplace)) for p in workplace.rglob("record.json"))
    assert records == ["flow/jump/a", "flow/jump/b", "flow/run/a"]
    assert not (workplace / "flow" / ".incomplete").exists()

    told = run_here("info", "flow", cwd=workplace).stdout.decode().splitlines()
    for fact in ("flow/jump/a: 5 frames 96x72", "25 fps", "4 forward fields", "dis, jpg, own"):
        assert fact in told[0]
    lines = run_here("info", "flow/run/a", "--json", cwd=workplace).stdout.splitlines()
    assert json.loads(lines[0])["series"] == [{"direction": "forward", "step": 1, "fields": 4}]
    assert b"3 records: 3 sound; 0 broken" in run_here("verify", "flow", cwd=workplace).stderr

    before = tree(workplace / "flow")
    assert run_here("pack", "flow", cwd=workplace).returncode == 0
    assert sorted(tree(workplace / "flow")) == ["jump/a.zip", "jump/b.zip", "run/a.zip"]
    assert run_here("verify", "flow", cwd=workplace).returncode == 0
    again = run_here("extract", "videos", "--method", "dis", "--pack", cwd=workplace)
    assert b"0 done, 3 there already" in again.stderr
    assert run_here("unpack", "flow", cwd=workplace).returncode == 0
    assert tree(workplace / "flow") == before


def test_three_broken_videos_among_good_ones(workplace, way):
    videos = workplace / "videos"
    (videos / "jump" / "text.avi").write_text("this is no video")
    write_sound(videos / "run" / "sound.avi")
    whole = (videos / "run" / "a.mkv").read_bytes()
    (videos / "run" / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (videos / "notes.txt").write_text("passed over")
    done = run(
        *("extract", "videos", *way.quick, "--json", "--failures", "failed.tsv"),
        cwd=workplace,
        program=way.program,
    )
    assert done.returncode == 1
    *lines, last = map(json.loads, done.stdout.splitlines())
    events = {event["video"]: event for event in lines}
    assert {name: event["status"] for name, event in events.items()} == {
        "jump/a": "done",
        "jump/b": "done",
        "run/a": "done",
        "jump/text": "failed",
        "run/sound": "failed",
        "run/cut": "failed",
    }
    assert events["jump/a"]["frames"] == 5 and events["jump/a"]["fields"] == 4
    assert b"3 done, 0 there already, 3 failed" in done.stderr
    assert b"passed over, being no videos: .txt (1)" in done.stderr
    failed = [line.split("\t") for line in (workplace / "failed.tsv").read_text().splitlines()]
    assert sorted(Path(path).name for path, _ in failed) == ["cut.mkv", "sound.avi", "text.avi"]
    assert all(reason for _, reason in failed)
    assert len(list((workplace / "flow").rglob("record.json"))) == 3

    counts = {"done": 3, "skipped": 0, "failed": 3, "not_begun": 0, "frames": 15, "fields": 12}
    assert {name: last[name] for name in counts} == counts and last["status"] == "summary"
    assert set(last["stages"]) == {"decode", "flow", "encode", "write"}
    assert last["bottleneck"] in {*last["stages"], *WIDER} and last["advice"]
    assert f"bottleneck: {last['bottleneck']} (alone, frames/s: decode " in done.stderr.decode()
    assert [gpu["pairs"] for gpu in last.get("gpus", [])] == [12] * (way is WAYS["gpu"])

    again = run("extract", "videos", *way.quick, cwd=workplace, program=way.program)
    assert again.returncode == 1 and b"0 done, 3 there already, 3 failed" in again.stderr


AWKWARD_NAMES = [
    b"-dash.avi",
    b"a:b.avi",
    b"with space.avi",
    b"#hash@at;semi!(x).avi",
    b"100%d.avi",
    b"caf\xe9-latin1.avi",
    "日本.avi".encode(),
    b"new\nline.avi",
]


@pytest.mark.parametrize(
    "layout", ["flowkit", pytest.param("twostreamfusion", marks=pytest.mark.slow)]
)
def test_awkward_names_arrive(tmp_path, layout):
    source = write_video(tmp_path / "plain.avi", moving_texture(3))
    (tmp_path / "videos").mkdir()
    for name in AWKWARD_NAMES:
        shutil.copy(source, os.fsencode(tmp_path / "videos") + b"/" + name)
    done = run(
        *("extract", "videos", "--method", "dis", "--layout", layout, "--json"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(AWKWARD_NAMES) + 1
    base = os.fsencode(tmp_path / "flow") + (b"/records" if layout == "twostreamfusion" else b"")
    assert sorted(os.listdir(base)) == sorted(os.path.splitext(name)[0] for name in AWKWARD_NAMES)
    assert run_here("verify", "flow", cwd=tmp_path).returncode == 0


def test_paths_on_standard_input_and_in_a_list_file(workplace):
    paths = b"".join(
        os.fsencode(path.relative_to(workplace)) + b"\n" for path in workplace.glob("videos/*/*")
    )
    given = ("extract", "-", "--root", "videos", "--method", "dis")
    done = run_here(*given, cwd=workplace, stdin=paths)
    assert done.returncode == 0
    (workplace / "list.txt").write_bytes(paths)
    listed = run_here(
        *("extract", "list.txt", "--root", "videos", "--method", "dis", "--out", "flow2"),
        cwd=workplace,
    )
    assert listed.returncode == 0
    assert tree(workplace / "flow") == tree(workplace / "flow2")


def test_shards_add_up_to_the_whole(workplace):
    for shard in ("1/2", "2/2"):
        run_here("extract", "videos", "--method", "dis", "--shard", shard, cwd=workplace)
    run_here("extract", "videos", "--method", "dis", "--out", "whole", cwd=workplace)
    assert tree(workplace / "flow") == tree(workplace / "whole")


def test_a_dry_run_does_nothing(workplace):
    done = run_here("extract", "videos", "--dry-run", cwd=workplace)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    assert b"3 videos, 3 to do: tvl1 to flow/" in done.stderr
    lines = run_here("extract", "videos", "--dry-run", "--json", cwd=workplace).stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["to do"] * 3
    assert not (workplace / "flow").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["videos", "--gpu", "--method", "dis"], "--gpu: expected --method tvl1 or farneback"),
        (["videos", "--gpus", "first"], "or all, got 'first'"),
        (["nowhere"], "nowhere"),
        (["videos", "--dis-patch-size", "8"], "--dis-patch-size does not go with --method tvl1"),
        (["videos", "--shard", "3/2"], "expected a shard from 1/2 to 2/2, got 3/2"),
        (
            ["videos", "--shard", "two"],
            "slurm/N, got 'two'",
        ),
        (["videos", "--resize", "big"], "expected a size such as 256"),
        (["videos", "--preset", "none"], "method tvl1 has no preset 'none'"),
        (["videos", "--method", "dis", "--dis-patch-size", "0"], "patch_size of at least 1"),
        (["videos", "--bound", "20", "--format", "npy"], "--bound goes with 8-bit planes"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_one_line_and_status_2_before_any_work(workplace, arguments, message):
    done = run_here("extract", *arguments, cwd=workplace)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert not (workplace / "flow").exists()


@pytest.mark.parametrize(
    "option",
    [("--gpu",), ("--gpus", "0,1"), pytest.param(("--gpus", "all"), marks=pytest.mark.slow)],
)
def test_without_a_gpu_gpu_is_an_error_that_says_why_before_any_work(workplace, option):
    done = run("extract", "videos", *option, cwd=workplace, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    if option[-1] == "0,1":
        assert last.endswith("as CUDA_VISIBLE_DEVICES is '', got 1")
    else:
        assert re.match(r"flowkit: error: --gpu: .*(driver|torch|cuda-bindings)", last), last
        assert "use the CPU's methods" in last or "install" in last
    assert not (workplace / "flow").exists()


def test_a_finished_run_is_finished_without_a_gpu(workplace):
    arguments = ("extract", "videos", *GPU)
    assert run(*arguments, cwd=workplace, program=PRETENDED).returncode == 0
    again = run_here(*arguments, cwd=workplace)
    assert again.returncode == 0 and b"0 done, 3 there already, 0 failed" in again.stderr
    planned = run_here(*arguments, "--dry-run", "--overwrite", cwd=workplace)
    assert planned.returncode == 0 and b"3 to do: farneback-cuda to flow/" in planned.stderr


def test_colliding_names_are_an_error_before_any_work(workplace):
    shutil.copy(workplace / "videos/jump/a.mp4", workplace / "videos/jump/a.avi")
    done = run_here("extract", "videos", "--method", "dis", cwd=workplace)
    assert done.returncode == 2
    assert b"a.avi" in done.stderr and b"a.mp4" in done.stderr
    assert not (workplace / "flow").exists()


def test_different_parameters_need_overwrite(workplace):
    run_here("extract", "videos", "--method", "dis", cwd=workplace)
    before = tree(workplace / "flow")
    refused = run_here("extract", "videos", "--method", "dis", "--bound", "20", cwd=workplace)
    assert refused.returncode == 2
    assert b"bound: null on disk, 20.0 asked for" in refused.stderr
    assert tree(workplace / "flow") == before
    done = run_here(
        *("extract", "videos", "--method", "dis", "--bound", "20", "--overwrite"), cwd=workplace
    )
    assert done.returncode == 0 and b"3 done" in done.stderr
    assert b"+-20 px" in run_here("info", "flow/jump/a", cwd=workplace).stdout


def test_verify_finds_and_deletes_what_is_broken(workplace):
    run_here("extract", "videos", "--method", "dis", cwd=workplace)
    flow = workplace / "flow"
    whole = tree(flow)
    (flow / "jump/a/flow_x_00002.jpg").write_bytes(b"half a JPEG")
    (flow / "jump/b/img_00005.jpg").unlink()
    left = flow / ".incomplete" / "of-a-run"
    left.mkdir(parents=True)
    (left / "lock").write_bytes(MARK)
    os.utime(left / "lock", (0, time.time() - DEAD_S - 1))
    told = run_here("verify", "flow", cwd=workplace)
    assert told.returncode == 1
    lines = told.stdout.decode().splitlines()
    assert len(lines) == 3
    assert any("flow_x_00002.jpg: damaged or truncated" in line for line in lines)
    assert any("img_00005.jpg: file is missing" in line for line in lines)
    assert any("left by a run that was stopped" in line for line in lines)
    assert run_here("verify", "flow", "--delete-broken", cwd=workplace).returncode == 1
    assert run_here("verify", "flow", cwd=workplace).returncode == 0
    assert run_here("extract", "videos", "--method", "dis", cwd=workplace).returncode == 0
    assert tree(flow) == whole


@pytest.fixture(scope="module")
def slow_videos(tmp_path_factory, way) -> Path:
    """Videos that take a while, and what an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "videos").mkdir()
    for name in "abcdef":
        write_video(folder / "videos" / f"{name}.avi", moving_texture(12, size=(120, 160)))
    done = run("extract", "videos", *way.slow, "--out", "whole", cwd=folder, program=way.program)
    assert done.returncode == 0, done.stderr
    return folder


def start(folder: Path, way: Way, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*way.program, "extract", "videos", *way.slow, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "FLOWKIT_TEST_RUN": str(folder)},
    )


def finish(folder: Path, way: Way, *more: str) -> subprocess.CompletedProcess:
    return run("extract", "videos", *way.slow, *more, cwd=folder, program=way.program)


def processes_of(folder: Path) -> list[int]:
    marker = f"FLOWKIT_TEST_RUN={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if marker in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def wait_until(condition, seconds=20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_is_as_never_stopped(slow_videos, way):
    flow = slow_videos / "killed"
    for attempt in range(way.kills):
        process = start(slow_videos, way, "--out", "killed")
        time.sleep(0.5 + 0.1 * attempt)
        process.kill()
        process.communicate()
        assert wait_until(lambda: not processes_of(slow_videos), 5), "workers outlived the run"
        for sidecar in flow.rglob("record.json"):
            if ".incomplete" not in sidecar.parts:
                name = sidecar.parent.name
                assert tree(sidecar.parent) == tree(slow_videos / "whole" / name)
    for lock in flow.glob(".incomplete/*/lock"):
        os.utime(lock, (0, time.time() - DEAD_S - 1))  # else the next run leaves them alone
    assert finish(slow_videos, way, "--out", "killed").returncode == 0
    assert tree(flow) == tree(slow_videos / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["INT", "TERM"]
)
def test_stopped_by_a_signal(slow_videos, way, signum, status):
    out = f"stopped{status}"
    process = start(slow_videos, way, "--out", out)
    assert wait_until(lambda: any((slow_videos / out).glob(".incomplete/*")))
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in errors.decode()
    assert wait_until(lambda: not processes_of(slow_videos), 5)
    assert not (slow_videos / out / ".incomplete").exists()
    assert finish(slow_videos, way, "--out", out).returncode == 0
    assert tree(slow_videos / out) == tree(slow_videos / "whole")


@pytest.mark.slow
def test_two_runs_at_once_do_not_corrupt_each_other(slow_videos, way):
    runs = [start(slow_videos, way, "--out", "shared") for _ in range(2)]
    for process in runs:
        process.communicate(timeout=60)
    assert [process.returncode for process in runs] == [0, 0]
    assert tree(slow_videos / "shared") == tree(slow_videos / "whole")


@pytest.mark.slow
def test_a_video_past_the_timeout_costs_itself_only(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.avi", moving_texture(3, size=(32, 48)))
    write_video(tmp_path / "videos" / "long.avi", moving_texture(60, size=(480, 640)))
    done = run(
        *("extract", "videos", "--method", "tvl1-opencv", "--timeout", "6", "-j", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert b"long.avi: stopped after 6 s (timeout)" in done.stderr
    assert b"3 done, 0 there already, 1 failed" in done.stderr
    assert not (tmp_path / "flow" / ".incomplete").exists()


@pytest.mark.slow
def test_a_disk_that_is_full_for_real(slow_videos, way, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = finish(slow_videos, way, "--out", str(small / "flow"))
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr
        assert b"not begun (the disk is full)" in done.stderr
        for record in (small / "flow").rglob("record.json"):
            assert tree(record.parent) == tree(slow_videos / "whole" / record.parent.name)
        assert not (small / "flow" / ".incomplete").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_frame_size_that_changes_is_an_error(tmp_path):
    frames = moving_texture(3) + moving_texture(3, size=(48, 64))
    write_motion_jpeg(tmp_path / "changes.mjpeg", frames)
    done = run_here("extract", "changes.mjpeg", "--method", "dis", cwd=tmp_path)
    assert done.returncode == 1 and b"expected frames of one size, but frame 3" in done.stderr


def hidden_opencv(folder: Path) -> dict[str, str]:
    """An environment in which importing cv2 fails as it does without libGL."""
    (folder / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file')"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "videos"],
        pytest.param(["info", "flow"], marks=pytest.mark.slow),
        pytest.param(["verify", "."], marks=pytest.mark.slow),
    ],
)
def test_missing_system_libraries_are_one_line_with_both_ways_out(workplace, tmp_path, command):
    (tmp_path / "hidden").mkdir()
    done = run(*command, cwd=workplace, env=hidden_opencv(tmp_path / "hidden"))
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert "libGL.so.1" in line and "apt-get install libgl1" in line
    assert "pip install opencv-contrib-python-headless" in line


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from flowkit_cli.main import cli; "
        "cli(['--help'], standalone_mode=False); "
        "print(*(set(sys.modules) & {'cv2', 'torch', 'numpy', 'numba', 'av', 'joblib', 'tqdm'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert all(name in done.stdout for name in COMMANDS)


def test_the_man_pages_are_what_help_says():
    written = {page.name: page.read_text(encoding="utf-8") for page in MAN.glob("*.1")}
    assert written == man_pages(), "make docs writes them again"
    assert {f"flowkit-{name}.1" for name in COMMANDS} < written.keys()


def test_the_command_line_reference_is_what_help_says():
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == reference(), "make docs writes it again"


def test_version(tmp_path):
    told = run_here("--version", cwd=tmp_path).stdout.decode()
    assert told.strip() == f"flowkit, version {flowkit.__version__}"


def test_on_windows_one_line_says_where_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "WSL2" in capsys.readouterr().err


def test_a_log_has_what_the_terminal_showed_with_times(tmp_path):
    (tmp_path / "empty").mkdir()
    log = tmp_path / "night.log"
    shown = []
    for arguments in (["--log", str(log), "info", "none"], ["info", "empty", "--log", str(log)]):
        done = run_here(*arguments, cwd=tmp_path)
        lines = (done.stdout + done.stderr).decode().splitlines()
        shown += [f"flowkit {' '.join(arguments)}", *lines]
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    said = [line[20:].removeprefix(f"flowkit {flowkit.__version__}: ") for line in lines]
    assert said == shown and len(said) == 4


def test_a_log_is_added_to_no_other_file(tmp_path, capsys, monkeypatch):
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    monkeypatch.setattr(sys, "argv", ["flowkit", "--log", str(other), "info", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and other.read_text() == "mine\n"
    assert "not a log of flowkit" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output, "log_path", tmp_path / "gone" / "a.log")
    output.say("one")
    output.say("two")
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "--log" not in line] == ["one", "two"] and len(said) == 3
