"""Joined towers from two runs to scores: what is trained, resumed, refused, scored and exported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_training import CROP, make_job, make_split, run_two_processes, write_videos
from torch.nn.functional import cross_entropy

from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, read_split, write_split
from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, UsageError
from flowkit.evaluation.scoring import Scorer, TestViews, score_part
from flowkit.networks.checkpoints import BEST, LAST, load_net, read_checkpoint, read_tensors
from flowkit.networks.export import export_net
from flowkit.networks.joining import Towers
from flowkit.networks.streams import build_stream
from flowkit.networks.towers import build_towers, make_convolutional
from flowkit.scores.files import read_scores
from flowkit.training.cross_validation import fold_jobs
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import rehearse, train
from flowkit.training.recipes import Recipe, make_recipe, make_tower_recipe
from flowkit.training.tower_runs import read_towers
from flowkit.training.trainer import _make_descent, prepare
from flowkit_cli.eval import eval as eval_command
from flowkit_cli.fuse import fuse
from flowkit_cli.train import train as train_command

ALONE = Ranks(0, 1, torch.device("cpu"))
BOTH = {"spatial": FrameForm(), "temporal": StackForm(2)}
SPLIT = make_split(per_class=5, heldout=1, test=1)
KEPT = Towers(frames=2, gap=(1, 2), over_time="pool3d", keep="temporal")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with records, and a run of each stream after two steps."""
    root = tmp_path_factory.mktemp("towers")
    records = write_videos(root / "flow", per_class=5)
    for stream in BOTH:
        job = make_job(records, SPLIT, stream=stream, recipe={"steps": 2, "drop_at": ()})
        list(train(job, root / "runs" / stream, ALONE, Machine()))
    return root


def towers_job(place, towers=KEPT, **options):
    """A job of towers joined from the two runs."""
    sources = tuple(str(place / "runs" / stream) for stream in BOTH)
    recipe = {"mode": "top", "dropout": 0.5, **options.pop("recipe", {})}
    given = {"net": "small+small", "inputs": BOTH, "weights": sources, "towers": towers, **options}
    split = given.pop("split", SPLIT)
    return make_job(RecordFolder(place / "flow"), split, recipe=recipe, **given)


def run(job, folder, **options):
    return list(train(job, folder, ALONE, options.pop("machine", Machine()), **options))


@pytest.fixture(scope="module")
def joined(place):
    """The run of a few steps of joined towers."""
    run(towers_job(place), place / "runs" / "towers")
    return place / "runs" / "towers"


def test_what_is_below_the_join_is_still_that_of_the_runs(place, joined):
    found = read_tensors(joined, "weights")
    for stream in BOTH:
        own = read_tensors(place / "runs" / stream, "weights")
        for name, tensor in own.items():
            if name.startswith("trunk.block"):
                assert torch.equal(found[f"below.{stream}.{name.removeprefix('trunk.')}"], tensor)
    assert not torch.equal(
        found["heads.temporal.weight"],
        read_tensors(place / "runs" / "temporal", "weights")["heads.main.weight"],
    )


def test_both_losses_are_summed_and_their_logits_averaged(place):
    training = prepare(towers_job(place, recipe={"dropout": 0.0}), ALONE, Machine())
    with training.loader() as batches:
        inputs, [labels] = given = next(batches)
    with torch.no_grad():
        outputs = training.net.split_outputs(training.net(*inputs))["main"]
    expected = sum(cross_entropy(one, labels).item() for one in outputs)
    right = (torch.stack(outputs).mean(0).argmax(1) == labels).sum().item()
    losses, found = training.take_step(iter([given]))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert found == [right]


