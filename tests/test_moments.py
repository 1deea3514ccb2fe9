"""Samples of several moments: where they lie, and one place, size and flip for both towers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from made_records import write_record
from torch import nn

from flowkit.data.augment import Augmentation
from flowkit.data.clips import (
    Clip,
    jittered_view,
    moment_views,
    rescaled_size,
    spaced_clips,
    spaced_frames,
)
from flowkit.data.datasets import TestClips, TrainingClips, collate
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import spaced_places
from flowkit.data.moments import Moments
from flowkit.data.plane_batches import stack_planes
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks.joining import Towers
from flowkit.networks.towers import build_towers
from flowkit.training.loading import Pieces, _join

FORM = StackForm(10)
SIZE = (96, 128)  # (H, W) of the records
CELL = 4  # px of a crop that share a cell of the maps below
MARKER = 12  # px, the side of the marker in the video
INPUTS = {"spatial": FrameForm(), "temporal": StackForm(4, mean_subtract=False)}


def test_a_sample_of_one_moment_is_the_clip_around_a_frame():
    random = np.random.default_rng(0)
    drawn = [Moments(1).draw("a", 29, FORM, random) for _ in range(300)]
    assert {clip.start for [clip] in drawn} == set(range(20))
    assert {clip.middle for [clip] in drawn} == set(range(5, 25))  # 5 <= c <= N - 6 of N = 30


def test_moments_of_a_draw_lie_one_gap_apart_and_every_gap_and_start_is_drawn():
    random = np.random.default_rng(0)
    moments = Moments(5, 1, 10)
    seen, firsts = set(), set()
    for _ in range(1500):
        starts = [clip.start for clip in moments.draw("a", 80, FORM, random)]
        gaps = set(np.diff(starts))
        assert len(gaps) == 1
        assert starts[0] >= 0
        assert starts[-1] + FORM.length <= 80
        seen |= gaps
        firsts.add(starts[0])
    assert seen == set(range(1, 11))
    assert min(firsts) == 0
    assert max(firsts) > 60


@pytest.mark.parametrize(("frames", "gap"), [(15, 1), (19, 2), (51, 10), (60, 10)])
def test_a_drawn_gap_shrinks_to_the_largest_that_fits(frames, gap):
    """T moments tau apart need (T - 1) tau + L + 1 frames: 15 at tau 1, 51 at tau 10."""
    random = np.random.default_rng(0)
    for _ in range(20):
        clips = Moments(5, 10, 10).draw("a", frames - 1, FORM, random)
        assert {b.start - a.start for a, b in pairwise(clips)} == {gap}


def test_a_video_without_room_is_looped():
    clips = Moments(5, 3, 3).draw("a", 9, FORM, np.random.default_rng(0))
    assert [clip.start for clip in clips] == [0, 1, 2, 3, 4]
    assert clips[4].fields(9) == [(4 + k) % 9 for k in range(10)]
    assert [clip.frame(9) for clip in clips] == [5, 6, 7, 8, 0]


def test_test_samples_of_one_moment_are_those_of_the_temporal_stream():
    for count in (8, 30, 99):
        expected = [(clip,) for clip in spaced_clips("a", count, 10, moments=25)]
        assert Moments(1).spaced("a", count, FORM, 25) == expected


def test_test_samples_are_spaced_alike_around_the_moments_of_the_video():
    samples = Moments(5, 1, 10, test_gap=4).spaced("a", 200, FORM, 7)
    middles = [sample[2].middle for sample in samples]
    frames = spaced_frames(201, 7)
    assert middles[1:-1] == frames[1:-1]
    assert samples[0][0].start == 0  # as near to frame 0 as the fields of the first moment allow
    assert samples[-1][-1].start + 10 == 200
    assert all(b.start - a.start == 4 for s in samples for a, b in pairwise(s))


def test_the_gap_of_test_samples_is_15_or_what_fits():
    assert [clip.start for clip in Moments(5).spaced("a", 200, FORM, 1)[0]][1:] == [
        Moments(5).spaced("a", 200, FORM, 1)[0][0].start + 15 * k for k in range(1, 5)
    ]
    fitted = Moments(5).spaced("a", 30, FORM, 1)[0]
    assert [clip.start for clip in fitted] == [0, 5, 10, 15, 20]


def test_the_frame_of_a_test_sample_is_the_middle_of_its_clip():
    several = Moments(3, test_gap=6)
    for frames, clips in spaced_places(INPUTS, "a", 60, 9, several):
        assert frames == tuple(Clip("a", clip.middle, 0) for clip in clips)
        assert [clip.length for clip in clips] == [4, 4, 4]


def test_gaps_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="gap of A-B frames"):
        Moments(5, 0, 3)
    with pytest.raises(UsageError, match="a gap of at least 1"):
        Moments(5, test_gap=0)


@pytest.mark.parametrize("size", [(240, 320), (256, 300), (150, 400)])
def test_jittered_crops_are_within_a_quarter_of_their_side_and_of_the_border(size):
    random = np.random.default_rng(0)
    frame = rescaled_size(size)
    shapes, corners = [], set()
    for _ in range(400):
        view = jittered_view(size, random)
        assert view.frame == frame
        ends = []
        for whole, side, place in zip(
            frame, (view.height, view.width), (view.top, view.left), strict=True
        ):
            assert min(168, whole) <= side <= min(280, whole)
            free = whole - side
            assert min(place, free - place) <= free / 4
            ends.append(place <= free - place)
        shapes.append(view.width / view.height)
        corners.add((*ends, view.flip))
    assert min(shapes) < 0.85
    assert max(shapes) > 1.15
    assert len(corners) == 8


def test_a_whole_view_is_the_whole_frame_between_one_and_two_crops():
    views = moment_views("whole", (240, 320))
    assert [(view.height, view.width, view.flip) for view in views] == [
        (256, 341, False),
        (256, 341, True),
    ]
    wide = moment_views("whole", (100, 400))[0]
    assert (wide.height, wide.width) == (256, 448)
    low = moment_views("whole", (240, 320), short_side=200)[0]
    assert (low.height, low.width) == (224, 267)
    assert [view.flip for view in moment_views("flip", (240, 320))] == [False, True]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Two records of 24 fields: at a place of the second's frames and fields there is a marker.

    Field i is i px to the right where the marker is, frame i of gray 10 i.
    """
    root = tmp_path_factory.mktemp("flow")
    top, left = 40, 70
    inside = (slice(top, top + MARKER), slice(left, left + MARKER))
    for id in ("plain", "marked"):
        fields = np.zeros((24, *SIZE, 2), np.float32)
        frames = np.zeros((25, *SIZE, 3), np.uint8)
        if id == "marked":
            fields[:, *inside, 0] = np.arange(24)[:, None, None]
            frames[:, *inside] = 10 * np.arange(25)[:, None, None, None]
        write_record(
            root, f"a/{id}", fields, frames=frames, rgb=True, rgb_quality=100, format="lz4"
        )
    return RecordFolder(root)


