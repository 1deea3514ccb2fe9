"""Hostile files: each kind of file that flowkit reads, changed by hypothesis, and read.

Imported by benchmarks/faults.py, which tries many, and by tests/test_hostile_files.py.
"""

from __future__ import annotations

import ctypes
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.io import savemat

from flowkit._cv2 import cv2
from flowkit.data.images import ImageRecord
from flowkit.data.split_lists import hmdb51_split, list_split, ucf101_split
from flowkit.data.splits import Split, Video, read_split, write_split
from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError
from flowkit.evaluation.soundness import verify_file
from flowkit.fields import read_flo, write_flo
from flowkit.flow.raft import RAFT
from flowkit.idt.boxes import read_boxes
from flowkit.idt.fisher import Codebook
from flowkit.idt.parameters import TrackParameters
from flowkit.idt.records import DESCRIPTORS, TrackWriter, open_tracks, record_path
from flowkit.idt.tracking import track_dtype
from flowkit.idt.vectors import (
    VECTOR_FORMAT,
    VERSION,
    Codebooks,
    read_codebooks,
    read_vector,
    write_codebooks,
)
from flowkit.networks.checkpoints import (
    BEST,
    LAST,
    Checkpoint,
    load_net,
    read_tensors,
    write_checkpoint,
)
from flowkit.networks.towers import make_net
from flowkit.networks.weights import read_matconvnet, read_weights
from flowkit.records.foreign import open_foreign
from flowkit.records.layout import Storage
from flowkit.records.ownership import UNFINISHED, readable_claim
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import find_unfinished, verify_record
from flowkit.records.writing import RecordWriter
from flowkit.report.extras import read_curves
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fusion import Fusion, read_fusion, write_fusion
from flowkit.scores.npz import write_arrays
from flowkit.series import Series
from flowkit.training.log import read_log
from flowkit.video.reading import open_video
from flowkit.video.sources import find_videos
from flowkit.video.writing import write_video

MOST_S = 1.0  # of processor time, for a file
MOST_BYTES = 256 << 20  # of memory, for a file
MOST_TEXT = 1500  # letters of an error
ODD_VALUES = (None, True, -1, 0, 3, 10**30, 10**400, 1e308, float("nan"), float("inf"), 0.5, "",
              "x", "../../x", "/dev/zero", "%d", "../%0999999999d", "a\0b", "a\nb", "\x1b[31m",
              "\ud800", [], {}, [[]], [None], {"x": None}, {"format": "x"}, [0] * 1000,
              "a" * 100_000)  # fmt: skip
ODD_BYTES = (b"", b"\0", b"\xff\xfe", b"\xff" * 8, b"\n\n", b"\r", b"-1 ", b"9" * 5000, b'"',
             b"[" * 5000, b"1e400", b"NaN", b"\x1b[31m", b"\x80", b"PK\x05\x06")  # fmt: skip
JSON_VALUES = st.sampled_from(ODD_VALUES) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ODD_ARRAYS = (np.array(7), np.zeros((0, 2)), np.full((20, 2), np.nan), np.array([["a"]]),
              np.full(20, 1 + 1j), np.full(20, "2020", "M8[Y]"), np.array([b"a"] * 20),
              np.full((20, 2), 10**9), np.array([""] * 20), np.array(["a\0b\n"] * 20),
              np.zeros(20), np.zeros((2, 4)), np.zeros(2), np.zeros(20, np.int64) - 9,
              np.array("{"), np.array("[]"))  # fmt: skip

Change = Callable[[bytes], st.SearchStrategy[bytes]]


@dataclass(frozen=True)
class Kind:
    """A kind of file: what makes a sound one in a folder, what reads it, how it is changed.

    `read` gives "sound" where it says that a file is as it was written.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Change
    costs: int = 1  # times what others cost: so many fewer are tried


# --- changes --------------------------------------------------------------------------------------


def changed_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes cut, doubled, with strange ones between them, or with odd numbers in their place."""
    place = st.integers(0, len(data))

    @st.composite
    def spliced(draw: Any) -> bytes:
        begin, end = sorted((draw(place), draw(place)))
        between = draw(st.sampled_from((*ODD_BYTES, data)) | st.binary(max_size=20))
        return data[:begin] + between + data[draw(st.sampled_from((begin, end))) :]

    @st.composite
    def renumbered(draw: Any) -> bytes:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 3))):
            at, size = draw(place), draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from((0, 1, -1, 1 << 30, 1 << 62, 255)) | st.integers(0, 255))
            order = draw(st.sampled_from(("little", "big")))
            changed[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)
        return bytes(changed)

    return spliced() | renumbered()


