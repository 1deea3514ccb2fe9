"""Hostile files: each kind of file that flowkit reads, changed by hypothesis, and read.

Imported by benchmarks/faults.py, which tries many, and by tests/test_hostile_files.py. Files of
videos and records are made in hostile_records.py, changed in hostile_changes.py, read in
hostile_tries.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from hostile_changes import changed_bytes, changed_json, changed_npz, changed_text
from hostile_records import (
    make_flo,
    make_foreign,
    make_frames,
    make_gif,
    make_table,
    make_unfinished,
    make_video,
    of_record,
    read_foreign,
    read_frames,
    read_table,
    read_unfinished,
    read_video,
)
from hostile_tries import Kind
from safetensors.torch import save_file
from scipy.io import savemat

from flowkit.data.split_lists import hmdb51_split, list_split, ucf101_split
from flowkit.data.splits import Split, Video, read_split, write_split
from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError
from flowkit.evaluation.soundness import verify_file
from flowkit.fields import read_flo
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
from flowkit.report.extras import read_curves
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fusion import Fusion, read_fusion, write_fusion
from flowkit.scores.npz import write_arrays
from flowkit.training.log import read_log
from flowkit.video.sources import find_videos


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
