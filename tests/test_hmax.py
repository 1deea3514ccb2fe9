"""HMAX from flow records to scores: nothing of the test part is seen, reruns do what is missing."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import run_here
from made_records import write_record

from flowkit.data.splits import Split, Video, write_split
from flowkit.errors import RecordError, SplitError, UsageError
from flowkit.hmax import stages, vectors
from flowkit.hmax.vectors import (
    PROTOTYPES,
    draw_sequences,
    encode_c2,
    fit_prototypes,
    plan_c2,
    read_c2,
    read_c3,
    read_mean_c2,
    read_prototypes,
    write_prototypes,
)
from flowkit.idt.svm import train_svms
from flowkit.scores.files import read_scores

MOVES = {"down": (0.0, 4.0), "left": (-3.0, 0.0), "right": (5.0, 0.0)}
SIZE, FIELDS, EACH = (72, 76), 8, 4


def made_fields(class_name, number):
    """A square that moves as its class says before what stands still, with some noise."""
    random = np.random.default_rng([number, len(class_name)])
    fields = np.zeros((FIELDS, *SIZE, 2), np.float32)
    y, x = random.integers(0, 20, 2)
    fields[:, y : y + 48, x : x + 48] = MOVES[class_name]
    noise = random.normal(0, 0.3, fields.shape).astype(np.float32)
    return np.where(fields.any(axis=-1, keepdims=True), fields + noise, fields)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Flow records of three motions, and a split: two train, one is held out, one is tested."""
    root = tmp_path_factory.mktemp("hmax")
    parts = {"train": [], "heldout": [], "test": []}
    for name in MOVES:
        for number in range(EACH):
            id = f"{name}/v_{name}_g{number + 1:02d}_c01"
            write_record(root / "flow", id, made_fields(name, number), format="png")
            part = ("train", "train", "heldout", "test")[number]
            parts[part].append(Video(id, name, f"g{number + 1:02d}"))
    split = Split("motions", tuple(MOVES), *(tuple(parts[p]) for p in parts))
    write_split(root / "runs/split.json", split)
    return root, split, {video.id: root / "flow" / video.id for p in parts for video in parts[p]}


@pytest.fixture(scope="module")
def encoded(project):
    """Prototypes and the C2 vectors of all."""
    root, split, records = project
    found = fit_prototypes(split, records, count=16)
    write_prototypes(root / "made" / PROTOTYPES, found)
    assert dict(encode_c2(list(records), records, root / "made", found)) == dict.fromkeys(
        records, ""
    )
    return root / "made", found


def train(root, *arguments):
    return run_here("train", "svm", "--features", *arguments, "--prototypes", 16, cwd=root)


@pytest.mark.parametrize("features", ["hmax", "hmax-c3"])
def test_motions_are_told_apart_and_a_rerun_computes_nothing(project, tmp_path, features):
    shutil.copytree(project[0], tmp_path / "p")
    done = train(tmp_path / "p", features)
    assert done.returncode == 0, done.stderr
    assert b"12 videos, 12 to do: C2 vectors of 16 numbers to hmax" in done.stderr
    for part in ("test", "heldout"):
        scores = read_scores(tmp_path / "p/runs" / features / f"scores-{part}.npz")
        assert (scores.values.argmax(axis=1) == scores.labels).all() and len(scores.videos) == 3
        assert scores.meta["stream"] == features and "HMAX, 16" in scores.meta["about"]
    (tmp_path / "p/hmax/left/v_left_g01_c01.npz").unlink()
    again = train(tmp_path / "p", features)
    assert b"12 videos, 1 to do" in again.stderr
    other = train(tmp_path / "p", features, "--every", 2)
    assert other.returncode == 2 and b"of every 1, asked for 2" in other.stderr
    crossed = train(tmp_path / "p", features, "--cv", 2)
    assert crossed.returncode == 0, crossed.stderr
    heldout = read_scores(tmp_path / "p/runs" / features / "scores-heldout.npz")
    assert len(heldout.videos) == 9


def test_prototypes_are_cut_from_the_training_part_only(project, encoded):
    _, split, records = project
    _, found = encoded
    assert set(found.videos) == {video.id for video in split.train}
    alone = {video.id: records[video.id] for video in split.train}
    again = fit_prototypes(replace(split, heldout=(), test=()), alone, count=16)
    assert again.digest == found.digest
    assert fit_prototypes(split, records, count=16, seed=1).digest != found.digest
    assert [one.values.shape for one in found.patches] == [(4, 4, n, n) for n in stages.SIDES]


def test_a_prototype_is_found_where_it_was_cut(project, encoded):
    """Of all training fields one at least is just like it."""
    place, found = encoded
    best = np.max([read_c2(place / f"{id}.npz")[0].max(0) for id in found.videos], axis=0)
    assert best.shape == (16,) and (best > 0.998).all()


