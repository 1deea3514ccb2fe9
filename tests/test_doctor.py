"""`flowkit doctor`: the facts of this machine, the problems of made ones, missing libraries."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowkit import doctor
from flowkit.doctor import Cuda, Facts, Library, OpenCV, Speed, find_problems
from flowkit.flow.methods import make_method
from flowkit.workers.machine import (
    Disk,
    Hardware,
    examine_disk,
    examine_machine,
    group_folders,
    memory_bytes,
    quota_cores,
    usable_cores,
)
from flowkit_cli.options import cores

HEALTHY = Facts(
    flowkit="0",
    python="3",
    machine=Hardware("Linux", 4, 4, None, 4, 8 << 30, 4 << 30, 4 << 30),
    disk=Disk("/flow", 100 << 30, 5_000_000, True),
    libraries=tuple(Library(needs.module, "1.0", "") for needs in doctor.LIBRARIES),
    opencv=OpenCV(True, (), 0, ("opencv-contrib-python",)),
    cuda=Cuda("", "570.124.06", "13.0", "13.0", ("a GPU",)),
    codecs=dict.fromkeys(doctor.CODECS, True),
    speeds=(Speed("tvl1", 20.0, ""),),
)

RUN = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None  # so that importing it fails
from flowkit import doctor
from flowkit_cli.main import main
doctor.SECONDS = 0.01
main()
"""


def run(blocked: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, blocked, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def without(module: str) -> Facts:
    libraries = [
        Library(one.module, None, "no such module") if one.module == module else one
        for one in HEALTHY.libraries
    ]
    return dataclasses.replace(HEALTHY, libraries=tuple(libraries))


def test_a_healthy_machine_has_no_problem():
    assert list(find_problems(HEALTHY)) == []


@pytest.mark.parametrize(
    ("facts", "what", "fix", "stops"),
    [
        (without("av"), "av cannot be imported (no such module)", "pip install av", 1),
        (without("cv2"), "cv2 cannot be imported", "-headless, which needs no system", 1),
        (without("numba"), "needed for --method tvl1", "until then --method farneback-opencv", 1),
        (without("torchvision"), "torchvision cannot be imported", "pip install torchvision", 0),
        (
            dataclasses.replace(HEALTHY, disk=Disk("/x", 100 << 30, 9, False)),
            "/x cannot be written to",
            "--out",
            1,
        ),
        (dataclasses.replace(HEALTHY, disk=Disk("/x", 0, None, True)), "is full", "make room", 1),
        (
            dataclasses.replace(HEALTHY, disk=Disk("/x", 2 << 30, None, True)),
            "has 2.0 GiB left",
            "--no-rgb",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, disk=Disk("/x", 100 << 30, 5000, True)),
            "takes 5,000 more files",
            "--pack",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, opencv=OpenCV(False, (), 0, ("opencv-python",))),
            "no contrib modules",
            "opencv-python; pip install opencv-contrib-python",
            0,
        ),
        (
            dataclasses.replace(
                HEALTHY,
                opencv=OpenCV(True, (), 0, ("opencv-contrib-python", "opencv-python")),
            ),
            "are both installed",
            "uninstall -y opencv-contrib-python opencv-python;",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, cuda=Cuda("no driver: install it", None, None, None, ())),
            "farneback-cuda: no driver",
            "install it",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, codecs={**HEALTHY.codecs, "hevc": False}),
            "cannot decode hevc",
            "pip install --force-reinstall av",
            0,
        ),
        (
            dataclasses.replace(
                HEALTHY, machine=dataclasses.replace(HEALTHY.machine, shared_bytes=64 << 20)
            ),
            "/dev/shm has 64 MiB",
            "--shm-size=8g",
            0,
        ),
        (
            dataclasses.replace(
                HEALTHY, machine=dataclasses.replace(HEALTHY.machine, shared_bytes=None)
            ),
            "/dev/shm is not there",
            "--workers 0",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, namesake="FlowKit 1.2.3"),
            "FlowKit 1.2.3, of another project",
            "pip uninstall -y FlowKit",
            0,
        ),
        (
            dataclasses.replace(HEALTHY, speeds=(Speed("tvl1", None, "boom"),)),
            "--method tvl1 fails (boom)",
            "take another method",
            1,
        ),
    ],
)
def test_each_problem_is_named_with_its_cure(facts, what, fix, stops):
    [problem] = find_problems(facts)
    assert what in problem.what and fix in problem.fix
    assert problem.stops == bool(stops)
    assert dataclasses.replace(facts, problems=(problem,)).can_extract == (not stops)


def test_what_stops_comes_first_and_methods_are_not_blamed_for_a_missing_library():
    facts = dataclasses.replace(
        without("cv2"),
        speeds=(Speed("tvl1", None, "no cv2"),),
        codecs={},
    )
    problems = list(find_problems(facts))
    assert [problem.stops for problem in problems] == [True, False]
    assert "cv2" in problems[0].what


