"""Scores and their file: round trips, joining by name, and refusal of what is malformed."""

import io
import json
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from made_scores import CLASSES, make_scores, shuffle
from scipy.special import softmax as scipy_softmax

from flowkit.errors import FlowkitError, ScoresError
from flowkit.scores import npz
from flowkit.scores.files import (
    PLACED,
    Scores,
    align,
    find_scores,
    heldout_path,
    name_streams,
    read_scores,
    softmax,
    stream_name,
    write_scores,
)

META = {"version": 1, "kind": "softmax"}
GOOD = {
    "videos": np.array(["a", "b"]),
    "classes": np.array(["x", "y"]),
    "scores": np.full((2, 2), 0.5, np.float32),
    "labels": np.array([0, -1]),
}


def save(path, *, meta=META, **changes):
    """A file by numpy alone, as anyone would write it; None leaves an array out."""
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(path, **arrays, meta=json.dumps(meta) if isinstance(meta, dict) else meta)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores-test.npz"


def assert_refused(path, match):
    with pytest.raises(ScoresError, match=match) as caught:
        read_scores(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text and len(text) < 500
    assert isinstance(caught.value, FlowkitError) and isinstance(caught.value, ValueError)


def test_file_comes_back(path):
    scores = make_scores(split="made-1", views=250)
    write_scores(path, scores)
    back = read_scores(path)
    assert (back.videos, back.classes, back.meta) == (scores.videos, scores.classes, scores.meta)
    np.testing.assert_array_equal(back.values, scores.values)
    np.testing.assert_array_equal(back.labels, scores.labels)
    assert (back.values.dtype, back.labels.dtype) == (np.float32, np.int64)
    assert back.part == "test"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_is_what_the_format_says(path):
    write_scores(path, make_scores())
    with np.load(path, allow_pickle=False) as file:
        assert {name: (file[name].dtype.kind, file[name].ndim) for name in file} == {
            "videos": ("U", 1),
            "classes": ("U", 1),
            "scores": ("f", 2),
            "labels": ("i", 1),
            "meta": ("U", 0),
        }
        assert json.loads(str(file["meta"])) == {"version": 1, "kind": "softmax", "part": "test"}


def test_file_of_three_lines_by_numpy_is_read(path):
    values = np.asfortranarray([[1, 2], [3, -4]], dtype=">f8")
    save(path, scores=values, labels=None, meta={"version": 1, "kind": "logits"})
    scores = read_scores(path)
    np.testing.assert_array_equal(scores.values, values)
    assert scores.labels.tolist() == [-1, -1]
    assert scores.part is None


def test_names_of_any_language_come_back(path):
    names = ("跳/é_01", "name with blanks", "surrogate\udce9")
    write_scores(path, Scores(names, ("x", "y"), np.zeros((3, 2)), None, {"kind": "logits"}))
    assert read_scores(path).videos == names


class Bomb:
    def __reduce__(self):
        return exec, ("raise AssertionError('a pickle was executed')",)


def test_pickled_objects_are_never_loaded(path):
    save(path, videos=np.array([Bomb(), Bomb()], dtype=object))
    assert_refused(path, r"Object arrays cannot be loaded.*numpy\.array\(names, dtype=str\)")


def test_a_bare_pickle_is_refused(path):
    path.write_bytes(pickle.dumps(Bomb()))
    assert_refused(path, "expected an .npz file")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": np.array([[0.5, 0.5], [np.nan, 1]])}, "got NaN or infinity for b"),
        ({"scores": np.array([[0.5, 0.5], [1e300, 1]])}, "got NaN or infinity for b"),
        ({"scores": np.zeros((3, 2))}, r"\(2, 2\) for 2 videos.*\(3, 2\)"),
        ({"scores": np.zeros(2)}, r"expected numbers \(2, 2\)"),
        ({"scores": np.array([["a", "b"]] * 2)}, "expected scores to be numbers, got <U1"),
        ({"scores": np.zeros((2, 2), complex)}, "expected scores to be numbers, got complex"),
        ({"scores": np.zeros((2, 2), [("a", "f4")])}, "expected scores to be numbers"),
        ({"scores": np.array([[2.5, -1.5], [0.5, 0.5]])}, 'a sums to 1, least -1.5.*"logits"'),
        ({"scores": np.array([[5.0, 3.0], [0.5, 0.5]])}, 'a sums to 8.*kind "logits"'),
        ({"videos": np.array(["a", "a"])}, "every video id once, got more than once: a"),
        ({"classes": np.array(["y", "y"])}, "every class name once, got more than once: y"),
        ({"videos": np.array([b"a", b"b"])}, "expected videos to be text, got"),
        ({"videos": np.array([["a", "b"]])}, r"expected videos in one row, got \(1, 2\)"),
        ({"videos": np.array("a")}, r"expected videos in one row, got \(\)"),
        ({"videos": np.array(["a", ""])}, "video id without control characters, got ''"),
        ({"videos": np.array(["a", "\x1b[2J"])}, r"control characters, got '\\x1b\[2J'"),
        ({"videos": np.array([], str)}, "at least 1 video ids, got 0"),
        ({"classes": np.array(["x"]), "scores": np.ones((2, 1))}, "at least 2 class names, got 1"),
        ({"labels": np.array([0, 2])}, r"labels from -1 \(unknown\) to 1, got 0 to 2"),
        ({"labels": np.array([-2, 0])}, "got -2 to 0"),
        ({"labels": np.array([0, 2**64 - 1], np.uint64)}, "got 0 to 18446744073709551615"),
        ({"labels": np.array([0.0, 1.0])}, "expected integer labels"),
        ({"labels": np.array([0])}, r"expected integer labels \(2,\), got int64 \(1,\)"),
        ({"classes": None}, "arrays classes, which are missing"),
        ({"meta": "{"}, "Expecting property name"),
        ({"meta": "[1]"}, r"expected a meta, in JSON \(got list"),
        ({"meta": '{"version": NaN}'}, "NaN is no number"),
        ({"meta": "[" * 100_000}, "nested too deep"),
        ({"meta": np.array(["{}"])}, r"one JSON string, got an array \(1,\)"),
        ({"meta": {"kind": "softmax"}}, "scores file of version 1, got version None"),
        ({"meta": {"version": 2, "kind": "softmax"}}, "later flowkit wrote it"),
        ({"meta": {"version": 1}}, "a kind of softmax, logits, got None"),
        ({"meta": {**META, "part": "val"}}, "got 'val'"),
        ({"meta": {**META, "split": 1}}, "as split, got 1"),
        ({"meta": {**META, "about": "\x1b[2J"}}, "expected meta with a line of text as about"),
        ({"meta": {**META, "nets": "small"}}, "expected meta with a list of names as nets"),
        ({"meta": {**META, "nets": ["\x1b[2J"]}}, "expected meta with a list of names as nets"),
    ],
)
def test_malformed_file_is_one_clear_line(path, changes, match):
    save(path, **changes)
    assert_refused(path, match)