def changed_json(data: bytes) -> st.SearchStrategy[bytes]:
    """A document with an odd value somewhere, or without one, or with odd bytes."""
    document = json.loads(data)
    ways = list(_ways(document))

    @st.composite
    def replaced(draw: Any) -> bytes:
        way, value = draw(st.sampled_from(ways)), draw(st.just(_MISSING) | JSON_VALUES)
        return json.dumps(_replaced(document, way, value)).encode()

    return st.one_of(replaced(), replaced(), changed_bytes(data))


_MISSING = object()


def _ways(value: Any, at: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """The way to every value inside a JSON value, and to itself."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _ways(inner, (*at, key))


def _replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return None if new is _MISSING else new
    changed = value.copy()
    if len(way) == 1 and new is _MISSING:
        del changed[way[0]]
    else:
        changed[way[0]] = _replaced(value[way[0]], way[1:], new)
    return changed


def changed_npz(data: bytes) -> st.SearchStrategy[bytes]:
    """An .npz file with an odd array, other names, odd `meta`, or odd bytes."""
    with np.load(io.BytesIO(data)) as opened:
        arrays = dict(opened)
    meta = arrays.get("meta")

    @st.composite
    def replaced(draw: Any) -> bytes:
        changed: dict[str, Any] = dict(arrays)
        name = draw(st.sampled_from(sorted(arrays)))
        match draw(st.sampled_from(("array", "name", "bytes", "packed", "meta"))):
            case "array":
                changed[name] = draw(st.sampled_from((*ODD_ARRAYS, *arrays.values())))
            case "name":
                changed[draw(st.text(max_size=9))] = changed.pop(name)
            case "meta" if meta is not None:
                text = draw(changed_json(str(meta).encode()))
                changed["meta"] = np.array(text.decode(errors="replace"))
            case way:
                member = draw(changed_bytes(_npy(arrays[name])))
                return _zipped(arrays, name, member, packed=way == "packed")
        return _zipped(changed)

    return st.one_of(replaced(), replaced(), changed_bytes(data))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _zipped(
    arrays: dict[str, np.ndarray], name: str = "", member: bytes = b"", *, packed: bool = False
) -> bytes:
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for one, array in arrays.items():
            archive.writestr(f"{one}.npy", member if one == name else _npy(array))
    return file.getvalue()


def changed_text(data: bytes) -> st.SearchStrategy[bytes]:
    """Lines with an odd word in the place of one, or odd bytes."""
    words = data.split(b" ")

    @st.composite
    def replaced(draw: Any) -> bytes:
        at, odd = draw(st.integers(0, len(words) - 1)), draw(st.sampled_from(ODD_VALUES))
        word = str(odd).encode(errors="surrogatepass")
        return b" ".join([*words[:at], word, *words[at + 1 :]])

    return replaced() | changed_bytes(data)


# --- files ----------------------------------------------------------------------------------------

FRAMES = np.random.default_rng(7).integers(0, 255, (3, 24, 32, 3), np.uint8)
FIELDS = np.random.default_rng(7).normal(0, 2, (2, 24, 32, 2)).astype(np.float32)


def make_record(out: Path, storage: Storage, id: str = "a") -> Path:
    """A record of three frames and two fields."""
    with RecordWriter(out, id, storage, (Series("forward", 1),)) as writer:
        for frame in FRAMES:
            writer.add_frame(frame)
        for field in FIELDS:
            writer.add_field(Series("forward", 1), field)
        writer.commit({"request": storage.identity(), "fps": 25.0}, overwrite=True)
    return out / id if storage.pack else out / writer.folder


def read_record(record: Path) -> str:
    """What `flowkit verify`, `info`, `stack` and `extract` do with a record."""
    kinds = [verify_record(path).kind for path in find_records(record.parent)]
    list(find_unfinished(record.parent))
    readable_claim(record)
    with suppress(FlowkitError):
        open_record(record).fields(0, 2)
        open_record(record).frame(1)
    return kinds[0] if kinds else "passed over"


def of_record(
    name: str, change: Callable[[bytes], st.SearchStrategy[bytes]], **storage: Any
) -> Kind:
    """A file of a record."""

    def make(folder: Path) -> Path:
        place = make_record(folder, Storage(**storage))
        return place.with_name("a.zip") if storage.get("pack") else place / name

    def read(file: Path) -> str:
        return read_record(file if storage.get("pack") else file.parent)

    return Kind(make, read, change)


def make_table(folder: Path) -> Path:
    make_record(folder, Storage(format="png", layout="twostreamfusion"))
    return folder / "u" / "a.bin"


def read_table(file: Path) -> str:
    open_foreign(file.parent.parent / "a", layout="twostreamfusion").fields(0, 2)
    return verify_record(file.parent.parent / "records" / "a").kind


def make_unfinished(folder: Path) -> Path:
    place = make_record(folder, Storage(format="png", layout="twostreamfusion"))
    sidecar = json.loads((place / "record.json").read_bytes())
    (place / "record.json").unlink()
    document = {"format": "flowkit unfinished record", "version": 1, "sidecars": [sidecar]}
    (place / UNFINISHED).write_text(json.dumps(document))
    return place / UNFINISHED


def read_unfinished(file: Path) -> None:
    list(find_unfinished(file.parent.parent.parent))
    readable_claim(file.parent)


def make_foreign(folder: Path) -> Path:
    (folder / "v").mkdir()
    for k in (1, 2, 3):
        for name in ("img", "flow_x", "flow_y"):
            cv2.imwrite(str(folder / "v" / f"{name}_{k:05d}.jpg"), FRAMES[0, ..., 0])
    return folder / "v" / "flow_x_00001.jpg"


def read_foreign(file: Path) -> None:
    record = open_foreign(file.parent, layout="tsn", bound=20)
    record.fields(0, 3)
    record.frame(1)


def make_scores(folder: Path) -> Path:
    videos = [f"run/v{number}" for number in range(20)]
    scores = Scores(videos, ("run", "golf"), np.zeros((20, 2)), meta={"kind": "logits"})
    write_scores(folder / "scores.npz", scores)
    return folder / "scores.npz"


def make_split(folder: Path) -> Path:
    train = tuple(Video(f"run/v{k}", "run", f"g{k}", 30) for k in range(4))
    write_split(folder / "split.json", Split("made", ("run", "golf"), train, (), ()))
    return folder / "split.json"


def make_fusion(folder: Path) -> Path:
    fusion = Fusion(
        "svm",
        streams=("a", "b"),
        classes=("run", "golf"),
        coefficients=np.zeros((2, 4)),
        intercepts=np.zeros(2),
        fit={"C": 1.0},
    )
    write_fusion(folder / "fusion.npz", fusion)
    return folder / "fusion.npz"


def and_verified(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of a document, and after it what `verify` says."""

    def both(file: Path) -> object:
        with suppress(FlowkitError):
            read(file)
        return verify_file(file).kind

    return both


def make_run(folder: Path) -> Path:
    form = StackForm(length=2)
    checkpoint = Checkpoint(7, "small", {"temporal": form}, 0.5, {"main": ("run", "golf")}, 36, 32)
    net = make_net("small", checkpoint.inputs, {"main": 2}, None)
    write_checkpoint(folder, [BEST, LAST], checkpoint, net.state_dict(), {})
    return folder / BEST


def make_tensors(folder: Path) -> Path:
    make_run(folder)
    return folder / "step-00000007.safetensors"


def read_run(file: Path) -> object:
    with suppress(FlowkitError):
        load_net(file.parent)
        read_tensors(file.parent / LAST, "state")
    return verify_file(file.parent / BEST).kind


def make_safetensors(folder: Path) -> Path:
    save_file({"a": torch.zeros(30, 40), "b": torch.zeros(3)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def make_pth(folder: Path) -> Path:
    torch.save({"a": torch.zeros(30, 40), "b": torch.zeros(3)}, folder / "a.pth")
    return folder / "a.pth"


def make_old_pth(folder: Path) -> Path:
    tensors = {"a": torch.zeros(30, 40), "b": torch.zeros(3)}
    torch.save(tensors, folder / "a.pth", _use_new_zipfile_serialization=False)
    return folder / "a.pth"


def read_file_of_weights(file: Path) -> None:
    read_weights(str(file), "small")


def read_raft(file: Path) -> None:
    RAFT(weights=str(file)).prepare()


def make_mat(folder: Path) -> Path:
    layers = np.empty((1, 1), object)
    layers[0, 0] = {
        "name": "conv1", "type": "conv", "filters": np.zeros((3, 3, 3, 4), np.float32),
        "biases": np.zeros((1, 4), np.float32),
    }  # fmt: skip
    normalization = {"averageImage": np.zeros((4, 4, 3), np.float32)}
    savemat(folder / "net.mat", {"layers": layers, "normalization": normalization})
    return folder / "net.mat"


def make_flo(folder: Path) -> Path:
    write_flo(folder / "a.flo", FIELDS[0])
    return folder / "a.flo"


def make_video(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_video(folder / f"a{suffix}", FRAMES, fps=25.0)
        return folder / f"a{suffix}"

    return make


def make_gif(folder: Path) -> Path:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in FRAMES)
    first.save(folder / "a.gif", save_all=True, append_images=rest)
    return folder / "a.gif"


def read_video(path: Path) -> None:
    with open_video(path) as video:
        for _ in video.frames():
            pass


def make_frames(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "v").mkdir()
        for number, frame in enumerate(FRAMES, start=1):
            cv2.imwrite(str(folder / "v" / f"img_{number:05d}{suffix}"), frame)
        return folder / "v" / f"img_00002{suffix}"

    return make


def read_frames(file: Path) -> None:
    with suppress(FlowkitError):
        ImageRecord(file).frame(0)
    read_video(file.parent)


def make_list(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        lines = []
        for number in range(4):
            (folder / f"v {number}.mp4").touch()
            lines.append(f"{folder}/v {number}.mp4")
        if name.endswith(".csv"):
            lines = ["path,label", *(f'"{line}",7' for line in lines)]
        elif name.startswith("failures"):
            lines = [f"{line}\tdamaged: no frame" for line in lines]
        (folder / name).write_text("\n".join([*lines, ""]))
        return folder / name

    return make


def read_list(file: Path) -> None:
    find_videos([file])


def make_split_list(folder: Path) -> Path:
    lines = [f"{name}/v{n} {20 + n} {k}\n" for k, name in enumerate("ab") for n in range(4)]
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text("".join(lines))
    (folder / "names.txt").write_text("a\nb\n")
    return folder / "train.txt"


def read_split_list(file: Path) -> None:
    list_split(file, file.with_name("test.txt"))


def make_names(folder: Path) -> Path:
    make_split_list(folder)
    return folder / "names.txt"


def read_names(file: Path) -> None:
    train, test = (file.with_name(name) for name in ("train.txt", "test.txt"))
    list_split(train, test, classes=file)


def make_ucf(folder: Path) -> Path:
    (folder / "classInd.txt").write_text("1 Run\n2 Golf\n")
    (folder / "testlist01.txt").write_text("Run/v_Run_g01_c01.avi\nGolf/v_Golf_g01_c01.avi\n")
    (folder / "trainlist01.txt").write_text("Run/v_Run_g02_c01.avi 1\nGolf/v_Golf_g02_c1.avi 2\n")
    return folder / "trainlist01.txt"


def make_hmdb(folder: Path) -> Path:
    for name in ("run", "golf"):
        (folder / f"{name}_test_split1.txt").write_text("a.avi 1\nb.avi 2\nc.avi 0\n")
    return folder / "run_test_split1.txt"


def make_tracks(folder: Path) -> Path:
    parameters = TrackParameters()
    with TrackWriter(folder, "a", parameters, float32=False, text=False) as writer:
        writer.add(np.zeros(5, track_dtype(parameters)))
        request = {"parameters": parameters.__dict__, "float32": False}
        writer.commit({"size": [24, 32], "frames": 20, "request": request})
    return record_path(folder, "a")


def make_codebook(folder: Path) -> Path:
    ones = {"mean": 4, "components": (2, 4), "weights": 3, "means": (3, 2), "variances": (3, 2)}
    book = Codebook(**{part: np.ones(shape) for part, shape in ones.items()})
    books = dict.fromkeys(DESCRIPTORS, book)
    found = Codebooks(books, vars(TrackParameters()), "made", ("a",), ("run: a",), 3, 9, 0)
    write_codebooks(folder / "codebook.npz", found)
    return folder / "codebook.npz"


def make_vector(folder: Path) -> Path:
    meta = {"format": VECTOR_FORMAT, "version": VERSION, "codebook": "a", "record": "b"}
    write_arrays(folder / "a.npz", {"vector": np.ones(60, np.float16)}, meta)
    return folder / "a.npz"


def make_boxes(folder: Path) -> Path:
    (folder / "a.bb").write_text("0 1 2 30 40 0.5\n1 1 2 30 40 0.5 3 4 5 6 0.25\n")
    return folder / "a.bb"


def make_log(folder: Path) -> Path:
    (folder / "log.csv").write_text("step,loss,heldout_loss\n10,2.5,\n20,1.5,1.75\n")
    return folder / "log.csv"


def read_logs(file: Path) -> None:
    with suppress(FlowkitError):
        read_log(file.parent)
    read_curves(file.parent)


# What each reader of flowkit is given; `tried` changes it.
KINDS = {
    "a record's sidecar": of_record("record.json", changed_json, format="jpg"),
    "a sidecar of layout twostreamfusion": of_record(
        "record.json", changed_json, format="png", layout="twostreamfusion"
    ),
    "an unfinished.json": Kind(make_unfinished, read_unfinished, changed_json),
    "a pack": of_record("", changed_bytes, format="jpg", pack=True),
    "a plane, jpg": of_record("flow_x_00001.jpg", changed_bytes, format="jpg"),
    "a plane, png": of_record("flow_x_00001.png", changed_bytes, format="png"),
    "planes, lz4": of_record("flow_00001.lz4", changed_bytes, format="lz4"),
    "a field, npy": of_record("flow_00001.npy", changed_bytes, format="npy"),
    "a field, flo": of_record("flow_00001.flo", changed_bytes, format="flo"),
    "ranges of layout twostreamfusion": Kind(make_table, read_table, changed_bytes),
    "a plane of another tool": Kind(make_foreign, read_foreign, changed_bytes),
    "a .flo file": Kind(make_flo, read_flo, changed_bytes),
    "a split": Kind(make_split, and_verified(read_split), changed_json),
    "a list of a split": Kind(make_split_list, read_split_list, changed_text),
    "names of classes": Kind(make_names, read_names, changed_text),
    "a list of UCF-101": Kind(make_ucf, lambda file: ucf101_split(file.parent), changed_text),
    "a list of HMDB-51": Kind(make_hmdb, lambda file: hmdb51_split(file.parent), changed_text),
    "a list of videos": Kind(make_list("a.txt"), read_list, changed_text),
    "a table of videos": Kind(make_list("a.csv"), read_list, changed_text),
    "a list of failures": Kind(make_list("failures.tsv"), read_list, changed_text),
    "scores": Kind(make_scores, and_verified(read_scores), changed_npz),
    "a fusion": Kind(make_fusion, and_verified(read_fusion), changed_npz),
    "a checkpoint's JSON": Kind(make_run, read_run, changed_json),
    "a checkpoint's tensors": Kind(make_tensors, read_run, changed_bytes),
    "weights, safetensors": Kind(make_safetensors, read_file_of_weights, changed_bytes),
    "weights, pth": Kind(make_pth, read_file_of_weights, changed_bytes),
    "weights, pth of before 2020": Kind(make_old_pth, read_file_of_weights, changed_bytes),
    "weights, mat": Kind(make_mat, read_matconvnet, changed_bytes, costs=20),
    "weights of RAFT": Kind(make_pth, read_raft, changed_bytes, costs=4),
    "tracks": Kind(make_tracks, lambda file: open_tracks(file).tracks(), changed_npz),
    "a codebook": Kind(make_codebook, read_codebooks, changed_npz),
    "a Fisher vector": Kind(make_vector, read_vector, changed_npz),
    "boxes": Kind(make_boxes, read_boxes, changed_text),
    "log.csv": Kind(make_log, read_logs, changed_text),
    "a frame, jpg": Kind(make_frames(".jpg"), read_frames, changed_bytes),
    "a frame, png": Kind(make_frames(".png"), read_frames, changed_bytes),
    "a frame, bmp": Kind(make_frames(".bmp"), read_frames, changed_bytes),
    "a video, mp4": Kind(make_video(".mp4"), read_video, changed_bytes),
    "a video, avi": Kind(make_video(".avi"), read_video, changed_bytes),
    "a video, gif": Kind(make_gif, read_video, changed_bytes),
}  # fmt: skip


# --- tries ----------------------------------------------------------------------------------------


def what_went_wrong(kind: Kind, file: Path) -> str:
    """Of reading a hostile file: "" for a FlowkitError of one line, or an answer, soon enough."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    before, start = _peak_bytes(), time.process_time()
    try:
        answer = kind.read(file)
        wrong = "called sound" if isinstance(answer, str) and answer == "sound" else ""
    except FlowkitError as error:
        text = str(error)
        wrong = "" if "\n" not in text and len(text) < MOST_TEXT else f"no line: {text!r:.200}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    took_s, more = time.process_time() - start, _peak_bytes() - before
    if took_s > MOST_S:
        wrong = wrong or f"took {took_s:.1f} s"
    return wrong or (f"took {more:,} bytes" if more > MOST_BYTES else "")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def tried(kind: Kind, folder: Path, examples: int) -> list[str]:
    """What went wrong with each of so many hostile files, "" for what did not."""
    file = kind.make(folder)
    data, found = file.read_bytes(), list[str]()
    with suppress(Exception):
        kind.read(file)  # what is imported once, and takes its time

    @seed(7)
    @settings(
        max_examples=max(1, examples // kind.costs),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.change(data))
    def try_one(hostile: bytes) -> None:
        assume(hostile != data)
        file.write_bytes(hostile)
        found.append(what_went_wrong(kind, file))

    try_one()
    return found
