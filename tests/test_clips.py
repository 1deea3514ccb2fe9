"""Clips and views: where they lie, that they fit, that they are equally spaced, and looping."""

import numpy as np
import pytest

from flowkit.data.clips import (
    SCALES,
    Clip,
    View,
    center_view,
    chosen_clip,
    corner_view,
    random_clips,
    random_frames,
    random_view,
    rescaled_size,
    spaced_clips,
    spaced_frames,
    ten_views,
)
from flowkit.errors import RecordError, UsageError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("field_count, step", [(10, 1), (11, 1), (40, 1), (40, 3), (28, 3)])
def test_random_clips_fit_and_start_everywhere_they_can(field_count, step):
    random = rng()
    clips = [random_clips("a", field_count, 10, random, step=step)[0] for _ in range(2000)]
    assert all(max(clip.fields(10**9)) < field_count for clip in clips)  # none is looped
    starts = np.unique([clip.start for clip in clips])
    np.testing.assert_array_equal(starts, np.arange(field_count - 9 * step))


@pytest.mark.parametrize("frames", [9, 10, 11, 25])  # with 0, 1, 2 and 16 places
def test_segments_give_a_clip_of_each_equal_part(frames):
    starts = max(frames - 10 + 1, 1)
    random = rng()
    drawn = [random_clips("a", frames, 10, random, segments=3) for _ in range(500)]
    for part in range(3):
        found = {clips[part].start for clips in drawn}
        first, last = part * starts // 3, (part + 1) * starts // 3
        assert found == set(range(first, max(last, first + 1)))
    assert all(len(clips) == 3 for clips in drawn)


def test_random_clips_start_at_all_frames_alike():
    random = rng()
    starts = [random_clips("a", 14, 10, random)[0].start for _ in range(5000)]
    assert np.abs(np.bincount(starts) / 5000 - 0.2).max() < 0.03


def test_moments_are_equally_spaced_over_all_frames():
    frames = spaced_frames(164)  # UCF-101's first video
    assert len(frames) == 25 and (frames[0], frames[-1]) == (0, 163)
    assert np.abs(frames - np.linspace(0, 163, 25)).max() <= 0.5
    assert spaced_frames(3, 5) == [0, 1, 1, 2, 2]  # 0.5 and 1.5, halves up
    assert spaced_frames(1) == [0] * 25
    assert (spaced_frames(9, 1), spaced_frames(10, 1)) == ([4], [4])


@pytest.mark.parametrize("length", [1, 5, 10])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("frame_count", [3, 12, 41, 164])
def test_the_stack_of_a_moment_fits_and_has_its_middle_nearest_to_it(length, step, frame_count):
    moments = spaced_frames(frame_count)  # which are the spatial stream's, whatever L and step
    clips = spaced_clips("a", frame_count - step, length, step=step)
    fitting = range(max(frame_count - length * step, 1))
    for moment, clip in zip(moments, clips, strict=True):
        away = {start: abs(start + length * step / 2 - moment) for start in fitting}
        nearest = [start for start in fitting if away[start] == min(away.values())]
        assert clip.start == nearest[-1]  # of two equally near ones the later
    assert (clips[0].start, clips[-1].start) == (0, fitting[-1])


def test_spaced_clips_of_one_and_of_few_moments():
    assert [clip.start for clip in spaced_clips("a", 19, 10, moments=1)] == [4]
    assert [clip.start for clip in spaced_clips("a", 19, 10, moments=3)] == [0, 5, 9]
    assert [clip.start for clip in spaced_clips("a", 11, 10, moments=5)] == [0, 0, 1, 1, 1]


def test_random_frames_are_all_frames_alike():
    random = rng()
    counts = np.bincount([random_frames(7, random)[0] for _ in range(7000)], minlength=7)
    assert abs(counts - 1000).max() < 120  # 4 deviations
    assert random_frames(1, random, 3) == [0, 0, 0]


def test_short_video_is_looped_from_its_first_field():
    [clip] = spaced_clips("a", 4, 10, moments=1)
    assert clip.start == 0
    assert clip.fields(4) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert clip.frame(4) == 1  # frame 5 of the looped video, the one that field 5 starts from
    assert random_clips("a", 4, 10, rng())[0] == clip


def test_halves_go_both_ways_from_the_middle_frame_over_the_frames_of_the_clip():
    clip = Clip("a", 20, 10)
    ahead, back = clip.halves(100)
    assert clip.middle == clip.frame(100) == 25
    assert ahead == [25, 26, 27, 28, 29] and back == [24, 23, 22, 21, 20]
    assert sorted(ahead + back) == clip.fields(100)


