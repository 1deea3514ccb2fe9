"""Features of videos as files: NumPy's, HDF5 and WebDataset."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowkit.documents import replacing
from flowkit.errors import InstallError, RecordError


@dataclass(frozen=True)
class Features:
    """The features of a video: float32 (M, F), a row for each moment, or (F,) of the whole video.

    `frames` are the frames in the middle of the moments, int64 (M,) from 0, and `seconds` their
    times, float64 (M,) from the first frame, NaN where the record does not say its frame rate.
    """

    values: np.ndarray
    frames: np.ndarray
    seconds: np.ndarray


Add = Callable[[str, Features], None]  # keeps the features of a video, by its id


@dataclass(frozen=True)
class FeatureFormat:
    """A way to keep features: in words, and what opens a folder for it.

    `by_video`: each video is a file of its own, which ends with that; else all are one file.
    """

    text: str
    open: Callable[[Path], AbstractContextManager[Add]]
    by_video: str | None = None


def _npy(values: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def _moments_json(id: str, features: Features) -> bytes:
    """The id of a video and its moments; seconds are null where they are not known."""
    seconds = [None if np.isnan(one) else one for one in features.seconds.tolist()]
    told = {"video": id, "frames": features.frames.tolist(), "seconds": seconds}
    return json.dumps(told).encode() + b"\n"


@contextmanager
def _as_npy(out: Path) -> Iterator[Add]:
    def add(id: str, features: Features) -> None:
        for ending, data in (
            (".json", _moments_json(id, features)),
            (".npy", _npy(features.values)),  # last: it is what says that the video is done
        ):
            with replacing(out / (id + ending)) as part:
                part.write_bytes(data)

    yield add


@contextmanager
def _as_npz(out: Path) -> Iterator[Add]:
    def add(id: str, features: Features) -> None:
        with replacing(out / f"{id}.npz") as part, part.open("wb") as file:
            np.savez(
                file, features=features.values, frames=features.frames, seconds=features.seconds
            )

    yield add


@contextmanager
def _as_hdf5(out: Path) -> Iterator[Add]:
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise InstallError(
            "HDF5 needs h5py: pip install h5py (--format npz does without)"
        ) from None
    with replacing(out / "features.h5") as part, h5py.File(part, "w") as file:

        def add(id: str, features: Features) -> None:
            group = file.create_group(id)
            group["features"] = features.values
            group["frames"], group["seconds"] = features.frames, features.seconds

        yield add


@contextmanager
def _as_webdataset(out: Path) -> Iterator[Add]:
    """A tar of ``KEY.json`` and ``KEY.npy``; it is the same bytes for the same features."""
    taken: dict[str, str] = {}
    with replacing(out / "features.tar") as part, tarfile.open(part, "w") as tar:

        def add(id: str, features: Features) -> None:
            folder, slash, name = id.rpartition("/")
            key = folder + slash + name.replace(".", "_")  # a key ends at the first point
            if taken.setdefault(key, id) != id:
                raise RecordError(f"{id}: has the same key in a WebDataset as {taken[key]}")
            for ending, data in (
                (".json", _moments_json(id, features)),
                (".npy", _npy(features.values)),
            ):
                member = tarfile.TarInfo(key + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        yield add


FEATURE_FORMATS = {
    "npz": FeatureFormat("VIDEO.npz of features, frames and seconds", _as_npz, ".npz"),
    "npy": FeatureFormat("VIDEO.npy, and VIDEO.json of frames and seconds", _as_npy, ".npy"),
    "hdf5": FeatureFormat("features.h5, a group of the same three for each video", _as_hdf5),
    "webdataset": FeatureFormat("features.tar of VIDEO.npy and VIDEO.json", _as_webdataset),
}