@pytest.mark.parametrize(
    ("command", "found"),
    [("other.cli:main", "FlowKit 1.2.3"), ("flowkit_cli.main:main", None)],
)
def test_another_projects_distribution_called_flowkit_is_found(
    tmp_path, monkeypatch, command, found
):
    folder = tmp_path / "FlowKit-1.2.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: FlowKit\nVersion: 1.2.3\n")
    (folder / "entry_points.txt").write_text(f"[console_scripts]\nflowkit = {command}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.find_namesake() == found
    folder.rename(tmp_path / "elsewhere")
    assert doctor.find_namesake() is None


def test_the_facts_of_this_machine():
    machine, disk = examine_machine(), examine_disk(Path("no/such/folder"))
    assert machine.allowed_cores == len(os.sched_getaffinity(0)) >= machine.usable_cores >= 1
    assert 0 < machine.free_bytes <= machine.memory_bytes
    assert (disk.path, disk.writable) == (str(Path.cwd()), os.access(".", os.W_OK))
    assert disk.free_bytes > 0


def test_no_record_can_be_written_where_a_file_stands(tmp_path):
    (tmp_path / "flow").write_text("")
    assert examine_disk(tmp_path / "other").writable
    assert not examine_disk(tmp_path / "flow").writable
    assert not examine_disk(tmp_path / "flow" / "deep").writable


@pytest.mark.parametrize(
    ("own", "files", "granted", "total"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5, 1000),
        ("0::/a\n", {"a/cpu.max": "300000 100000", "cpu.max": "50000 100000"}, 0.5, 1000),
        ("0::/not/mounted\n", {"cpu.max": "200000 100000"}, 2.0, 1000),
        ("0::/\n", {"memory.max": "524288", "memory.current": "102400"}, None, 512),
        ("0::/\n", {"memory.max": "max", "memory.current": "102400"}, None, 1000),
        (
            "4:cpu,cpuacct:/x\n5:memory:/x\n",
            {
                "cpu/x/cpu.cfs_quota_us": "250000",
                "cpu/x/cpu.cfs_period_us": "100000",
                "memory/x/memory.limit_in_bytes": "524288",
                "memory/x/memory.usage_in_bytes": "102400",
            },
            2.5,
            512,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}, None, 1000),
    ],
)
def test_limits_of_control_groups_of_both_versions(tmp_path, own, files, granted, total):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")

    def folders(controller):
        return group_folders(controller, groups=tmp_path / "fs", own_group=tmp_path / "own")

    assert quota_cores(folders("cpu")) == granted
    meminfo = "MemTotal:  1000 kB\nMemAvailable:  700 kB\n"
    free = 700 if total == 1000 else 412
    assert memory_bytes(meminfo, folders("memory")) == (total * 1024, free * 1024)


def test_cores_and_memory_are_counted_once(monkeypatch):
    """By what extraction starts, what training takes, and what doctor tells."""
    from flowkit.training.micro_batch import _free_bytes

    machine = examine_machine()
    assert usable_cores() == machine.usable_cores == cores()
    monkeypatch.setattr("flowkit.workers.machine.memory_bytes", lambda *_: (9, 7))
    assert _free_bytes() == examine_machine().free_bytes == 7
    monkeypatch.setattr("flowkit.workers.machine.quota_cores", lambda _: 0.5)
    assert cores() == examine_machine().usable_cores == 1


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun 6", "535.54.03"),
        ("NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build", "570.124.06"),
        ("nothing", None),
    ],
)
def test_the_driver_release_is_read(text, release):
    assert doctor.driver_release(text) == release


@pytest.mark.slow
def test_the_made_pair_moves_and_a_method_is_measured_on_it():
    first, second, third = doctor.made_frames(3)
    assert (first.shape, first.dtype, first.std() > 20) == (doctor.SIZE, np.uint8, True)
    down, along = doctor.SHIFT
    assert (first[down:, along:] == second[:-down, :-along]).all()
    assert (first == third).all() and not np.shares_memory(first, third)
    assert doctor.measure_speed(make_method("dis", preset="ultrafast")) > 1


def test_everything_is_told_as_text_and_as_json(tmp_path):
    done = run("torch torchvision", "--out", str(tmp_path / "flow"), "--no-speed")
    assert done.returncode == 0, done.stderr
    for part in ("cores", "memory", "/dev/shm", "GiB", "decodes h264", "import of torch halted"):
        assert part in done.stdout
    assert "stops extract" not in done.stdout and "Pairs/s" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("flowkit extract can run here, with ")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("blocked", ["cv2", "av", "numba", "numpy cv2 av numba"])
def test_a_missing_library_is_told_and_stops_extract(tmp_path, blocked):
    done = run(f"{blocked} torch torchvision", "--out", str(tmp_path), "--json")
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout)
    missing = {one["module"] for one in facts["libraries"] if one["version"] is None}
    assert {*blocked.split(), "torch", "torchvision"} <= missing
    stopping = [one["what"] for one in facts["problems"] if one["stops"]]
    assert [text.split()[0] for text in stopping] == blocked.split()
    assert not facts["can_extract"]
    rates = {one["method"]: one["pairs_per_s"] for one in facts["speeds"]}
    assert (rates["dis"] is not None) == (blocked in ("av", "numba"))
    assert (rates["tvl1"] is not None) == (blocked == "av")


@pytest.mark.slow
def test_a_broken_torchvision_is_told_and_extract_still_runs(tmp_path):
    """A torchvision of another torch raises RuntimeError as it is imported."""
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flowkit_cli.main", "doctor", "--no-speed", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    [problem] = [one for one in json.loads(done.stdout)["problems"] if "torchvision" in one["what"]]
    assert "operator torchvision::nms does not exist" in problem["what"]


KEPT = """
import resource
import numpy as np
from flowkit.workers.machine import keep_freed_memory

def faults_of_second():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(50 << 20, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults_of_second()
keep_freed_memory()
print(before, faults_of_second())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_there_for_the_next_block():
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    out = subprocess.run(
        [sys.executable, "-c", KEPT], env=environment, check=True, capture_output=True, text=True
    ).stdout
    before, after = (int(number) for number in out.split())
    assert before > 10_000 and after < 100  # pages of 4 KiB that the kernel had to give
