"""Every benchmark runs at its smallest size, on made data, and ends in one line where it cannot."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_videos import moving_texture, write_video

from flowkit._cv2 import cv2
from flowkit.fields import write_flo

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

SIZE = (48, 64)  # (H, W), px of the made clips
TIMEOUT_S = 900  # far more than any takes, also on a busy machine

pytestmark = pytest.mark.slow


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    paths = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": paths, "FLOWKIT_DATA": "/nowhere"},
    )


def figures(done: subprocess.CompletedProcess) -> dict:
    """The JSON object at the end of what a benchmark printed."""
    assert done.returncode == 0, done.stderr[-2000:]
    start = 0 if done.stdout.startswith("{") else done.stdout.rindex("\n{") + 1
    return json.loads(done.stdout[start:])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with the names of the real clips' folder, of made clips."""
    from tvl1_cpu import PAIRS, SCENES

    root = tmp_path_factory.mktemp("data")
    last = max(index for *_, index in PAIRS)
    texture = moving_texture(8, size=SIZE)
    clip = write_video(root / "clip.avi", [texture[t % 8] for t in range(last + 2)])
    for _, name, _ in PAIRS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, root / name)
    for scene in SCENES:
        folder = root / "middlebury" / scene
        folder.mkdir(parents=True)
        for name, frame in zip(("frame10.png", "frame11.png"), texture, strict=False):
            cv2.imwrite(str(folder / name), frame)
        write_flo(folder / "flow10.flo", np.full((*SIZE, 2), (2, 1), np.float32))
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two short videos of eight frames."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        write_video(folder / f"v{seed}.avi", moving_texture(8, size=SIZE, seed=seed))
    return folder


def test_quantization(videos):
    done = run("quantization.py", videos, "--method", "dis", "--fields", 2)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    png, *_ = (row for row in rows if row[1].strip() == "png" and "own" in row[0])
    assert len(rows) == 1 + 2 * 5 and 0 < float(png[3]) < 0.1


def test_extract(data):
    done = run(
        "extract.py", data, "--method", "dis", "--clips", 1, "--rounds", 1, "--large-frames", 2
    )
    found = figures(done)
    assert found["1920x1080"]["frames"] == 2 and found["320x240"]["ratio"] > 0
    assert sum(found["320x240"]["flowkit_share"].values()) == pytest.approx(1, abs=0.01)


def test_cluster():
    small = ("--seeds", 2, "--short", 10, "--rounds", 1, "--videos", 2, "--frames", 3)
    found = figures(run("cluster.py", "kills", "cost", "speed", "memory", *small))
    assert found["kills"]["same_bytes"] == found["kills"]["all_done"] == 2
    assert found["cost"]["frames"] == 6 and 0 < found["cost"]["own_share_median"] < 1
    assert found["speed"]["ratio_of_medians"] > 0
    assert found["memory"]["done"] == 10 and len(found["memory"]["rows_done_client_workers_mb"]) > 5


@pytest.mark.skipif(
    shutil.which("slurmctld", path="/usr/sbin:/sbin") is None or os.geteuid() != 0,
    reason="needs Debian's slurm-wlm and munge, and root",
)
def test_slurm():
    found = figures(run("slurm.py", "srun", "--frames", 20))
    assert found["srun"]["same_bytes"] is True


def test_extract_gpu_with_the_processor_in_its_place():
    found = figures(run("extract_gpu.py", "--device", "cpu", "--cores", 2, "--frames", 40))
    assert found["clips"] == "synthetic" and found["frames_per_s"] > 0


def test_tvl1_cpu(data):
    found = figures(run("tvl1_cpu.py", data, "--repeats", 1))
    assert found["parity"]["opencv"]["mean_px"] < 0.1


def test_farneback_cpu(data):
    done = run("farneback_cpu.py", data, "--repeats", 1, "--size", 64, 48)
    assert figures(done)["default"]["equal_values"] == 1


@pytest.fixture
def flow_sample(data, tmp_path, monkeypatch) -> Path:
    """Two clips and the scenes, for the comparison of flow methods."""
    import flow_methods

    monkeypatch.setattr(flow_methods, "PAIRS", flow_methods.PAIRS[:2])
    monkeypatch.setattr(flow_methods, "SIZE", SIZE)
    flow_methods.write_sample(tmp_path / "sample.npz", flow_methods.make_sample(data))
    return tmp_path / "sample.npz"


