"""Batches as bytes: what a device makes of planes is what the NumPy form makes of fields."""

import os

import numpy as np
import pytest
import torch
from made_records import write_record
from torch.utils.data import DataLoader

from flowkit.data.augment import Augmentation
from flowkit.data.clips import Clip, View
from flowkit.data.datasets import TrainingClips, collate, start_worker
from flowkit.data.plane_batches import PlaneClip, read_batch, stack_planes
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm, flow_stack
from flowkit.errors import RecordError
from flowkit.records import zips
from flowkit.records.packing import pack_record
from flowkit.records.reading import open_record

SIZES = {"jump/a": (32, 40), "run/b": (40, 32), "run/c": (24, 36)}  # the last is rescaled


def smooth(count, size, seed):
    y, x = np.mgrid[: size[0], : size[1]] / 10.0
    phases = np.random.default_rng(seed).normal(0, 2, (count, 2, 1, 1))
    fields = 3 * np.sin(x + 2 * y + phases) + phases  # (count, 2, H, W)
    return fields.transpose(0, 2, 3, 1).astype(np.float32)


@pytest.fixture(scope="module", params=["jpg", "lz4"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("flow")
    for seed, (id, size) in enumerate(SIZES.items()):
        pair = smooth(9, size, seed), smooth(9, size, seed + 10)
        write_record(root, id, *pair, format=request.param, pack=request.param == "lz4")
    return RecordFolder(root)


def both_ways(record, clip, view, form, size):
    expected = flow_stack(record, clip, view, form=form, size=size)
    planes = read_batch([PlaneClip(record, clip, view, form)])
    return stack_planes(planes, form=form, size=size, device="cpu")[0].numpy(), expected


FORMS = [
    StackForm(4),
    StackForm(4, mean_subtract=False),
    StackForm(4, "trajectory"),
    StackForm(6, bidirectional=True),
    StackForm(12, "trajectory", bidirectional=True),  # looped
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flip", [False, True])
def test_planes_give_the_stack_of_the_fields(folder, form, flip):
    record = folder.open(folder.find()["jump/a"])
    view = View((32, 40), 3, 5, 24, 24, flip)
    clip = Clip("jump/a", 0 if form.length > 9 else 2, form.length)
    found, expected = both_ways(record, clip, view, form, (24, 24))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["flow", "trajectory"])
def test_planes_are_rescaled_as_fields_are(folder, mode):
    record = folder.open(folder.find()["run/c"])
    view = View((32, 48), 2, 7, 20, 28, True)
    form = StackForm(4, mode)
    found, expected = both_ways(record, Clip("", 1, 4), view, form, (24, 24))
    np.testing.assert_allclose(found, expected, atol=2e-4)  # OpenCV rounds its weights


@pytest.mark.parametrize("crops", ["random", "multi-scale"])
def test_loader_of_planes_gives_the_batches_of_the_loader_of_stacks(folder, crops):
    videos = tuple(Video(id, id.split("/")[0], id) for id in SIZES)
    split = Split("made", ("jump", "run"), videos, (), ())
    options = {
        "inputs": {"temporal": StackForm(4)},
        "augmentation": Augmentation(crops=crops, crop=24, short_side=32),
    }
    plain = DataLoader(TrainingClips(split, folder, **options), 6, sampler=range(12))
    bytes_ = DataLoader(
        TrainingClips(split, folder, as_planes=True, **options),
        6,
        sampler=range(12),
        collate_fn=collate,
        num_workers=1,
        worker_init_fn=start_worker,
    )
    sizes = 0
    for one, other in zip(plain, bytes_, strict=True):
        groups = other["temporal"].groups
        found = stack_planes(other["temporal"], form=StackForm(4), size=(24, 24), device="cpu")
        assert torch.equal(one["label"], other["label"])
        assert all(group.codes.dtype == torch.uint8 for group in groups)
        assert all(group.codes.is_shared() for group in groups)  # nothing is copied on the way
        torch.testing.assert_close(found, one["temporal"], atol=2e-4, rtol=0)
        sizes = max(sizes, len(groups))
    assert sizes > 1


def test_still_pixels_stay_exactly_still(folder, tmp_path):
    fields = smooth(4, (16, 16), 0)
    fields[:, :8, :8] = 0
    for options in ({}, {"bound": 20.0}):
        record = write_record(tmp_path, f"{len(options)}", fields, format="lz4", **options)
        view, form = View((16, 16), 0, 0, 16, 16), StackForm(4, mean_subtract=False)
        found, expected = both_ways(record, Clip("", 0, 4), view, form, (16, 16))
        assert (found[:, :8, :8] == 0).all() and (expected[:, :8, :8] == 0).all()


def test_records_of_floats_are_refused(tmp_path):
    record = write_record(tmp_path, "a", smooth(4, (8, 8), 0))
    with pytest.raises(RecordError, match="only 8-bit planes travel as bytes"):
        read_batch([PlaneClip(record, Clip("", 0, 4), View((8, 8), 0, 0, 8, 8), StackForm(4))])


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("format", ["jpg", "png", "lz4"])
def test_damage_is_an_error_of_the_loader_that_names_record_and_plane(tmp_path, format, pack):
    record = write_record(tmp_path, "a", smooth(6, (32, 40), 0), format=format)
    name = f"flow_{'' if format == 'lz4' else 'y_'}00003.{format}"
    if not pack:
        path = record.path / name
        path.write_bytes(path.read_bytes()[:40])
    else:
        record = open_record(pack_record(record.path))
        begin, _, size, _ = zips.list_members(record.path)[name]
        data = bytearray(record.path.read_bytes())
        data[begin + 30 + len(name) + size // 2] ^= 1  # which decoders may well not see
        record.path.write_bytes(data)
    split = Split("made", ("run",), (Video("a", "run", "a"),), (), ())
    clips = TrainingClips(
        split,
        RecordFolder(tmp_path),
        inputs={"temporal": StackForm(6)},
        augmentation=Augmentation(crop=24, short_side=32),
        as_planes=True,
    )
    workers = int(format == "jpg" and pack)  # to end one after an error takes torch up to 5 s
    loader = DataLoader(clips, 2, sampler=range(2), collate_fn=collate, num_workers=workers)
    with pytest.raises(RecordError, match=rf"{record.path.name}.*{name}"):
        next(iter(loader))


@pytest.mark.parametrize("step", [1, 4])
def test_only_the_planes_of_a_clip_are_read(tmp_path, monkeypatch, step):
    fields = smooth(24, (32, 40), 0)
    made = write_record(tmp_path, "a", fields, backward=fields, format="lz4", pack=True, step=step)
    members = zips.list_members(made.path)
    form = StackForm(4, step=step, bidirectional=True)
    clip = Clip("", 4, 4, step)
    wanted = [
        members[f"{direction}_{index + 1:05d}.lz4"]
        for direction, half in zip(("flow", "backward"), clip.halves(24), strict=True)
        for index in half
    ]
    read, pread = [], os.pread

    def spy(handle, count, start):
        read.append(count)
        return pread(handle, count, start)

    monkeypatch.setattr(os, "pread", spy)
    handles = os.listdir("/proc/self/fd")
    read_batch([PlaneClip(made, clip, View((32, 40), 0, 0, 24, 24), form)])
    assert sum(read) == sum(end - begin for begin, end, _, _ in wanted)
    assert os.listdir("/proc/self/fd") == handles  # nothing for a fork to share
    assert len(read) == 4  # in a pack, the fields of one time are neighbors


def test_neighbors_in_a_pack_are_one_read(tmp_path, monkeypatch):
    made = write_record(tmp_path, "a", smooth(24, (32, 40), 0), format="lz4", pack=True)
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args) or pread(*args))
    read_batch([PlaneClip(made, Clip("", 4, 4, 1), View((32, 40), 0, 0, 24, 24), StackForm(4))])
    assert len(read) == 1