def test_both_forms_and_both_streams_address_the_same_moments():
    for field_count in (5, 9, 40, 163):
        for clip in spaced_clips("a", field_count, 10):
            ahead, back = clip.halves(field_count)
            assert ahead[0] == clip.frame(field_count)
            assert clip.fields(field_count)[5] == ahead[0]
            assert (back[0] + 1) % field_count == ahead[0]


def test_halves_of_fields_over_several_frames_meet_end_to_end():
    ahead, back = Clip("a", 3, 4, step=2).halves(100)
    assert ahead == [7, 9] and back == [5, 3]  # 7->9->11; 7->5->3


@pytest.mark.parametrize(
    "size, rescaled",
    [
        ((240, 320), (256, 341)),
        ((320, 240), (341, 256)),
        ((256, 256), (256, 256)),
        ((1080, 1920), (256, 455)),
        ((3, 8), (256, 683)),
    ],
)
def test_short_side_is_rescaled_to_256(size, rescaled):
    assert rescaled_size(size) == rescaled


def test_ten_views_are_corners_and_center_then_their_flips():
    views = ten_views((240, 320))
    places = [(view.top, view.left) for view in views]
    assert places[:5] == [(0, 0), (0, 117), (32, 0), (32, 117), (16, 58)] == places[5:]
    assert [view.flip for view in views] == [False] * 5 + [True] * 5
    assert {(view.frame, view.height, view.width) for view in views} == {((256, 341), 224, 224)}
    assert center_view((240, 320)) == views[4]


def test_random_views_come_from_anywhere_in_the_frame():
    random = rng()
    views = [random_view((240, 320), random) for _ in range(4000)]
    assert {view.top for view in views} == set(range(33))
    assert {view.left for view in views} == set(range(118))
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.05


def test_corner_views_are_the_five_places_in_both_directions():
    random = rng()
    views = {corner_view((240, 320), random) for _ in range(300)}
    assert views == set(ten_views((240, 320)))


def test_multi_scale_crops_have_neighboring_sides_and_all_of_them():
    random = rng()
    views = [corner_view((240, 320), random, sides=SCALES) for _ in range(3000)]
    found = {(view.height, view.width) for view in views}
    places = range(len(SCALES))
    assert found == {(SCALES[a], SCALES[b]) for a in places for b in places if abs(a - b) <= 1}


def test_the_same_seed_gives_the_same_addresses():
    def draw(seed):
        random = rng(seed)
        return [
            (random_clips("a", 99, 10, random)[0], random_view((240, 320), random))
            for _ in range(9)
        ]

    assert draw(7) == draw(7) != draw(8)


def test_addresses_are_integers():
    clip, view = random_clips("a", 99, 10, rng())[0], corner_view((240, 320), rng(), sides=SCALES)
    assert type(clip.start) is int and type(spaced_clips("a", 99, 10)[3].start) is int
    assert all(type(number) is int for number in (view.top, view.left, view.height, *view.frame))


def test_chosen_clips_fit_or_are_refused():
    assert chosen_clip("a", 12, 10, 2) == Clip("a", 2, 10)
    assert chosen_clip("a", 4, 10, 0) == Clip("a", 0, 10)  # looped
    for field_count, start in ((12, 3), (12, -1), (4, 1)):
        with pytest.raises(UsageError, match=r"start within frames 0\.\.[02], got"):
            chosen_clip("a", field_count, 10, start)


REFUSED = {
    "at least one segment": lambda: random_clips("a", 99, 10, rng(), segments=0),
    "a length and a step of at least 1": lambda: random_clips("a", 9, 0, rng())[0],
    "at least one moment": lambda: spaced_clips("a", 9, 5, moments=0),
    r"200x267 \(HxW\), got 224x224": lambda: ten_views((240, 320), short_side=200),
    "frame of 200x267": lambda: random_view((240, 320), rng(), short_side=200),
    "within a frame of": lambda: View((10, 10), 0, -1, 5, 5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_addresses_that_cannot_be_are_refused(message):
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()


def test_video_without_fields_is_an_error_that_names_it():
    with pytest.raises(RecordError, match="jump/a: expected at least one field"):
        random_clips("jump/a", 0, 10, rng())[0]
    with pytest.raises(RecordError, match="jump/a: expected at least one field"):
        Clip("jump/a", 0, 10).fields(0)