def test_flow_methods(flow_sample, tmp_path):
    from tvl1_cpu import SCENES

    out = tmp_path / "report.json"
    names = ["tvl1-opencv", "farneback", "brox-opencv-cuda", "dis:ultrafast"]
    options = ("--seconds", 0, "--rounds", 2, "--out", out)
    found = figures(run("flow_methods.py", flow_sample, "--methods", *names, *options))
    assert found == json.loads(out.read_text()) and found["clips"] == 2
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == names and "OpenCV built with CUDA" in rows["brox-opencv-cuda"]["error"]
    assert rows["tvl1-opencv"]["to_tvl1_px"] == {"mean": 0, "worst": 0}
    assert rows["farneback"]["pairs_per_s"] > 0 and len(rows["dis:ultrafast"]["rounds"]) == 2
    assert set(rows["farneback"]["ground_truth_px"]) == set(SCENES)
    assert found["same"] == {"farneback to farneback-opencv": {"mean": 0, "worst": 0}}


def test_flow_methods_without_time_say_so(flow_sample):
    found = figures(run("flow_methods.py", flow_sample, "--methods", "dis", "--limit", 0))
    assert found["methods"] == [{"method": "dis", "error": "no time was left"}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_without_training_gives_fields(dtype):
    from flow_methods import named

    frames = moving_texture(4, size=(128, 136))
    grays = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    fields = list(named(f"raft_small:{dtype}:2").fields([(grays[0], one) for one in grays[1:]]))
    assert [(field.shape, field.dtype) for field in fields] == [((128, 136, 2), np.float32)] * 3


def test_check_clips(data, tmp_path):
    assert run("check_clips.py", data).returncode == 1  # the tables of clips are not there
    for name, right in (("jhmdb10", 8), ("ucf101", 9)):
        (tmp_path / name / "a").mkdir(parents=True)
        write_video(tmp_path / name / "a" / "v.avi", moving_texture(8))
        table = f"file,class,decoded_frames\nv.avi,a,{right}\n"
        (tmp_path / name / "clips.csv").write_text(table)
    done = run("check_clips.py", tmp_path)
    assert done.returncode == 1
    assert "2 clips, 16 frames: 0 false alarms, 1 wrong counts" in done.stdout


def test_jpeg_decoding_on_the_processor():
    assert figures(run("jpeg_gpu.py", "--device", "cpu", "--clips", 1))["most_levels_apart"] < 8


def test_stacks():
    assert figures(run("stacks.py", "--batch", 1))


def test_stabilize(videos, tmp_path):
    out = tmp_path / "stabilize.json"
    [clip, *_] = sorted(videos.rglob("*.*"))
    done = run("stabilize.py", clip, "--pairs", 1, "--rounds", 1, "--resize", "64", "--json", out)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert {"tvl1", "dis"} < {row["method"] for row in rows}
    assert all(min(row["ms_per_pair"].values()) > 0 for row in rows)


def test_training():
    options = ("--device", "cpu", "--net", "small", "--batch", 2, "--steps", 1)
    assert figures(run("training.py", *options))["clips_a_second"]["together"] > 0


def test_loader(tmp_path):
    out = tmp_path / "loader.json"
    done = run("loader.py", "--videos", 2, "--batches", 1, "--batch", 2, "--json", out)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["records"] == 2 and found["to_plain"]["reading"]["lz4 pack"] > 0


def test_host(tmp_path):
    report = tmp_path / "host.json"
    done = run("host.py", "--videos", 2, "--rounds", 1, "--json", report)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(report.read_text())
    titles = {"start", "whole frame", "frame", "clip"}
    assert set(found) == titles | {"bytes_a_plane", "load_average"}
    assert all(time > 0 for title in titles for time in found[title].values())
    assert "take" in done.stdout and "from lz4 packs" in done.stdout


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> Path:
    """Two classes in the form of J-HMDB's folder: lists, and records in ``flow``."""
    from flowkit import synthetic

    root = tmp_path_factory.mktemp("jhmdb10")
    classes = ("spin_checks", "up_checks")
    made = synthetic.write_videos(root / "videos", videos_per_class=12, classes=classes)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for video in made:
        part = "test" if "_g01_" in video.name else "train"
        lists[part].append(f"{video.class_name}/{video.path.name}")
    (root / "jhmdb10_classInd.txt").write_text("1 spin_checks\n2 up_checks\n")
    for part, lines in lists.items():
        (root / f"jhmdb10_{part}list01.txt").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "flowkit_cli.main", "extract", str(root / "videos"), "--out",
         str(root / "flow"), "--method", "dis", "--resize", "128", "--pack", "--format", "lz4"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


def test_jhmdb10(data_set, tmp_path):
    out = tmp_path / "found.json"
    done = run(
        "jhmdb10.py", data_set / "flow", data_set, "--runs", tmp_path / "runs", "--steps", 1,
        "--moments", 1, "--device", "cpu", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["videos"]["test"] == 4
    assert set(found["test"]) == {"spatial", "temporal", "average", "svm"}


def test_reproduce(data_set, tmp_path):
    done = run(
        "reproduce.py", data_set, "--frames", data_set / "flow", "--flow",
        f"dis={data_set / 'flow'}", "--only", "temporal-L1,hmax,hmax-c3", "--runs",
        tmp_path / "runs", "--results", tmp_path / "found", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| 4 | HMAX, mean of C2, linear SVM |" in done.stdout
    assert json.loads((tmp_path / "found/temporal-L1.json").read_text())["test"]["videos"] == 4
    assert "| 1b | temporal, L = 1 |" in done.stdout


def test_reproduce_joined_towers(data_set, tmp_path):
    done = run(
        "reproduce.py", data_set, "--frames", data_set / "flow", "--flow",
        f"dis={data_set / 'flow'}", "--only",
        "towers-spatial,temporal-L10,towers-bilinear,towers-kept,towers-pool3d", "--runs",
        tmp_path / "runs", "--results", tmp_path / "found", "--device", "cpu", "--trajectories",
        tmp_path / "runs/temporal-L10/scores-test.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("towers-bilinear", "towers-pool3d", "towers-idt"):
        cell = json.loads((tmp_path / f"found/{name}.json").read_text())
        assert cell["test"]["videos"] == 4
        assert name == "towers-idt" or (cell["heldout"]["videos"], cell["processor_s"] > 0) == (
            20,
            True,
        )
    assert "| 2016 | towers, 1: bilinear at relu5, SVM |" in done.stdout
    assert "flow by raft |  |  |  | not computed" in done.stdout
    assert "| 2016 | towers, 6: conv at relu5, temporal kept, and trajectories |" in done.stdout


GPU_PROFILE = """
from dataclasses import replace
import reproduce
from reproduce_cells import PROFILES, TestViews
gpu = PROFILES["gpu"]
small = {"scratch_recipe": "short", "scratch_net": "small", "scratch_sizes": (64, 56)}
numbers = {"scratch_steps": {"spatial": 1}, "tuned_passes": {"temporal": 1}}
looks = {name: TestViews(1) for name in ("views", "sample_views")}
sizes = {"sizes": {stream: (64, 56) for stream in gpu.sizes}}
machine = replace(gpu.machine, workers=1)
PROFILES["gpu"] = replace(gpu, **small, **numbers, **looks, **sizes, machine=machine)
reproduce.main()
"""


def test_reproduce_of_hmdb51_lists_as_on_gpus(data_set, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("spin_checks", "up_checks"):
        files = sorted((data_set / "videos" / name).iterdir())
        lines = [f"{file.name} {2 if '_g01_' in file.name else 1} " for file in files]
        (lists / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n")
    rows = ("spatial-scratch", "temporal-fine-tune", "towers-spatial", "temporal-L10",
            "towers-pool3d")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", GPU_PROFILE, lists, "--frames", data_set / "flow", "--flow",
         f"dis={data_set / 'flow'}", "--only", ",".join(rows), "--runs", tmp_path / "runs",
         "--results", tmp_path / "found", "--device", "cpu", "--profile", "gpu"],
        capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in rows:
        found = json.loads((tmp_path / f"found/{name}.json").read_text())
        assert (found["split"], found["test"]["videos"]) == ("hmdb51-1", 4)


def test_faults(tmp_path):
    small = "faults.FLIPS = faults.HOSTILE = 3; faults.RACES = faults.SYNC_PAIRS = 1"
    source = f"import faults; {small}; faults.FREE_KB = range(0, 16, 8); faults.main()"
    done = subprocess.run(
        [sys.executable, "-c", source, "--write", str(tmp_path / "page.md")],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 25 and sum(int(tried) for _, _, tried, *_ in rows) > 200
    assert {int(wrong) for *_, wrong, _ in rows} == {0}
    assert rows[-1][1] in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_every_benchmark_has_its_test():
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    files = (ROOT / "benchmarks").glob("*.py")
    scripts = {path.name for path in files if '__name__ == "__main__"' in path.read_text("utf-8")}
    used = {
        name for name in scripts
        for text in tests
        if f'"{name}"' in text or re.search(rf"\b(import|from) {name[:-3]}\b", text)
    }  # fmt: skip
    assert scripts - used == set()


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("quantization.py", (), "no such file or folder"),
        ("extract.py", (), "set FLOWKIT_DATA"),
        ("tvl1_cpu.py", (), "set FLOWKIT_DATA"),
        ("farneback_cpu.py", (), "set FLOWKIT_DATA"),
        ("check_clips.py", (), "set FLOWKIT_DATA"),
        ("jhmdb10.py", ("/nowhere/flow", "/nowhere"), "/nowhere"),
        ("loader.py", ("/nowhere",), "no such folder of flow records"),
        ("reproduce.py", ("/nowhere", "--frames", "a", "--flow", "b=c"), "/nowhere"),
        ("reproduce.py", ("a", "--frames", "a", "--flow", "b=c", "--tables", "1a,9"), "got 9"),
        ("idt_cpu.py", ("/nowhere",), "/nowhere: expected DenseTrackStab.cpp"),
        ("idt_jhmdb10.py", ("/nowhere", "/nowhere", "/nowhere"), "/nowhere/clips.csv"),
    ],
)
def test_missing_data_is_one_line(script, arguments, words):
    done = run(script, *arguments)
    assert done.returncode and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tvl1_gpu.py", ()),
        ("gpu_check.py", ()),
        ("extract_gpu.py", ()),
        ("jpeg_gpu.py", ()),
        ("stacks.py", ("--device", "cuda")),
        ("training.py", ("--device", "cuda")),
        ("flow_methods.py", ("--gpu",)),
    ],
)
def test_a_missing_gpu_is_one_line(script, arguments):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run(script, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_the_first_field_of_a_process_uses_names_that_there_are():
    import tvl1_gpu

    imports, _, _ = tvl1_gpu.FIRST_FIELD.partition("frames =")
    scope: dict[str, object] = {}
    exec(imports, scope)
    assert scope["CudaTVL1"]


def test_mutation_without_coverage_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    import mutation

    monkeypatch.setattr(mutation.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["mutation.py", str(tmp_path / "work")])
    with pytest.raises(SystemExit):
        mutation.main()
    assert "pip install coverage" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_mutation_draws_by_its_seed_over_all_operators_and_parts():
    import mutation_edits

    drawn = mutation_edits.draw(ROOT, 1, 100)
    assert drawn == mutation_edits.draw(ROOT, 1, 150)[:100]
    assert drawn != mutation_edits.draw(ROOT, 2, 100)
    assert len({mutant.name for mutant in drawn}) == 100
    assert {mutant.part for mutant in drawn} == set(mutation_edits.PARTS)
    operators = Counter(mutant.operator for mutant in drawn)
    assert len(operators) == 14 and max(operators.values()) - min(operators.values()) <= 1


PROBE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutation, mutation_edits, mutation_forks, mutation_reach
work = Path(sys.argv[2])
mutation.own_tree(work)
mutation_forks.TEST_S = 15.0
tests = mutation_reach.tests_of(work)
for mutant in mutation_edits.find_mutants("records", work / "tree/flowkit/records/part.py"):
    found = mutation.judge(work, mutant, tests, 40.0)
    print(mutant.old, mutant.text, found["how"] or "survived", sep=" -> ")
"""


def test_mutation_tells_what_tests_see_from_what_they_do_not(tmp_path):
    pytest.importorskip("coverage", reason="needs coverage: pip install coverage")
    source = "def larger(a, b):\n    while a < b:\n        a += 1\n    return a\n"
    test = "def test_larger():\n    assert larger(1, 3) == 3\n"
    for name, text in {
        "flowkit/__init__.py": "",
        "flowkit/records/__init__.py": "",
        "flowkit/records/part.py": source,
        "tests/test_part.py": f"from flowkit.records.part import larger\n\n{test}",
    }.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ROOT / "benchmarks", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.splitlines()[1:]) == {
        "a < b -> (a <= b) -> failed",
        "a < b -> (a >= b) -> failed",
        "a < b -> (not a < b) -> failed",
        "a += 1 -> pass -> hung",
        "1 -> (2) -> survived",  # 1 + 2 is 3, too
        "a -> (None) -> failed",
    }


def test_stats_says_what_it_took():
    done = run("stats.py", "--records", 12)
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"12 records, 0 MB of sidecars: [\d.]+ s of wall clock, [\d.]+ s of proc", done.stdout
    )


def test_stores_tells_the_memory_of_a_run_and_of_a_listing(tmp_path):
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'flowkit-video[s3]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    out = tmp_path / "stores.json"
    done = run("stores.py", "--videos", 4, "--keys", 2500, "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {found[what]["keys"] for what in ("listed", "found", "planned")} == {2500}
    assert max(client for client, _ in found["tenths"]) > 10  # MB


def test_the_memory_of_a_timeline_is_told():
    done = run("timeline.py", "--minutes", 1.2)
    assert done.returncode == 0, done.stderr
    found = re.match(r"1\.2 min of video, 35 windows .*: ([-+][\d.]+)%", done.stdout)
    assert found and abs(float(found[1])) < 20