def clips_of(marked, id, several, **options):
    split = Split("made", ("a",), (Video(f"a/{id}", "a", id),), (), ())
    made = TrainingClips if "augmentation" in options else TestClips
    return made(split, marked, inputs=INPUTS, several=several, part="train", **options)


@pytest.fixture(scope="module")
def blurring():
    """Towers whose filters are all alike and nothing else, so that a map is where its input is."""
    net = build_towers("small+small", INPUTS, {"main": 2}, Towers("sum", ("relu3",), 3)).eval()
    for module in net.below.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif hasattr(module, "norm"):
            module.norm = nn.Identity()
    return net


def cells(net, sample, plain):
    """The cell of each moment where a marked and a plain sample differ, for both towers."""
    found = []
    for stream in INPUTS:
        with torch.no_grad():
            maps = net.maps(stream, (sample[stream] - plain[stream]).abs()[None])
        total = maps.sum(1)  # (T, h, w)
        found.append([divmod(int(one.argmax()), total.shape[2]) for one in total])
    return found


@pytest.mark.parametrize("crops", ["random", "jittered", "multi-scale"])
def test_a_marker_lands_in_the_same_cell_of_both_towers_maps(marked, blurring, crops):
    changes = Augmentation(crops, jitter=0, crop=64, short_side=80)
    both = [
        clips_of(marked, id, Moments(3, 2, 4), augmentation=changes) for id in ("marked", "plain")
    ]
    places = set()
    for draw in range(20):
        sample, plain = (clips[draw] for clips in both)
        assert sample["spatial"].shape == (3, 3, 64, 64)
        assert sample["temporal"].shape == (3, 8, 64, 64)
        seen = (sample["temporal"] - plain["temporal"]).abs()[0].sum(0) > 0
        if seen.sum() < MARKER**2 / 2:  # cut off by the crop
            continue
        spatial, temporal = cells(blurring, sample, plain)
        assert spatial == temporal
        assert len(set(spatial)) == 1  # one place, size and flip for all moments
        places.add(spatial[0])
    assert len(places) > 5


