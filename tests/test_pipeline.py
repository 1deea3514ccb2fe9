"""The whole way that `make demo` goes, from videos to a report, with fewer videos and steps."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flowkit.scores.files import read_scores

PROJECT = Path(__file__).parents[1]
SMALLER = {
    "--videos-per-class": "6", "--resize": "48", "--short-side": "40", "--crop": "32",
    "--steps": "2", "--moments": "2",
}  # fmt: skip


def demo_commands() -> list[list[str]]:
    """The Python and flowkit commands of `make demo`, as lists of words."""
    recipe = (PROJECT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    lines = recipe.replace("\\\n", " ").splitlines()[1:]
    commands = [shlex.split(line) for line in lines if line.lstrip().startswith("$(BIN)/")]
    for words in commands:
        for option, value in SMALLER.items():
            if option in words:
                words[words.index(option) + 1] = value
    return commands


pytestmark = pytest.mark.slow  # the whole demo, a minute


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which the demo's commands ran, and what each printed, by its second word."""
    folder, printed = tmp_path_factory.mktemp("demo"), {}
    for program, *words in demo_commands():
        module = [] if program.endswith("python") else ["-m", "flowkit_cli"]
        done = subprocess.run(
            [sys.executable, *module, *words], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        printed[" ".join(words[:2]) if words[0] == "train" else words[0]] = done.stdout
    return folder / "demo", printed


def test_the_demo_goes_through_every_command(demo):
    _, printed = demo
    assert list(printed) == [
        "-m", "extract", "verify", "view", "train spatial", "train temporal",
        "eval", "fuse", "predict", "report",
    ]  # fmt: skip


def test_every_test_video_is_scored_by_every_stream_and_by_the_fusion(demo):
    folder, _ = demo
    split = json.loads((folder / "runs" / "split.json").read_text())
    expected = {Path(video["id"]).name for video in split["test"]}
    assert len(expected) >= 10
    for name in ("spatial", "temporal", "fused"):
        scores = read_scores(folder / "runs" / name / "scores-test.npz")
        assert {Path(video).name for video in scores.videos} == expected
        assert scores.values.shape == (len(expected), 10)


def test_the_fusion_is_the_average_of_the_streams(demo):
    folder, _ = demo
    spatial, temporal, fused = (
        read_scores(folder / "runs" / name / "scores-test.npz")
        for name in ("spatial", "temporal", "fused")
    )
    of = dict(zip(temporal.videos, temporal.values, strict=True))
    average = dict(zip(spatial.videos, spatial.values, strict=True))
    average = {video: (values + of[video]) / 2 for video, values in average.items()}
    for video, values in zip(fused.videos, fused.values, strict=True):
        assert values == pytest.approx(average[video], abs=1e-6)


def test_the_report_has_a_row_for_each_stream_and_the_fusion(demo):
    folder, printed = demo
    for name in ("spatial", "temporal", "fused"):
        assert re.search(rf"^{name} +\d+\.\d \[", printed["report"], re.MULTILINE)
        assert name in (folder / "runs" / "report.html").read_text()


def test_predict_agrees_with_the_fused_scores_of_the_same_video(demo):
    folder, printed = demo
    name, _, most_likely = printed["predict"].strip().splitlines()[-1].partition(": ")
    best, percent = most_likely.split(", ")[0].rsplit(" ", 1)
    fused = read_scores(folder / "runs" / "fused" / "scores-test.npz")
    row = fused.values[[Path(video).name for video in fused.videos].index(Path(name).stem)]
    assert fused.classes[row.argmax()] == best
    # the video itself against its record, whose frames are JPEG
    assert float(percent.rstrip("%")) / 100 == pytest.approx(row.max(), abs=0.02)
    assert (folder / "predicted.mp4").stat().st_size > 1000