def test_names_and_values_are_brought_to_their_types():
    scores = Scores(["a"], np.array(["run", "jump"]), [[1, 0]], [0], {"kind": "softmax"})
    assert (scores.videos, scores.classes) == (("a",), ("run", "jump"))
    assert {type(name) for name in scores.classes} == {str}
    assert (scores.values.dtype, scores.labels.dtype) == (np.float32, np.int64)


@pytest.mark.filterwarnings("error")
def test_scores_beyond_float32_are_refused_without_a_warning_besides():
    with pytest.raises(ScoresError, match="got NaN or infinity for b"):
        Scores(("a", "b"), ("run", "jump"), np.array([[0.5, 0.5], [1e300, 1]]))


def test_missing_file_names_the_command_that_makes_it(path):
    assert_refused(path, "no such file: flowkit eval writes one")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_file_is_refused(path, damage):
    data = bytearray(save(path).read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "changed":
        data[data.index(struct.pack("<f", 0.5))] ^= 1
    else:
        data = b""
    path.write_bytes(data)
    assert_refused(path, "expected an .npz file")


def with_member(path, name, data, **kind):
    """The good file with the bytes of one member replaced."""
    save(path)
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", **kind) as new:
        for member, content in {**members, f"{name}.npy": data}.items():
            new.writestr(member, content)
    return path


def header(shape, descr="<f4", version=(1, 0)):
    file = io.BytesIO()
    text = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, text)
    data = bytearray(file.getvalue())
    data[6:8] = version
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header((10**12, 10**6)), "expected scores to be a whole array"),
        (header((-2, -2)) + bytes(16), "expected scores to be a whole array"),
        (header((2, 2)) + bytes(15), "expected scores to be a whole array"),
        (header((2, 2)) + bytes(17), "in scores, got 145 bytes"),
        (header((2, 2), "|O") + bytes(32), "Object arrays cannot be loaded"),
        (header((2, 2), version=(9, 9)) + bytes(16), "format version"),
        (header((2, 2), "|O").replace(b"|O", b"?!"), r"scores \w.*\(descr is not a valid"),
        (b"no array", "magic string is not correct"),
        (b"", "EOF: reading magic string"),
    ],
)
def test_header_that_lies_reserves_no_memory(path, data, match):
    assert_refused(with_member(path, "scores", data), match)