def test_frame_and_stack_of_every_moment_are_of_the_same_frame(marked):
    plain = Augmentation("center", jitter=0, crop=80, short_side=80)
    clips = clips_of(marked, "marked", Moments(3, 2, 4), augmentation=plain)
    gaps, flips = set(), set()
    for draw in range(30):
        sample = clips[draw]
        frames = [frame_of(image) for image in sample["spatial"]]
        scale = 80 / SIZE[0]
        middles = [
            round(float(s[4].flatten()[s[4].abs().argmax()]) / scale) for s in sample["temporal"]
        ]
        assert [abs(one) for one in middles] == frames  # field c of a clip around frame c
        flips |= set(np.sign(middles))
        gaps |= set(np.diff(frames))
    assert flips == {-1, 1}  # x is negated where the frame is mirrored
    assert gaps == {2, 3, 4}


def frame_of(image):
    """The number of a frame by the gray of its marker, from standardized RGB."""
    return round(float((image[0].max() * 0.229 + 0.485) * 255) / 10)


def test_test_samples_show_the_same_views_to_both_towers(marked, blurring):
    several = Moments(3, test_gap=4)
    both = [
        clips_of(marked, id, several, moments=2, views="ten", crop=64, short_side=80)
        for id in ("marked", "plain")
    ]
    for sample, plain in zip(*([clips[k] for k in range(2)] for clips in both), strict=True):
        assert sample["spatial"].shape == (10, 3, 3, 64, 64)
        assert sample["temporal"].shape == (10, 3, 8, 64, 64)
        for view in (4, 9):  # the center and its flip
            spatial, temporal = cells(
                blurring, *({s: one[s][view] for s in INPUTS} for one in (sample, plain))
            )
            assert spatial == temporal


def test_planes_of_several_moments_make_the_same_stacks(marked):
    changes = Augmentation(jitter=0, crop=64, short_side=96)
    options = {"augmentation": changes, "seed": 3}
    clips = clips_of(marked, "marked", Moments(3, 2, 4), **options)
    planes = clips_of(marked, "marked", Moments(3, 2, 4), as_planes=True, **options)
    expected = torch.stack([clips[draw]["temporal"] for draw in range(5)])
    pieces = [collate([planes[k] for k in part]) for part in Pieces([[0, 1, 2, 3, 4]], 2)]
    batch = _join(pieces, memory=None)
    stacks = stack_planes(batch["temporal"], form=INPUTS["temporal"], size=(64, 64), device="cpu")
    torch.testing.assert_close(stacks.unflatten(0, (5, 3)), expected, rtol=0, atol=1e-4)
    assert batch["spatial"].shape == (5, 3, 3, 64, 64)


def test_a_stream_alone_has_samples_without_moments(marked):
    plain = Augmentation("center", jitter=0, crop=64, short_side=80)
    sample = clips_of(marked, "marked", None, augmentation=plain)[0]
    assert sample["spatial"].shape == (3, 64, 64)
    assert sample["temporal"].shape == (8, 64, 64)
