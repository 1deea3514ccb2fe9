"""`flowkit train`: from the options to the job, and a stopped run to its exit status."""

import math
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_training import CLASSES, make_split, write_videos

from flowkit._cv2 import cv2
from flowkit.data.frames import FrameForm
from flowkit.data.splits import read_split, write_split
from flowkit.errors import FlowkitError, InstallError, RecordError, SplitError, UsageError
from flowkit.networks.checkpoints import LAST, read_checkpoint, read_tensors
from flowkit.training.log import StepReport
from flowkit_cli import train_runs
from flowkit_cli.train import train

TINY = [
    "--L",
    "2",
    "--recipe",
    "short",
    "--short-side",
    "36",
    "--crop",
    "32",
    "--batch-size",
    "8",
    "-j",
    "0",
]
MAIN = """
from flowkit_cli import main
main.COMMANDS.setdefault("train", "Train a stream.")
main.main()
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records") / "flow", per_class=8)


@pytest.fixture
def place(records, tmp_path, monkeypatch):
    """A folder with records in flow/, to work in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(records.root, tmp_path / "flow")
    return tmp_path


def flowkit_train(*arguments):
    result = CliRunner().invoke(train, [str(one) for one in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def job_of(monkeypatch, place):
    """The job that options make, instead of training."""
    jobs = []
    monkeypatch.setattr(train_runs, "_run", lambda job, *_: jobs.append(job))

    def make(*arguments):
        flowkit_train(*arguments)
        return jobs.pop()

    return make


def test_a_run_elsewhere_is_named_in_the_command_that_scores_it(place):
    result = flowkit_train("temporal", *TINY, "--steps", 1, "--out", "other runs/a")
    assert result.stdout.rstrip().endswith("next: flowkit eval 'other runs/a'")


def test_both_streams_train_where_they_are_expected(place):
    result = flowkit_train("temporal", *TINY, "--steps", 4)
    assert result.stdout.startswith("runs/temporal: best at step ")
    assert "of 3 held-out videos; next: flowkit eval" in result.stdout
    assert "runs/split.json: written" in result.stderr
    assert "on cpu; processes: 1, loader workers of each: 0" in result.stderr
    assert "held out" in result.stderr
    made = {path.name for path in (place / "runs/temporal").iterdir()}
    assert made >= {"best.json", "last.json", "log.csv", "curves.svg", "split.json"}

    split = read_split(place / "runs/split.json")
    assert split.heldout
    assert not split.straddling_groups()
    flowkit_train("spatial", *TINY[2:], "--steps", 2)
    assert read_split(place / "runs/spatial/split.json") == split
    assert read_checkpoint(place / "runs/spatial").inputs == {"spatial": FrameForm()}


def test_a_run_is_prolonged_without_repeating_an_option(place):
    same = (*TINY, "--lr", 0.02, "--drop-at", 3, "--warmup-steps", 0, "--eval-every", 2)
    flowkit_train("temporal", *same, "--steps", 6, "--runs", "straight")
    flowkit_train("temporal", *same, "--steps", 4)
    result = flowkit_train("temporal", "--resume", "--steps", 6, "-j", 0)
    assert "runs/temporal: goes on at step 4 of 6" in result.stderr
    assert "as it was begun" in result.stderr
    weights = [
        read_tensors(place / run / "temporal" / LAST, "weights") for run in ("straight", "runs")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

    assert "goes on at step 6 of 6" in flowkit_train("temporal", "--resume").stderr
    with pytest.raises(UsageError, match="6 steps cannot be cut to 5"):
        flowkit_train("temporal", "--resume", "--steps", 5)
    with pytest.raises(UsageError, match="was begun otherwise"):
        flowkit_train("temporal", "--resume", "--lr", 0.5)


def test_records_that_moved_are_named_to_go_on(place):
    flowkit_train("temporal", *TINY, "--steps", 2)
    (place / "flow").rename(place / "moved")
    with pytest.raises(FlowkitError, match="flow"):
        flowkit_train("temporal", "--resume", "--steps", 3)
    flowkit_train("temporal", "--resume", "--steps", 3, "--records", "moved", "-j", 0)
    assert read_checkpoint(place / "runs/temporal").training["places"]["main"]["root"] == str(
        place / "moved"
    )


def test_a_dry_run_counts_and_writes_nothing(place):
    result = flowkit_train("temporal", *TINY, "--micro-batch", 3, "--dry-run")
    assert "392,483 parameters, 392,483 of them learn at first" in result.stdout
    assert "passes of a step: 3, of at most 3 clips" in result.stdout
    assert "h) for 1,500 steps; nothing was written" in result.stdout
    assert [path.name for path in place.iterdir()] == ["flow"]


def test_the_papers_recipe_takes_the_papers_network_and_sizes(job_of):
    job = job_of("temporal", "--recipe", "paper")
    assert (job.net, job.shapes, job.recipe.steps) == ("cnn-m-2048", [(20, 224, 224)], 80_000)
    assert (job.augmentation.short_side, job.recipe.mode) == (256, "scratch")
    job = job_of("spatial", "--recipe", "short", "--net", "cnn-m-2048")  # takes no other size
    assert (job.shapes, job.recipe.batch_size) == ([(3, 224, 224)], 64)


def test_the_default_recipe_is_the_last_layer_on_weights_of_imagenet(job_of):
    job = job_of("temporal")
    assert (job.net, job.weights, job.first_layer) == ("efficientnet-lite0", "imagenet", "shared")
    assert (job.recipe.mode, job.shapes) == ("last-layer", [(20, 112, 112)])
    videos = len(job.tasks[0].split.train)
    assert job.recipe.steps == math.ceil(20 * videos / 32)
    assert job_of("spatial").shapes == [(3, 224, 224)]
    assert job_of("spatial", "--passes", 64).recipe.steps == 2 * videos
    scratch = job_of("temporal", "--mode", "scratch")
    assert (scratch.weights, scratch.net) == (None, "efficientnet-lite0")
    tuned = job_of("spatial", "--mode", "fine-tune")
    assert (tuned.weights, tuned.recipe.mode) == ("imagenet", "fine-tune")
    assert tuned.recipe.frozen_statistics and tuned.recipe.trunk_rate < 1


def test_a_training_begins_with_its_network_and_how_to_get_the_papers(place):
    result = flowkit_train("temporal", *TINY, "--steps", 1)
    first, second, third = result.stderr.splitlines()[1:4]
    for fact in ("temporal", "recipe short", "small, 392,483 parameters", "mode scratch"):
        assert fact in first
    assert "4 channels of 32x32 px; L = 2, flow stacking" in second
    assert third.endswith("--recipe paper")


def test_a_network_of_timm_is_a_choice_and_another_is_refused(monkeypatch, place):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InstallError, match="networks of timm need it"):
        flowkit_train("spatial", "--net", "timm/resnet18")
    result = CliRunner().invoke(train, ["spatial", "--net", "resnet19"])
    assert (result.exit_code, "'resnet19' is not one of" in result.output) == (2, True)


def test_steps_and_passes_together_are_refused(job_of):
    with pytest.raises(UsageError, match="expected passes or steps"):
        job_of("temporal", "--steps", 9, "--passes", 2)


def test_weights_are_fine_tuned_unless_told_otherwise(job_of):
    assert job_of("spatial", "--weights", "x.pth").recipe.mode == "fine-tune"
    job = job_of("spatial", "--weights", "x.pth", "--mode", "last-layer", "--recipe", "paper")
    assert (job.recipe.mode, job.recipe.steps) == ("last-layer", 20_000)
    assert job.recipe.drop_at == (14_000,)


def test_every_number_of_the_recipe_is_an_option(job_of):
    numbers = ["--steps", 9, "--batch-size", 5, "--lr", 0.5, "--drop-at", "3,6"]
    numbers += ["--drop-factor", 0.2]
    numbers += ["--momentum", 0.8, "--weight-decay", 0.1, "--dropout", 0.3, "--warmup-steps", 2]
    numbers += ["--clip-norm", 7, "--first-phase-steps", 4, "--top-blocks", 3, "--eval-every", 1]
    numbers += ["--segments", 3, "--trunk-rate", 0.1, "--schedule", "cosine"]
    recipe = job_of("spatial", *numbers, "--frozen-statistics").recipe
    assert (recipe.segments, recipe.trunk_rate, recipe.schedule) == (3, 0.1, "cosine")
    assert recipe.frozen_statistics
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (9, 5, 0.5)
    assert (recipe.drop_at, recipe.drop_factor, recipe.momentum) == ((3, 6), 0.2, 0.8)
    assert (recipe.weight_decay, recipe.dropout, recipe.warmup_steps) == (0.1, 0.3, 2)
    assert (recipe.clip_norm, recipe.first_phase_steps, recipe.top_blocks) == (7, 4, 3)
    assert recipe.eval_every == 1
    assert job_of("spatial", "--drop-at", "none").recipe.drop_at == ()


def test_the_form_of_the_stack_is_told(job_of):
    form = job_of("temporal", "--stacking", "trajectory", "--bidirectional", "--L", 4).inputs[
        "temporal"
    ]
    assert (form.length, form.mode, form.bidirectional, form.mean_subtract) == (
        4,
        "trajectory",
        True,
        True,
    )
    assert not job_of("temporal", "--no-mean-subtract").inputs["temporal"].mean_subtract


def test_sizes_and_dropout_follow_the_network(job_of):
    job = job_of("spatial", "--net", "resnet18", "--weights", "IMAGENET1K_V1")
    assert (job.shapes, job.augmentation.short_side) == ([(3, 224, 224)], 256)
    assert job.recipe.dropout == 0.0  # it has none of its own
    job = job_of("temporal", "--net", "inception-v3", "--recipe", "short", "--dropout", "0.8")
    assert (job.shapes, job.augmentation.short_side) == ([(20, 299, 299)], 342)
    assert job.recipe.dropout == 0.8  # as it was asked for
    job = job_of("spatial", "--recipe", "short", "--net", "cnn-m-2048", "--crop", 224)
    assert job.recipe.dropout == 0.5  # the recipe's, for the paper evaluates two
    job = job_of("temporal", "--net", "resnet18", "--crop", 112, "--short-side", 128)
    assert job.shapes == [(20, 112, 112)]


def test_tasks_have_heads_and_splits_of_their_own(job_of, place):
    write_videos(place / "flow2", classes=("sit", "run"), per_class=4)
    job = job_of("temporal", "--task", "a=flow", "--task", "b=flow2")
    assert [(task.name, len(task.classes)) for task in job.tasks] == [("a", 3), ("b", 2)]
    assert job.tasks[0].split.heldout
    assert len(job.tasks[1].split.train) == 8
    assert (place / "runs/split-a.json").exists()
    job = job_of("temporal", "--add-classes", "flow2")
    assert job.tasks[0].classes == (*CLASSES, "run", "sit")
    (place / "names.txt").write_text("sit\n\n")
    job = job_of("temporal", "--add-classes", "flow2,runs/split-added.json,names.txt")
    assert job.tasks[0].classes == (*CLASSES, "sit")
    assert {video.class_name for video in job.tasks[0].videos} == {*CLASSES, "sit"}
    (place / "names.txt").write_text("stand\n")
    with pytest.raises(SplitError, match="has no classes stand; it has run, sit"):
        job_of("temporal", "--add-classes", "flow2,runs/split-added.json,names.txt")
    with pytest.raises(UsageError, match="class names, one a line, at none"):
        job_of("temporal", "--add-classes", "flow2,runs/split-added.json,none.txt")


def test_a_given_split_is_taken_and_its_training_part_held_out_from(job_of, place):
    write_split(place / "mine.json", make_split(8, heldout=0, test=2))
    [task] = job_of("spatial", "--split", "mine.json").tasks
    assert len(task.split.test) == 6
    assert len(task.split.heldout) == 3
    [task] = job_of("spatial", "--split", "mine.json", "--no-heldout").tasks
    assert (len(task.split.train), len(task.split.heldout)) == (18, 0)


def test_a_split_made_for_training_on_everything_holds_nothing_out(job_of, place):
    """Too few videos to hold any out: two per class, one of which is the test part."""
    write_videos(place / "few", per_class=2)
    with pytest.raises(SplitError, match=r"nothing to hold out .*--no-heldout"):
        job_of("spatial", "--records", "few", "--runs", "few-runs")
    [task] = job_of("spatial", "--records", "few", "--runs", "few-runs", "--no-heldout").tasks
    assert (len(task.split.train), len(task.split.heldout), len(task.split.test)) == (3, 0, 3)
    assert read_split(place / "few-runs/split.json") == task.split


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--resume", "--overwrite"], UsageError, "--resume goes on and --overwrite begins again"),
        (["--task", "flow"], UsageError, "--task: expected NAME=RECORDS"),
        (["--task", "a=flow", "--task", "a=flow"], UsageError, "a name for each data set, got one"),
        (["--task", "a=flow", "--split", "x"], UsageError, "--task names its split itself"),
        (["--drop-at", "soon"], UsageError, "--drop-at: expected steps such as 50000,70000"),
        (["--records", "none"], FlowkitError, "none"),
        (["--split", "none.json"], SplitError, "flowkit split make"),
        (["--weights", "none.pth"], FlowkitError, "none.pth: no such file of weights"),
        (["--L", "9", "--bidirectional"], UsageError, "expected an even L"),
        (["--device", "cuda:77"], UsageError, "cuda:77: this machine has"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(place, arguments, error, message):
    with pytest.raises(error, match=message) as found:
        flowkit_train("temporal", *TINY, *arguments)
    assert "\n" not in str(found.value)


def test_records_without_frames_do_not_train_the_spatial_stream(place):
    write_videos(place / "bare", per_class=8, rgb=False)
    with pytest.raises(RecordError, match="the spatial stream reads frames"):
        flowkit_train("spatial", *TINY[2:], "--records", "bare", "--runs", "runs2")


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(place):
    command = [sys.executable, "-c", MAIN, "train", "temporal", *TINY, "-j", "1"]
    process = subprocess.Popen(
        [*command, "--steps", "9000", "--eval-every", "20"],
        stderr=subprocess.PIPE,
        text=True,
    )
    last = place / "runs/temporal" / LAST
    while not last.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75
    assert told.splitlines()[-1] == (
        "flowkit: stopped by SIGTERM; the same command with --resume goes on"
    )
    assert 20 <= read_checkpoint(last).step < 9000
    assert read_tensors(last, "state")


def test_help_needs_neither_torch_nor_opencv():
    code = "import sys, flowkit_cli.train; sys.exit(bool({'torch', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def write_images(root, per_class=12):
    """Images of noise with a color cast that tells the class, of several sizes."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            image = random.integers(0, 150, (40 + number, 60, 3), dtype=np.uint8)
            image[..., channel] += 100
            cv2.imwrite(str(root / name / f"{number}.png"), image)


def test_images_train_the_spatial_stream_whose_weights_start_another(place):
    write_images(place / "photos")
    options = [*TINY[2:], "--steps", 20]
    result = flowkit_train("spatial", "--images", "photos", *options)
    assert result.stdout.startswith("runs-images/spatial: best at step ")
    split = read_split(place / "runs-images/split.json")
    assert (len(split.train), len(split.heldout), len(split.test)) == (33, 3, 0)
    found = read_checkpoint(place / "runs-images/spatial")
    assert found.progress["best"]["accuracy"] > 0.8  # chance is 1/3
    flowkit_train("spatial", *options[:-1], 1, "--weights", "runs-images/spatial", "--lr", 1e-9)
    first, second = (read_tensors(f"{runs}/spatial", "weights") for runs in ("runs", "runs-images"))
    name = "trunk.block2.conv.weight"
    torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_what_is_no_image_is_named(place):
    write_images(place / "photos")
    (place / "photos" / CLASSES[0] / "1.png").write_bytes(b"text")
    with pytest.raises(RecordError, match=r"1.png: expected an image \(JPEG, PNG or BMP\)"):
        flowkit_train("spatial", "--images", "photos", *TINY[2:], "--steps", 20)
    (place / "empty").mkdir()
    with pytest.raises(RecordError, match="empty: expected images in class folders"):
        flowkit_train("spatial", "--images", "empty", "--runs", "other", *TINY[2:])
    with pytest.raises(UsageError, match="--images is a data set of its own"):
        flowkit_train("spatial", "--images", "photos", "--task", "a=b", *TINY[2:])


def test_a_line_without_new_steps_tells_what_the_held_out_part_says():
    nan = {"main": math.nan}
    line = train_runs._line(StepReport(3, 5, nan, nan, 0.1, math.nan, math.nan, 1.5, 0.25))
    assert line == "step 3 of 5: held out 25.0% (loss 1.500)"
