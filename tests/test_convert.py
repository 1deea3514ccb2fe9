"""Conversion of records: to the byte what extraction writes, or refused; nothing else is lost."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import run_here
from made_records import write_record
from made_videos import moving_texture, write_video

from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, UsageError
from flowkit.evaluation.held_records import video_request
from flowkit.extraction.convert import Change, convert_record, find_sources
from flowkit.extraction.extract import extract_video
from flowkit.extraction.plan import plan
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.flow.stabilized import Stabilization
from flowkit.records.layout import Storage
from flowkit.records.reading import flow_of, open_record
from flowkit.records.verify import verify_record
from flowkit.video.sources import Source

ID = "jump/a"
DIS = make_method("dis")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.avi"
    return write_video(path, moving_texture(4, size=(40, 56)))


@pytest.fixture(scope="module")
def extracted(video, tmp_path_factory):
    """Where the record of the video lies that is stored so; extracted once each."""
    made: dict[Storage, Path] = {}

    def extract(**storage: object) -> Path:
        asked = Storage(**storage)
        if asked not in made:
            made[asked] = tmp_path_factory.mktemp("flow")
            extract_video(Source(video, ID), made[asked], request_for(asked))
        return made[asked]

    return extract


def request_for(storage):
    return Request(DIS, steps=(1, 2), backward=True, storage=storage)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def convert(flow, out, **change):
    [source] = find_sources(flow, out, change.get("layout"))
    return convert_record(source, out, Change(**change))


EXACT = [
    ({"format": "npy"}, {"format": "flo"}),
    ({"format": "flo"}, {"format": "lz4"}),
    ({"format": "npy"}, {"format": "jpg", "bound": 7.0, "quality": 70}),
    ({"format": "npy", "rgb": False}, {"format": "png", "pack": True}),
    ({"format": "flo"}, {"format": "jpg", "layout": "twostreamfusion"}),
    ({"format": "png"}, {"format": "lz4"}),
    ({"format": "lz4", "bound": 5.0, "pack": True}, {"format": "jpg", "bound": 5.0, "pack": False}),
    ({"format": "lz4"}, {"format": "jpg", "quality": 40}),
    ({"format": "jpg"}, {"rgb": False}),
    ({"format": "jpg", "bound": 5.0}, {"layout": "twostreamfusion"}),
    ({"format": "jpg", "quality": 80}, {"pack": True}),
    ({"format": "png", "bound": 5.0}, {"layout": "denseflow"}),
    ({"format": "npy"}, {"format": "jpg", "bound": 5.0, "layout": "pytorch-i3d"}),
    ({"format": "jpg", "bound": 5.0, "layout": "pytorch-i3d"}, {"layout": "twostreamfusion"}),
    ({"format": "png", "layout": "twostreamfusion"}, {"format": "jpg", "rgb": False}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "change"), EXACT)
def test_a_record_becomes_to_the_byte_what_extraction_writes(extracted, tmp_path, before, change):
    after = {**before, **change}
    asked = {key: value for key, value in change.items() if key != "rgb"}
    done = convert(extracted(**before), tmp_path, **asked, without_rgb=change.get("rgb") is False)
    assert done.written and done.frames == 4 and done.fields == 2 * (3 + 2)
    assert tree(tmp_path) == tree(extracted(**after))
    assert plan([Source(Path("/nowhere"), ID)], tmp_path, request_for(Storage(**after)),
                changed="keep") == []  # fmt: skip


INEXACT = [
    ({"format": "jpg"}, {"format": "lz4"}, "JPEG of quality 90"),
    ({"format": "jpg"}, {"quality": 80}, "JPEG of quality 90"),
    ({"format": "png"}, {"format": "npy"}, "8 bits"),
    ({"format": "png"}, {"bound": 3.0}, "rounded within its own range"),
    ({"format": "lz4", "bound": 5.0}, {"bound": 3.0}, r"rounded within \+-5 px"),
]


@pytest.mark.parametrize(("before", "change", "reason"), INEXACT)
def test_what_extraction_would_not_write_is_refused_and_told_where_it_is_wanted(
    extracted, tmp_path, before, change, reason
):
    flow = extracted(**before)
    with pytest.raises(RecordError, match=f"{reason}.*--inexact"):
        convert(flow, tmp_path, **change)
    assert tree(tmp_path) == {}
    convert(flow, tmp_path, **change, inexact=True)
    source, made = open_record(flow / ID), open_record(tmp_path / ID)
    assert verify_record(tmp_path / ID).kind == "sound"
    told = made.sidecar["request"]["converted"]
    assert told == {key: source.sidecar["request"][key] for key in ("format", "quality", "bound")}
    with pytest.raises(UsageError, match="made from other parameters: converted"):
        asked = {key: made.sidecar["request"][key] for key in ("format", "quality", "bound")}
        plan([Source(Path("/nowhere"), ID)], tmp_path, request_for(Storage(**asked)))
    with pytest.raises(RecordError, match="converted already"):
        [again] = find_sources(tmp_path, tmp_path / "../x", None)
        convert_record(again, tmp_path / "x", Change(bound=1.0, format="png", inexact=True))


def test_planes_kept_without_loss_are_the_flow_of_their_source(extracted, tmp_path):
    flow = extracted(format="jpg")
    convert(flow, tmp_path, format="lz4", inexact=True)
    old, new = open_record(flow / ID), open_record(tmp_path / ID)
    for one in old.series:
        place = {"direction": one.direction, "step": one.step}
        assert np.array_equal(old.fields(0, one.count, **place), new.fields(0, one.count, **place))
    assert flow_of(new) == flow_of(old)


def test_a_record_of_stabilized_flow_stays_one(video, tmp_path):
    request = Request(DIS, storage=Storage("flo"), stabilize=Stabilization())
    extract_video(Source(video, ID), tmp_path / "flow", request)
    convert(tmp_path / "flow", tmp_path / "new", format="png")
    extract_video(Source(video, ID), tmp_path / "png", replace(request, storage=Storage("png")))
    assert tree(tmp_path / "new") == tree(tmp_path / "png")


def test_a_network_trained_on_flow_converted_with_a_loss_predicts_no_video(extracted, tmp_path):
    convert(extracted(format="png"), tmp_path, bound=3.0, inexact=True)
    flow = flow_of(open_record(tmp_path / ID))
    assert flow["converted"] == {"format": "png", "quality": 90, "bound": None}
    trained = SimpleNamespace(flow=flow, inputs={"temporal": StackForm(2)})
    with pytest.raises(UsageError, match="converted with a loss"):
        video_request([trained])


def test_a_rerun_does_nothing_and_another_form_is_refused(extracted, tmp_path):
    convert(extracted(format="npy"), tmp_path, format="png")
    before = tree(tmp_path)
    assert not convert(extracted(format="npy"), tmp_path, format="png").written
    with pytest.raises(RecordError, match=r"bound: null on disk.*--overwrite replaces it"):
        convert(extracted(format="npy"), tmp_path, format="png", bound=5.0)
    assert tree(tmp_path) == before


@pytest.fixture
def flow(tmp_path):
    fields = np.random.default_rng(0).normal(0, 2, (3, 8, 10, 2)).astype(np.float32)
    for name in "abc":
        write_record(tmp_path / "flow", f"jump/{name}", fields)
    return tmp_path / "flow"


def run(flow, *options):
    return run_here("convert", flow, "--out", "new", "-j", 1, *options, cwd=flow.parent)


def test_one_bad_record_is_named_and_the_rest_is_done(flow):
    file = flow / "jump/b/flow_00002.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    shutil.rmtree(flow / "jump/c")
    write_record(flow, "jump/c", np.zeros((2, 8, 10, 2), np.float32), format="png")
    done = run(flow, "--format", "png", "--json", "--failures", "failed.txt")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["status"] for one in lines] == ["done", "failed", "done", "summary"]
    assert "flow_00002.npy: damaged: its checksum does not agree" in lines[1]["reason"]
    assert "jump/b\t" in (flow.parent / "failed.txt").read_text()
    assert sorted(p.name for p in (flow.parent / "new").rglob("*") if p.is_dir()) == [
        "a", "c", "jump"]  # fmt: skip
    write_record(flow, "jump/d", np.zeros((2, 8, 10, 2), np.float32))
    shutil.rmtree(flow / "jump/b")
    done = run(flow, "--format", "png")
    assert done.returncode == 0
    assert b"1 done, 2 there already, 0 failed" in done.stderr


def test_a_changed_sidecar_and_a_missing_file_fail(flow):
    sidecar = flow / "jump/a/record.json"
    sidecar.write_bytes(sidecar.read_bytes().replace(b'"fps": 25.0', b'"fps": 24.0'))
    (flow / "jump/b/flow_00003.npy").unlink()
    done = run(flow, "--format", "flo")
    assert done.returncode == 1
    assert b"record.json has changed since it was written" in done.stderr
    assert b"flow_00003.npy: file is missing" in done.stderr
    assert sorted(p.name for p in (flow.parent / "new/jump").iterdir()) == ["c"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), b"expected what to change"),
        (("--format", "npy", "--bound", "20"), b"--bound goes with 8-bit planes"),
    ],
)
def test_what_cannot_be_asked_for_is_said(flow, options, words):
    done = run(flow, *options)
    assert done.returncode in (1, 2) and words in done.stderr
    assert not list((flow.parent / "new").rglob("record.json"))


def test_the_new_records_do_not_go_among_the_old_ones(flow):
    for out in (flow, flow / "png", flow / "jump/a"):
        done = run_here("convert", flow, "--out", out, "--format", "png", cwd=flow.parent)
        assert done.returncode == 2 and b"choose another folder" in done.stderr
    done = run_here("convert", flow / "jump/a", "--out", "one", "--format", "png", cwd=flow.parent)
    assert done.returncode == 0 and (flow.parent / "one/a/record.json").exists()


def test_a_layout_without_class_folders_takes_no_two_of_a_name(flow):
    write_record(flow, "sit/a", np.zeros((2, 8, 10, 2), np.float32))
    done = run(flow, "--format", "png", "--layout", "twostreamfusion")
    assert done.returncode == 2 and b"no class folders" in done.stderr


def test_the_converted_records_serve_info_split_and_stack(flow):
    for name in "de":
        write_record(flow, f"sit/{name}", np.zeros((3, 8, 10, 2), np.float32))
    assert run(flow, "--format", "lz4", "--bound", "6").returncode == 0
    new = flow.parent / "new"
    assert b"lz4" in run_here("info", new / "jump/a", cwd=flow.parent).stdout
    done = run_here("split", "make", "new", "--out", "split.json", cwd=flow.parent)
    assert done.returncode == 0, done.stderr
    old, made = (open_record(root / "jump/a").fields(0, 3) for root in (flow, new))
    assert np.abs(np.clip(old, -6, 6) - made).max() <= 6 / 127 / 2 + 1e-6


def test_every_pair_of_formats_is_exact_or_says_why_not():
    """The law behind the table: what has lost something never becomes what would hold it."""
    from flowkit.extraction.convert import _loss

    order = ["npy", "flo", "png", "lz4", "jpg"]
    rank = {"npy": 0, "flo": 0, "png": 1, "lz4": 1, "jpg": 2}
    for before, after in itertools.product(order, order):
        exact = not _loss(Storage(before), Storage(after))
        assert exact == (rank[before] <= rank[after]), (before, after)