def test_vectors_are_those_of_the_stages(project, encoded):
    _, split, records = project
    place, found = encoded
    id = split.test[0].id
    fields = torch.from_numpy(made_fields("down", 3))
    wanted = stages.c2_of_fields(fields, found.patches).numpy()
    kept, _ = read_c2(place / f"{id}.npz")
    assert kept.dtype == np.float16 and kept.shape == (FIELDS, 16)
    assert np.abs(kept - wanted).max() < 0.05  # the records are of 8 bits
    mean, _ = read_mean_c2(place / f"{id}.npz")
    assert np.allclose(mean, kept.astype(np.float32).mean(0))
    train = [place / f"{video.id}.npz" for video in split.train]
    runs = draw_sequences(train, count=5)
    assert runs.shape == (5, 7 * 16)
    assert np.array_equal(runs, draw_sequences(train, count=5))
    vector, _ = read_c3(place / f"{id}.npz", runs)
    assert np.allclose(vector, stages.s3(kept.astype(np.float32), runs).max(0))
    every_other = replace(found, every=2).encode(vectors.open_record(records[id]))
    assert np.allclose(every_other, kept[::2], atol=1e-3)


def test_selection_is_by_the_training_classes_and_goes_with_no_cross_validation(project, tmp_path):
    root, split, records = project
    found = fit_prototypes(split, records, count=8, candidates=24)
    assert found.count == 8 and found.selected
    shutil.copytree(root / "flow", tmp_path / "flow")
    write_split(tmp_path / "runs/split.json", split)
    refused = train(tmp_path, "hmax", "--candidates", 24, "--cv", 2)
    assert refused.returncode == 2 and b"--candidates" in refused.stderr
    assert train(tmp_path, "hmax", "--candidates", 24).returncode == 0
    assert read_prototypes(tmp_path / "hmax" / PROTOTYPES).selected


def test_leaks_are_refused(project, encoded):
    _, split, records = project
    place, found = encoded
    places = {id: place / f"{id}.npz" for id in records}
    swapped = replace(split, train=split.test, test=split.train)
    with pytest.raises(SplitError, match="HMAX, 16 prototypes: fitted on source groups of 6"):
        train_svms(swapped, places, found, read=read_mean_c2)


def test_a_record_that_is_damaged_small_or_of_other_flow_costs_itself(project, encoded, tmp_path):
    root, split, _ = project
    shutil.copytree(root / "flow", tmp_path / "flow")
    write_split(tmp_path / "runs/split.json", split)
    for file in (tmp_path / "flow/left/v_left_g01_c01").glob("flow_x_*"):
        file.write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "flow/down/v_down_g04_c01")
    fields = np.zeros((3, 40, 76, 2), np.float32)
    write_record(tmp_path / "flow", "down/v_down_g04_c01", fields, format="png")
    stopped = train(tmp_path, "hmax")
    assert stopped.returncode == 1 and b"--missing skip goes on" in stopped.stderr
    assert b"expected fields of at least 68 px a side, got 76x40" in stopped.stderr
    done = train(tmp_path, "hmax", "--missing", "skip")
    assert done.returncode == 0 and b"2 to do" in done.stderr, done.stderr
    assert len(read_scores(tmp_path / "runs/hmax/scores-test.npz").videos) == 2
    shutil.rmtree(tmp_path / "flow/down/v_down_g04_c01")
    write_record(tmp_path / "flow", "down/v_down_g04_c01", made_fields("down", 3), format="flo")
    assert b"not that of the prototypes" in train(tmp_path, "hmax").stderr


def test_what_does_not_fit_is_refused_by_name(project, encoded, tmp_path):
    root, split, records = project
    place, _ = encoded
    with pytest.raises(UsageError, match="multiples of 4"):
        fit_prototypes(split, records, count=6)
    with pytest.raises(UsageError, match="nothing moves"):
        still = {
            video.id: write_record(
                tmp_path / "still", video.id, np.zeros((2, *SIZE, 2), np.float32)
            ).path
            for video in split.train
        }
        fit_prototypes(split, still, count=4)
    other = fit_prototypes(split, records, count=16, seed=1)
    with pytest.raises(UsageError, match="12 files of vectors are of other prototypes"):
        plan_c2(records, place, other)
    assert len(plan_c2(records, place, other, overwrite=True)) == 12
    with pytest.raises(RecordError, match="expected a flowkit hmax c2"):
        read_c2(write_as_c2(tmp_path / "a.npz", {"format": "else"}))
    with pytest.raises(RecordError, match="codebook of a flowkit hmax c2 cannot be 3"):
        read_c2(write_as_c2(tmp_path / "b.npz", {"format": vectors.C2_FORMAT, "codebook": 3}))
    for option in (("--records", "flow"), ("--every", 2), ("--overwrite",)):
        refused = run_here("train", "svm", *option, cwd=root)
        assert refused.returncode == 2 and b"goes with --features hmax" in refused.stderr
    refused = train(root, "hmax", "--codebook", "x.npz")
    assert refused.returncode == 2 and b"--features fisher" in refused.stderr


def write_as_c2(path, meta):
    vectors.write_arrays(path, {"c2": np.ones((2, 3), np.float16)}, {"version": 1, **meta})
    return path


def test_prototypes_come_back_from_their_file(encoded, tmp_path):
    place, found = encoded
    same = read_prototypes(place / PROTOTYPES)
    assert same.digest == found.digest and same.groups == found.groups
    assert same.origin == found.origin and same.about == "HMAX, 16 prototypes"
    spoiled = replace(
        found, patches=(stages.Patches(torch.ones(2, 4, 4, 4), torch.tensor([0, 7])),)
    )
    write_prototypes(tmp_path / PROTOTYPES, spoiled)
    with pytest.raises(RecordError, match="expected finite prototypes of 4x4"):
        read_prototypes(tmp_path / PROTOTYPES)
