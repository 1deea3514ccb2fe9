"""Command lines in README, docs and help: each one parses, and those of the walk are run."""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowkit.synthetic import write_videos
from flowkit_cli.main import COMMANDS, cli

LINE = re.compile(rf"\s*(?:\$ )?(flowkit (?:{'|'.join(COMMANDS)})\b.*)")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines():
    """(page, command line) of every line that begins with a command of flowkit."""
    found = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text()).replace("$n", "1")
        for before, line in pairwise(["", *text.splitlines()]):
            before = before.strip()
            if page.name == "cli.md" and before and not before.startswith(("flowkit", "find")):
                continue  # a sentence of a help text goes on
            if match := LINE.match(line):
                found[page.name, without_remark(match[1])] = None
    return list(found)


def without_remark(line):
    """The line up to a remark, which two spaces and no dash, or a #, begin."""
    parts = re.split(r"(\s{2,})", line)
    kept = parts[0]
    for gap, part in zip(parts[1::2], parts[2::2], strict=True):
        if not part.startswith("-") or part.startswith("->"):
            break
        kept += gap + part
    return re.split(r" #|; | \| | -> | > ", kept)[0].rstrip()


def parse(arguments):
    """Parse as the command line does, down to the last subcommand; nothing is run."""
    context, command = None, cli
    while True:
        context = command.make_context("flowkit", list(arguments), parent=context)
        if not isinstance(command, click.Group):
            return
        arguments = [*context._protected_args, *context.args]
        _, command, arguments = command.resolve_command(context, arguments)


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_a_command_line_of_the_docs_is_one_that_flowkit_takes(page, line, monkeypatch):
    for name, value in (("ID", 1), ("MIN", 0), ("MAX", 3), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    line = re.sub(r"\$\w+", "3", line)
    parse(shlex.split(line)[1:])


def test_the_docs_have_command_lines_and_a_wrong_one_is_seen():
    assert len(command_lines()) > 100
    assert without_remark("flowkit extract a  --gpu   on a GPU") == "flowkit extract a  --gpu"
    for wrong in (["extract", "a", "--gpuu"], ["train", "tempral"], ["view", "a"]):
        with pytest.raises(click.UsageError):
            parse(wrong)


NOT_RUN = {  # a part of a command line that needs what is not here
    "--gpu": "a GPU",
    "raft": "weights of RAFT",
    "s3://": "an object store",
    "ucf101": "UCF-101",
    "UCF-101": "UCF-101",
    "ucfTrainTestlist": "UCF-101's lists",
    "hmdb51": "HMDB-51",
    "testTrainMulti": "HMDB-51's lists",
    "slurm": "SLURM",
    "paper": "hours",
    "IMAGENET1K_V1": "a download",
    "DATA": "J-HMDB",
    "RUNS": "J-HMDB",
    "rawframes": "another tool's records",
    "train.txt": "another tool's lists",
    "runs-1": "runs of three splits",
    "split1": "runs of three splits",
    "--log": "a file of its own",
    "--live": "a live stream",
    "--dask": "a cluster",
    "--from 1:30": "a video of two minutes",
    "completion": "a shell, which its own tests have",
}
SHORTER = {  # what is added, so that a run takes seconds
    "train spatial": "--passes 1 --short-side 128 --crop 112 -j 0 --overwrite",
    "train temporal": "--passes 1 -j 0 --overwrite",
    "train towers": "--passes 1 -j 0 --overwrite",
    "eval": "--moments 3 --views center",
    "fisher fit": "--gaussians 4 --overwrite",
    "fisher encode": "--overwrite",
    "doctor": "--no-speed",
    "extract": "--overwrite --preset fast --backward",
    "predict": "--moments 3 --views center",
    "features": "--overwrite",
}
ORDER = (  # what the command lines begin with, what makes something before what takes it
    *("doctor", "extract .*--resize", "extract", "trajectories", "info", "stats"),
    *("view (flow|tracks)", "stack", "split make .*--", "split make", "split", "train spatial"),
    *("train temporal", "view", "train towers", "eval", "fisher fit", "fisher encode"),
    *("train svm", "fisher score", "fuse", "report", "verify", "features", "predict", "export"),
    *("convert", "pack", ""),
)


def rank(line):
    return next(number for number, name in enumerate(ORDER) if re.match(f"flowkit {name}", line))


def lines_to_run():
    """The different command lines that can be run here, makers before takers."""
    lines = dict.fromkeys(line for _, line in command_lines())
    return sorted((one for one in lines if not any(part in one for part in NOT_RUN)), key=rank)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with videos of two classes and some as docs call them, to work in."""
    write_videos(tmp_path / "videos", videos_per_class=8, classes=["up_checks", "down_checks"])
    name = "videos/down_checks/v_down_checks_g01_c01.mp4"
    (tmp_path / "videos/jump").mkdir()
    for copy in ("videos/jump/a.avi", "videos/jump/b.avi", "videos/jump/c.avi", "a.mp4"):
        shutil.copy(tmp_path / name, tmp_path / copy)
    shutil.copytree(tmp_path / "videos/jump", tmp_path / "more/jump")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_command_lines_of_the_docs_run(place):
    failed = []
    for line in lines_to_run():
        if "idt.npz" in line and Path("runs/idt").exists():  # scores made elsewhere
            shutil.copy("runs/idt/scores-test.npz", "idt.npz")
        more = next((more for name, more in SHORTER.items() if line[8:].startswith(name)), "")
        result = CliRunner().invoke(cli, shlex.split(f"{line} {more}")[1:])
        if result.exit_code or result.exception:
            failed.append(f"{line}: {result.exit_code} {result.exception} {result.output[-300:]}")
    assert not failed, "\n".join(failed)
