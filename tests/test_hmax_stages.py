"""HMAX for actions, stage by stage, held to loops that say what each of them is."""

import math

import numpy as np
import torch

from flowkit.hmax.stages import (
    ENTRIES,
    SEQUENCE,
    Patches,
    c1,
    c2,
    c2_of_fields,
    c3,
    least_side,
    make_patches,
    s1,
    s2,
    s3,
    select_features,
    sequences,
)


def fields(count=2, height=72, width=80, seed=0):
    values = np.random.default_rng(seed).normal(0, 3, (count, height, width, 2))
    return torch.from_numpy(values.astype(np.float32))


def test_s1_is_tuned_to_four_directions_and_two_speeds():
    moves = torch.tensor([[3.0, 0], [0, 6.0], [-3.0, 0], [0, -4.0], [0, 0], [2.0, 2.0]])
    found = s1(moves.reshape(1, 1, 6, 2))[0, :, :, 0]  # speeds, directions, pixels
    assert found[0, 0, 0] == found[1, 1, 1] == found[0, 2, 2] == 1
    assert torch.allclose(found[0, 2, 0], torch.tensor(0.0)), "the opposite direction"
    assert math.isclose(found[0, 1, 0], 0.25, abs_tol=1e-6), "square to it: (1/2)^2"
    assert math.isclose(found[1, 0, 0], math.exp(-3), rel_tol=1e-5), "3 px, tuned to 6"
    assert math.isclose(found[0, 3, 3], math.exp(-1), rel_tol=1e-5)
    assert (found[:, :, 4] == 0).all(), "what stands still has no direction"
    wanted = ((1 + math.sqrt(0.5)) / 2) ** 2 * math.exp(-abs(math.sqrt(8) - 3))
    assert math.isclose(found[0, 0, 5], wanted, rel_tol=1e-5)
    assert found[0, 0, 5] == found[0, 1, 5]


def test_mirrored_fields_swap_right_and_left():
    plain = fields()
    mirrored = plain.flip(2) * torch.tensor([-1.0, 1.0])
    assert torch.allclose(s1(mirrored), s1(plain).flip(4)[:, :, [2, 1, 0, 3]], atol=1e-6)


def test_c1_is_the_largest_of_eight_by_eight_every_four():
    maps = s1(fields())
    found = c1(maps)
    assert found.shape == (2, 2, 4, 17, 19)
    for y, x in ((0, 0), (3, 5), (16, 18)):
        window = maps[..., 4 * y : 4 * y + 8, 4 * x : 4 * x + 8]
        assert torch.equal(found[..., y, x], window.amax((3, 4)))


def cut(maps, side, places):
    return [maps[0, speed, :, y : y + side, x : x + side] for speed, y, x in places]


def test_a_prototype_keeps_its_largest_entries_and_has_length_one():
    maps = c1(s1(fields()))
    small = make_patches(cut(maps, 4, [(0, 1, 2)]), [0]).values
    assert (small != 0).sum() == 64
    big = make_patches(cut(maps, 16, [(1, 0, 1)]), [1]).values
    assert (big != 0).sum() == ENTRIES
    [patch] = cut(maps, 16, [(1, 0, 1)])
    assert patch[big[0] != 0].min() >= patch[big[0] == 0].max()
    assert torch.allclose(big.norm(), torch.tensor(1.0))


def test_s2_is_the_cosine_over_the_entries_that_count():
    maps = c1(s1(fields()))
    places = [(0, 1, 0), (1, 0, 2), (0, 0, 1)]
    patches = make_patches(cut(maps, 16, places), [speed for speed, _, _ in places])
    found = s2(maps, patches)
    assert found.shape == (2, 3, 2, 4)
    for number, (speed, _, _) in enumerate(places):
        prototype = patches.values[number]
        counts = prototype != 0
        for y, x in ((0, 0), (1, 3)):
            here = maps[1, speed, :, y : y + 16, x : x + 16][counts]
            wanted = (here @ prototype[counts]) / here.norm()
            assert torch.allclose(found[1, number, y, x], wanted, atol=1e-5)
    for number, (_, y, x) in enumerate(places):  # where it was cut it is itself
        assert torch.allclose(found[0, number, y, x], torch.tensor(1.0), atol=1e-5)


def test_what_stands_still_is_like_no_prototype():
    patches = make_patches(cut(c1(s1(fields())), 8, [(0, 1, 2)]), [0])
    still = c2(s2(c1(s1(torch.zeros(1, 72, 80, 2))), patches))
    assert (still == 0).all()


def test_c2_is_the_largest_wherever_it_is():
    moving = torch.zeros(1, 104, 120, 2)
    moving[0, 16:56, 24:64] = fields(1, 40, 40)
    elsewhere = moving.roll((32, 40), (1, 2))
    maps = c1(s1(moving))
    prototypes = [
        make_patches(cut(maps, side, [(speed, 4, 6)]), [speed])
        for side in (4, 8)
        for speed in (0, 1)
    ]
    here, there = (c2_of_fields(one, prototypes) for one in (moving, elsewhere))
    assert here.shape == (1, 4)
    assert torch.allclose(here, torch.ones(1, 4), atol=1e-5)
    assert torch.allclose(here, there, atol=1e-5)
    assert torch.equal(c2(s2(maps, prototypes[0])), s2(maps, prototypes[0]).flatten(2).max(2)[0])


def test_the_largest_prototype_fits_the_least_side_only_just():
    patches = Patches(torch.ones(1, 4, 16, 16), torch.tensor([0]))
    side = least_side()
    assert s2(c1(s1(fields(1, side, side))), patches).shape == (1, 1, 1, 1)
    assert c1(s1(fields(1, side - 1, side))).shape[3] == 15


def test_s3_is_the_cosine_of_seven_frames_and_c3_the_largest_over_time():
    random = np.random.default_rng(0)
    frames, other = random.random((12, 5)), random.random((9, 5))
    runs = sequences(frames)
    assert runs.shape == (6, 35)
    assert np.array_equal(runs[2], frames[2:9].ravel())
    prototypes = np.stack([runs[4], sequences(other)[1]])
    found = s3(frames, prototypes)
    assert found.shape == (6, 2)
    wanted = runs[3] @ prototypes[1] / np.linalg.norm(runs[3]) / np.linalg.norm(prototypes[1])
    assert math.isclose(found[3, 1], wanted)
    assert math.isclose(found[4, 0], 1.0)
    assert np.array_equal(c3(found), found.max(0)) and math.isclose(c3(found)[0], 1.0)


def test_a_video_of_few_frames_is_looped():
    frames = np.arange(6.0).reshape(3, 2)
    runs = sequences(frames)
    assert runs.shape == (1, 2 * SEQUENCE)
    assert np.array_equal(runs.reshape(SEQUENCE, 2), frames[[0, 1, 2, 0, 1, 2, 0]])


def test_selection_keeps_the_features_that_tell_the_classes_apart():
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 40)
    vectors = random.normal(0, 1, (120, 30))
    for label, feature in enumerate((4, 17, 23)):
        vectors[:, feature] += 4 * (labels == label)
    assert select_features(vectors, labels, 3).tolist() == [4, 17, 23]
    assert len(select_features(vectors, labels, 30)) == 30
