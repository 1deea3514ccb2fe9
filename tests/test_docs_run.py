"""Command lines in README, docs and help, run in a folder that holds what they name."""

import os
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from command import run_here
from made_videos import moving_texture, write_video
from test_docs_commands import command_lines

from flowkit.scores.files import read_scores, write_scores

# What cannot be run on every machine, by what tells such a line
NEEDS = {
    "a GPU": r"--gpus?\b",
    "a store": r"s3://",
    "a cluster": r"tcp://|scheduler\.json",
    "weights of other projects": r"IMAGENET1K_V1|inception-v3|i3d\b|\.mat\b|\.pth\b",
    "a network of full size": r"paper-2016|train towers --recipe paper|--layer full6",
    "minutes for its table": r"eval --cv",
    "a video of two minutes": r"--to 2:00",
    "a live stream": r"--live",
    "code of one's own": r"exec:|phase_shift|mynets:",
}
# What a line may name beside what the project has: copies of what is there
COPIES = {
    r"\b(?:split|runs-|ucf101-|hmdb51-)\d\b": "runs",
    r"\bflow(?:/ucf101|/hmdb51|-ucf|-hmdb)\b": "flow",
    r"\b(?:ucf|hmdb)\.json": "runs/split.json",
    r"(?<!/)\b(?:UCF-101|hmdb51|more|clips)(?=/)": "videos",
    r"\bmore-tracks\b": "tracks",
    r"\b(?:more-fisher|other)(?=/)": "fisher",
    r"\bruns/towers\b": "towers",
    r"\bruns/idt/svm\.npz": "idt/svm.npz",
}
# What is there already and would be in the way of what a line makes
MAKES = {
    "extract": "flow",
    "trajectories": "tracks",
    "fisher fit": "fisher",
    "split make": "runs/split.json",
    "train spatial": "runs/spatial",
    "train temporal": "runs/temporal",
    "view": "a.mp4",
}
SLURM = {
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_CPUS_PER_TASK": "2",
}
TINY = ("--steps", 2, "--batch-size", 4, "--device", "cpu", "--workers", 0)
SMALL = ("--recipe", "short", "--short-side", 36, "--crop", 32)
CLASSES = ("down_checks", "jump")
GROUPS = 8
SIZE = (72, 96)  # px: the least that HMAX takes is 68


def lines():
    """Each line once, whatever page it stands on, but for those that need what is not here."""
    found = dict.fromkeys(line for _, line in command_lines())
    return [one for one in found if not any(re.search(sign, one) for sign in NEEDS.values())]