@pytest.mark.parametrize("schedule", [pytest.param("drops", marks=pytest.mark.slow), "plateau"])
def test_resumed_towers_are_as_never_stopped_bit_for_bit(place, tmp_path, schedule):
    recipe = {"steps": 6, "eval_every": 2, "patience": 1, "bias_rate": 2.0, "bias_decay": False}
    drops = () if schedule == "plateau" else (4,)
    job = towers_job(place, recipe={**recipe, "schedule": schedule, "drop_at": drops})
    straight = run(job, tmp_path / "straight")
    for told in train(job, tmp_path / "killed", ALONE, Machine()):
        if told.step == 4:
            break  # what a kill leaves before this step's checkpoint
    assert read_checkpoint(tmp_path / "killed" / LAST).step == 2
    resumed = run(job, tmp_path / "killed", start="resume")
    for kind in ("weights", "state"):
        one, other = (read_tensors(tmp_path / name / LAST, kind) for name in ("straight", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert [told.learning_rate for told in resumed] == [
        told.learning_rate for told in straight[-len(resumed) :]
    ]


def test_the_rate_drops_where_held_out_accuracy_stays(place, tmp_path, monkeypatch):
    from flowkit.training.trainer import Training

    told = iter([0.1, 0.3, 0.3, 0.2, 0.4, 0.4])
    monkeypatch.setattr(Training, "ask_heldout", lambda self, asked: (1.0, next(told)))
    recipe = {"steps": 6, "eval_every": 1, "schedule": "plateau", "drop_at": (), "patience": 2}
    rates = [one.learning_rate for one in run(towers_job(place, recipe=recipe), tmp_path / "run")]
    assert rates == pytest.approx([1e-2] * 4 + [1e-3] * 2)
    assert read_checkpoint(tmp_path / "run" / LAST).progress["drops"] == 1


def test_without_a_held_out_part_nothing_says_where_a_plateau_is(place):
    split = Split("none", SPLIT.classes, SPLIT.train + SPLIT.heldout, (), SPLIT.test)
    with pytest.raises(UsageError, match="hold a part out"):
        towers_job(place, split=split, recipe={"schedule": "plateau", "drop_at": ()})


def test_biases_learn_twice_as_fast_and_do_not_decay():
    net = build_towers("small+small", BOTH, {"main": 3}, Towers())
    plain = _make_descent(net, Recipe())
    assert [group.share for group in plain.groups] == [1.0, 1.0]
    apart = _make_descent(net, Recipe(bias_rate=2.0, bias_decay=False, trunk_rate=0.5))
    found = {
        id(one): (group.share, group.weight_decay)
        for group in apart.groups
        for one in group.parameters
    }
    assert len(found) == len(list(net.parameters()))
    for name, one in net.named_parameters():
        share = 1.0 if name.startswith("heads.") else 0.5
        wanted = (2 * share, 0.0) if name.endswith("bias") else (share, 5e-4)
        assert found[id(one)] == wanted


def test_the_papers_recipe_for_towers():
    recipe = make_tower_recipe("paper", "top", "cnn-m-2048", videos=9537)
    assert (recipe.batch_size, recipe.learning_rate, recipe.dropout) == (96, 1e-3, 0.85)
    assert (recipe.schedule, recipe.bias_rate, recipe.bias_decay) == ("plateau", 2.0, False)
    assert make_tower_recipe("paper", "top", "vgg16", videos=9537).learning_rate == 5e-4
    alone = make_recipe("paper-2016", "scratch")
    assert (alone.schedule, alone.dropout, alone.learning_rate) == ("plateau", 0.85, 1e-2)


def test_passes_of_any_size_make_the_same_step(place):
    found = []
    for micro_batch in (8, 3):
        training = prepare(
            towers_job(place, recipe={"dropout": 0.0}), ALONE, Machine(micro_batch=micro_batch)
        )
        with training.loader() as batches:
            training.take_step(batches)
        found.append(training.net.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(place, tmp_path):
    towers = Towers(frames=2, gap=(1, 2), over_time="conv3d", keep="temporal")
    recipe = {"steps": 3, "batch_size": 7, "dropout": 0.0, "eval_every": 3}
    job = towers_job(place, towers, split=make_split(), recipe=recipe)
    run(job, tmp_path / "one")
    records = job.tasks[0].records
    tensors = run_two_processes(records, tmp_path / "two", "small+small", *job.sources)
    alone = read_tensors(tmp_path / "one" / LAST, "weights")
    for name, tensor in alone.items():
        assert torch.equal(tensors[0][name], tensors[1][name])
        torch.testing.assert_close(tensors[0][name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_that_saw_what_is_judged_is_refused(place):
    runs = read_towers(place / "runs" / "spatial", place / "runs" / "temporal")
    runs.check_split(SPLIT)
    for part, test, heldout in (
        ("test", SPLIT.train[:1], SPLIT.heldout),
        ("heldout", SPLIT.test, SPLIT.train[:1]),
    ):
        leaky = Split("leaky", SPLIT.classes, SPLIT.train[1:], heldout, test)
        with pytest.raises(UsageError, match=f"spatial: was trained on 1 of the {part} videos"):
            runs.check_split(leaky)


def test_runs_that_differ_are_not_joined(place, tmp_path):
    records = towers_job(place).tasks[0].records
    wider = replace(CROP, crop=34)
    for stream, options in (("temporal", {"augmentation": wider}), ("spatial", {})):
        job = make_job(records, SPLIT, stream=stream, recipe={"steps": 1, "drop_at": ()}, **options)
        run(job, tmp_path / stream)
    with pytest.raises(UsageError, match=r"differ: crop \(px\) 32 and 34"):
        read_towers(tmp_path / "spatial", tmp_path / "temporal")
    with pytest.raises(UsageError, match="holds a temporal stream"):
        read_towers(tmp_path / "temporal", tmp_path / "temporal")
    with pytest.raises(UsageError, match="flowkit train spatial makes one"):
        read_towers(tmp_path / "none", tmp_path / "temporal")


def test_records_of_other_flow_than_the_temporal_towers_are_refused(place, tmp_path):
    other = write_videos(tmp_path / "flow", per_class=5, format="jpg", bound=20)
    job = towers_job(place)
    [task] = job.tasks
    with pytest.raises(RecordError, match=r"is not what .*temporal was trained on"):
        prepare(replace(job, tasks=(replace(task, records=other),)), ALONE, Machine())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": {"mode": "last-layer"}}, "mode of top or fine-tune"),
        ({"recipe": {"segments": 2}}, "segments do not go with joined towers"),
        ({"weights": None}, "the weights of a spatial and a temporal run"),
        ({"net": "small"}, "SPATIAL\\+TEMPORAL"),
    ],
)
def test_jobs_that_cannot_be_are_refused(place, options, words):
    with pytest.raises(UsageError, match=words):
        towers_job(place, **options)


def test_mode_top_is_for_towers(place):
    with pytest.raises(UsageError, match="mode top is for joined towers"):
        make_job(towers_job(place).tasks[0].records, recipe={"mode": "top"})


def test_towers_are_scored_at_ten_samples_and_their_flips(place, joined, tmp_path):
    scorer = Scorer(joined)
    assert scorer.views == TestViews(10, "flip", "logits")
    job = towers_job(place)
    [task] = job.tasks
    list(score_part(scorer, task.split, task.records, "test", tmp_path / "scores-test.npz"))
    scores = read_scores(tmp_path / "scores-test.npz")
    assert scores.meta["stream"] == "towers"
    assert "conv at relu5, pool3d over 2 frames, temporal kept" in scores.meta["about"]
    from flowkit.data.datasets import TestClips

    clips = TestClips(
        task.split, task.records, inputs=BOTH, moments=10, views="flip", crop=32, short_side=36,
        several=KEPT.moments,
    )  # fmt: skip
    _, net = load_net(joined)
    with torch.no_grad():
        each = [net(*(clips[moment][stream] for stream in BOTH)).mean(0) for moment in range(10)]
    np.testing.assert_allclose(scores.values[0], torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crops", ["flip", "whole"])
def test_whole_frames_are_scored_too(place, joined, crops):
    records = towers_job(place).tasks[0].records
    record = records.open(next(iter(records.find().values())))
    scorer = Scorer(joined, views=TestViews(2, crops, "logits"))
    [row] = scorer.score([record])
    assert np.isfinite(row).all()


@pytest.mark.slow
def test_a_fully_convolutional_network_is_the_network_where_one_place_fits():
    net = build_stream("cnn-m-2048", "temporal", {"main": 3}, channels=2).eval()
    crop = torch.randn(1, 2, 224, 224)
    with torch.no_grad():
        expected = net(crop)
        make_convolutional(net)
        torch.testing.assert_close(net(crop), expected, rtol=1e-4, atol=1e-4)
        places = net.trunk[:-1](torch.randn(1, 2, 256, 340))
    assert places.shape == (1, 2048, 2, 5)  # 5 x 2 places


@pytest.mark.parametrize("join", ["cat", "conv"])
def test_joined_towers_of_vgg16_become_convolutional_too(join):
    with torch.device("meta"):
        towers = Towers(join, keep="temporal")
        net = build_towers("vgg16+vgg16", BOTH, {"main": 3}, towers).eval()
        make_convolutional(net)
        given = [torch.empty(1, 1, channels, 256, 340) for channels in (3, 4)]
        assert net(*given).shape == (1, 3)


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_joined_towers_are_exported(joined, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    assert export_net(joined, tmp_path / "net", format=format) < 1e-4


def test_a_fold_of_towers_is_joined_from_runs_without_that_fold(place, joined):
    records = towers_job(place).tasks[0].records
    checkpoint = read_checkpoint(joined)
    with pytest.raises(UsageError, match=r"flowkit eval .*spatial --cv 2"):
        fold_jobs(joined, checkpoint, records, 2)
    for stream in BOTH:
        own = place / "runs" / stream
        for number, job in enumerate(fold_jobs(own, read_checkpoint(own), records, 2), start=1):
            if not (own / "cv" / f"fold-{number}of2" / BEST).exists():
                run(job, own / "cv" / f"fold-{number}of2")
    jobs = fold_jobs(joined, checkpoint, records, 2)
    assert [job.weights[0].split("/")[-1] for job in jobs] == ["fold-1of2", "fold-2of2"]
    for job in jobs:
        assert job.towers == KEPT
        assert not job.origin().seen(job.tasks[0].split.heldout)


def test_the_dry_run_counts_what_can_be_trained(place):
    found = rehearse(towers_job(place, Towers()), ALONE, Machine())
    net = build_towers("small+small", BOTH, {"main": 3}, Towers())
    below = sum(one.numel() for one in net.below.parameters())
    assert found.parameters - found.learning == below


def flowkit(command, place, *arguments, monkeypatch):
    monkeypatch.chdir(place)
    return CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)


TINY = ["--recipe", "short", "--steps", "2", "--batch-size", "6", "-j", "0"]


def test_the_command_joins_scores_and_leaves_towers_out_of_a_fusion(place, monkeypatch, tmp_path):
    write_split(place / "runs" / "spatial" / "split.json", SPLIT)
    done = flowkit(
        train_command, place, "towers", *TINY, "--over-time", "conv3d", "--frames", "2", "--gap",
        "1-2", "--keep", "temporal", "--overwrite", monkeypatch=monkeypatch,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "runs/towers: best at step" in done.output
    assert read_split(place / "runs" / "towers" / "split.json").test == SPLIT.test
    done = flowkit(eval_command, place, "--part", "test", "--moments", "2", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert done.output.count("top-1") == 3
    done = flowkit(fuse, place, "--out", tmp_path / "fused.npz", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "runs/towers/scores-test.npz: left out" in done.output
    assert json.dumps(read_scores(tmp_path / "fused.npz").meta["fusion"]).count("towers") == 0
    named = [place / "runs" / name for name in ("spatial", "towers")]
    done = flowkit(fuse, place, *named, "--out", tmp_path / "2.npz", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output


def test_a_dry_run_prints_the_table_and_writes_nothing(place, monkeypatch):
    out = place / "runs" / "none"
    done = flowkit(
        train_command, place, "towers", *TINY, "--dry-run", "--out", out, monkeypatch=monkeypatch
    )
    assert done.exit_code == 0, done.output
    assert "97.58M" in done.output
    assert "GB of memory" in done.output
    assert not out.exists()


def test_a_bilinear_join_fits_an_svm_and_writes_scores(place, monkeypatch):
    done = flowkit(
        train_command, place, "towers", "--join", "bilinear", "--eval-moments", "2", "--out",
        place / "bilinear", monkeypatch=monkeypatch,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    scores = read_scores(place / "bilinear" / "scores-test.npz")
    assert scores.videos == tuple(video.id for video in SPLIT.test)
    assert scores.meta["stream"] == "towers"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--segments", "3"], "--frames"),
        (["--top-blocks", "1"], "--mode top"),
        (["--gap", "few"], "frames such as 1-10"),
        (["--at", "relu3", "--at", "relu4"], "joined at one of"),
        (["--at", "relu5", "--at", "full8", "--frames", "5", "--keep", "temporal"], "--frames 1"),
        (["--spatial", "runs/temporal"], "holds a temporal stream"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(place, monkeypatch, arguments, words):
    with pytest.raises(UsageError, match=words):
        flowkit(train_command, place, "towers", *TINY, *arguments, monkeypatch=monkeypatch)