def test_text_that_is_no_unicode_is_refused(path):
    bad = header((2,), "<U1") + struct.pack("<II", 0x7FFFFFFF, 65)
    assert_refused(with_member(path, "videos", bad), "expected videos to be text, got what is no")


def test_text_of_no_width_and_absurd_length_is_refused(path):
    assert_refused(
        with_member(path, "videos", header((10**12,), "<U0")), "in videos, got 128 bytes"
    )


def test_a_zip_bomb_is_refused_before_it_is_unpacked(path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 100_000)
    zeros = header((1000, 1000)) + bytes(4_000_000)
    with_member(path, "scores", zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    assert_refused(path, "100,000 bytes at most, got 4,000,")


def test_an_encrypted_member_is_refused(path):
    data = bytearray(save(path).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    assert_refused(path, "encrypted")


def test_a_failed_write_leaves_the_old_file(path):
    write_scores(path, make_scores())
    before = path.read_bytes()
    bad = replace(make_scores(), meta={"kind": "softmax", "views": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_scores(path, bad)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_softmax_of_logits_is_scipys_and_stays_finite():
    scores = make_scores(kind="logits")
    np.testing.assert_allclose(softmax(scores), scipy_softmax(scores.values, axis=1), rtol=1e-6)
    huge = replace(scores, values=scores.values * 1e30)
    assert np.isfinite(softmax(huge)).all()
    probabilities = make_scores()
    np.testing.assert_array_equal(softmax(probabilities), probabilities.values)


def test_align_joins_by_video_and_class_name():
    scores = make_scores()
    streams = {"a": scores, "b": shuffle(scores, 1), "c": shuffle(scores, 2)}
    assert streams["b"].videos != scores.videos and streams["b"].classes != scores.classes
    for one in align(streams).values():
        assert (one.videos, one.classes) == (scores.videos, scores.classes)
        np.testing.assert_array_equal(one.values, scores.values)
        np.testing.assert_array_equal(one.labels, scores.labels)


def test_labels_that_one_knows_become_known_to_all():
    scores = make_scores()
    unknown = shuffle(replace(scores, labels=np.full(len(scores.videos), -1)), 1)
    half = replace(scores, labels=np.where(np.arange(len(scores.videos)) % 2, scores.labels, -1))
    assert (half.labels < 0).any()
    for streams in ({"a": unknown, "b": scores}, {"a": half, "b": unknown, "c": scores}):
        aligned = align(streams)
        by_name = dict(zip(scores.videos, scores.labels, strict=True))
        for one in aligned.values():
            names = [one.classes[label] for label in one.labels]
            assert names == [CLASSES[by_name[video]] for video in one.videos]


def test_align_lists_what_differs():
    scores = make_scores()
    fewer = Scores(
        scores.videos[7:], CLASSES, scores.values[7:], scores.labels[7:], {"kind": "softmax"}
    )
    with pytest.raises(ScoresError, match=r"^b lacks 7 videos of a: run/.*, .* and 2 more$"):
        align({"a": scores, "b": fewer})
    with pytest.raises(ScoresError, match=r"^a lacks 7 videos of b: run/"):
        align({"b": scores, "a": fewer})
    renamed = replace(scores, classes=("run", "golf", "wave", "Hammering", "hammer_throw"))
    with pytest.raises(
        ScoresError,
        match=r"^b lacks 1 .*: HammerThrow; a lacks 1 .*: hammer_throw$",
    ):
        align({"a": scores, "b": renamed})
    with pytest.raises(ScoresError, match="a scores the test part and b the heldout part"):
        align({"a": scores, "b": replace(scores, meta={"kind": "softmax", "part": "heldout"})})
    labels = scores.labels.copy()
    labels[3] = 1
    with pytest.raises(
        ScoresError,
        match=r"run in a, golf in b",
    ):
        align({"a": scores, "b": replace(scores, labels=labels)})
    with pytest.raises(ScoresError, match="at least one stream, got none"):
        align({})


def test_streams_are_named_by_their_place(tmp_path, monkeypatch):
    names = {
        "runs/temporal/scores-test.npz": "temporal",
        "runs/temporal/scores-heldout.npz": "temporal",
        "features/idt.npz": "idt",
        "features/idt-test.npz": "idt",
        "features/idt-heldout.npz": "idt",
    }
    assert {path: stream_name(path) for path in names} == names
    monkeypatch.chdir(tmp_path)
    assert stream_name("scores-test.npz") == tmp_path.name
    with pytest.raises(ScoresError, match=r"x/spatial/.* and y/spatial/.* both called 'spatial'"):
        name_streams(["x/spatial/scores-test.npz", "y/spatial/scores-test.npz"])


@pytest.mark.parametrize(
    ("test", "heldout"),
    [
        ("scores-test.npz", "scores-heldout.npz"),
        ("idt-test.npz", "idt-heldout.npz"),
        ("idt.npz", "idt-heldout.npz"),
    ],
)
def test_heldout_scores_lie_beside_test_scores(test, heldout):
    assert heldout_path(f"runs/x/{test}").as_posix() == f"runs/x/{heldout}"


def test_scores_are_found_in_files_runs_and_folders_of_runs(tmp_path):
    wanted = [tmp_path / "runs" / name / "scores-test.npz" for name in ("spatial", "temporal")]
    for path in wanted:
        write_scores(path, make_scores())
        write_scores(path.with_name("scores-heldout.npz"), make_scores(part="heldout"))
    runs = tmp_path / "runs"
    assert find_scores([runs]) == wanted
    assert find_scores([runs / "temporal"]) == wanted[1:]
    assert find_scores([wanted[1], runs]) == wanted[::-1]
    assert find_scores([runs], "heldout") == [heldout_path(path) for path in wanted]
    with pytest.raises(ScoresError, match=r"nothing: no such file: flowkit eval"):
        find_scores([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoresError, match=r"empty: no scores-test.npz there.*: flowkit eval"):
        find_scores([tmp_path / "empty"])


def test_input_is_left_as_it_is():
    scores = make_scores()
    before = scores.values.copy(), scores.labels.copy()
    align({"a": shuffle(scores, 3), "b": scores})
    np.testing.assert_array_equal(scores.values, before[0])
    np.testing.assert_array_equal(scores.labels, before[1])


def test_scores_of_the_earlier_moments_say_so_and_are_not_mixed(tmp_path):
    views = {"moments": 25, "crops": "ten", "average": "softmax"}
    old = make_scores(views=views, about="small, 25 x 10 views")
    new = make_scores(views=views | {"placed": PLACED}, about="small", seed=1)
    write_scores(tmp_path / "old.npz", old)
    assert read_scores(tmp_path / "old.npz").meta["about"].endswith("moments of an earlier rule")
    write_scores(tmp_path / "new.npz", new)
    assert read_scores(tmp_path / "new.npz").meta["about"] == "small"
    with pytest.raises(ScoresError, match=r"a and b look at different moments .* score it again"):
        align({"a": old, "b": new})
    align({"a": old, "b": old})
    align({"a": old, "elsewhere": make_scores()})  # made without views of flowkit's