def make_videos(folder):
    """Two classes of eight source groups, tiny; jump/a.avi is longer."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for group in range(1, GROUPS + 1):
            step = (2, 1) if number else (-1, 2)
            frames = moving_texture(18, size=SIZE, step=step, seed=group)
            write_video(folder / name / f"v_{name}_g{group:02d}_c01.avi", frames)
    write_video(folder / "jump/a.avi", moving_texture(40, size=SIZE))


def write_lists(place):
    """The split lists that the docs name, of the place's own videos."""
    videos = [path.relative_to(place / "videos") for path in sorted(place.glob("videos/*/*.avi"))]
    ucf, hmdb = place / "ucfTrainTestlist", place / "testTrainMulti_7030_splits"
    ucf.mkdir()
    hmdb.mkdir()
    numbers = {name: number for number, name in enumerate(CLASSES, 1)}
    tests = [path for path in videos if re.search("_g0[12]_", path.name)]
    trains = [path for path in videos if path not in tests]
    (ucf / "classInd.txt").write_text("".join(f"{n} {name}\n" for name, n in numbers.items()))
    (place / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split in (1, 2, 3):
        (ucf / f"testlist{split:02d}.txt").write_text("".join(f"{path}\n" for path in tests))
        (ucf / f"trainlist{split:02d}.txt").write_text(
            "".join(f"{path} {numbers[path.parent.name]}\n" for path in trains)
        )
        for name in CLASSES:
            (hmdb / f"{name}_test_split{split}.txt").write_text(
                "".join(
                    f"{path.name} {2 if path in tests else 1}\n"
                    for path in videos
                    if path.parent.name == name
                )
            )
    for file, part in (("train.txt", trains), ("val.txt", tests)):
        (place / file).write_text(
            "".join(f"{path.with_suffix('')} 13 {numbers[path.parent.name] - 1}\n" for path in part)
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which all has been done once: videos, records, runs, scores, tracks, lists."""
    place = tmp_path_factory.mktemp("project")
    make_videos(place / "videos")
    write_lists(place)

    def do(*arguments):
        done = run_here(*arguments, cwd=place)
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode()}"

    do("extract", "videos", "--backward", "-j", 1)
    do("extract", "videos", "--format", "npy", "--out", "exact", "-j", 1)
    do("split", "make", "flow")
    do("train", "spatial", *TINY, *SMALL)
    do("train", "temporal", *TINY, *SMALL)
    do("train", "towers", "--join", "sum", "--at", "relu5", *TINY)
    shutil.move(place / "runs/towers", place / "towers")  # or they would be in every fusion
    do("eval", "--views", "center", "--moments", 2)
    do("fuse", "--method", "svm")
    do("trajectories", "videos", "-j", 1)
    do("fisher", "fit", "tracks", "--gaussians", 2)
    do("fisher", "encode", "tracks")
    do("train", "svm")
    for layout in ("tsn", "mmaction2"):  # planes as other tools write them
        write_foreign(place, layout)
    shutil.copy(place / "runs/idt/scores-test.npz", place / "idt.npz")
    shutil.move(place / "runs/idt", place / "idt")
    for name in ("a.mp4", "new.mp4", "long.mp4"):
        write_video(place / name, moving_texture(40, size=SIZE))
    return place


def write_foreign(place, layout):
    """Records as another tool leaves them: rawframes of `layout`, which has that many images."""
    if not (place / "planes").exists():
        to = ("--format", "jpg", "--bound", 20)
        done = run_here("convert", "exact", "--out", "planes", *to, cwd=place)
        assert done.returncode == 0, done.stderr.decode()
    shutil.copytree(place / "planes", place / layout, ignore=shutil.ignore_patterns("*.json"))
    if layout == "tsn":
        for folder in (place / layout).glob("*/*"):
            max(folder.glob("img_*")).unlink()


def prepare(place, line, arguments):
    """Make what a line names, and clear what it makes."""
    made = {value for before, value in pairwise(["", *arguments]) if before == "--out"}
    makes_folders = line.startswith(("flowkit split make", "flowkit extract"))
    if line.startswith("flowkit convert") and "--inexact" not in line:
        (place / "flow").rename(place / "inexact")
        (place / "exact").rename(place / "flow")
    for name, source in COPIES.items():
        for found in {match[0] for match in re.finditer(name, line)} - made:
            if not (makes_folders and any(one.startswith(f"{found}/") for one in made)):
                copy(place / source, place / found)
    if "fisher score" in line:
        copy(place / "idt", place / "runs/idt")
    if "rawframes" in line:
        (place / ("tsn" if "tsn" in line else "mmaction2")).rename(place / "rawframes")
    if "--parts below" in line:
        for path in sorted(place.glob("videos/*/*.avi")):
            part = path.parent / ("test" if re.search("_g0[12]_", path.name) else "train")
            part.mkdir(exist_ok=True)
            path.rename(part / path.name)
    for start, there in MAKES.items():
        if line.startswith(f"flowkit {start}"):
            remove(place / there)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignore = shutil.ignore_patterns(target.name)
        shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)
    for path in target.glob("*/scores-*.npz") if source.name == "runs" else ():
        scores = read_scores(path)  # as of another split: a report of several has one of each
        write_scores(path, replace(scores, meta={**scores.meta, "split": target.name}))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("line", lines())
def test_a_command_line_of_the_docs_runs(project, tmp_path, line, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "place"
    shutil.copytree(project, place)
    line = os.path.expandvars(line.replace("DATA", "videos").replace("FLOW", "flow"))
    line = line.replace("RUNS", "runs")
    arguments = shlex.split(line)[1:]
    prepare(place, line, arguments)
    if arguments[0] == "train" and arguments[1] != "svm":
        arguments += TINY
    if arguments[:2] == ["fisher", "fit"]:
        arguments += ("--gaussians", 2)
    done = run_here(*arguments, cwd=place)
    assert done.returncode == 0, done.stderr.decode()
