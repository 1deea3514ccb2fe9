"""Whether the files of splits, trainings, features and scores are as they were written."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flowkit.data.splits import FORMAT as SPLIT_FORMAT
from flowkit.data.splits import read_split
from flowkit.documents import (
    SIDECAR,
    ZIP_ERRORS,
    ZIP_SEAL,
    is_sealed,
    is_sealed_zip,
    open_plain_file,
    parse_json,
    read_plain_file,
)
from flowkit.errors import CheckpointError, FlowkitError, ReadError, ScoresError
from flowkit.networks.checkpoints import FORMAT as CHECKPOINT_FORMAT
from flowkit.networks.checkpoints import check_tensors, read_checkpoint, tensor_files
from flowkit.records.ownership import UNFINISHED
from flowkit.records.verify import Verdict
from flowkit.scores.npz import check_unpacked_size

SUFFIXES = (".json", ".npz")
END_BYTES = 1 << 16  # of a file, that hold the names of a zip's members, or a document's checksum
META = b"meta.npy"  # a member of all of flowkit's .npz files


def find_files(folder: Path) -> Iterator[Path]:
    """The splits, checkpoints and .npz files of flowkit below a folder, or the file that it is.

    By what is in them, with one bit wrong, too; what is another program's is stepped over.
    FlowkitError where there is no such folder or file.
    """
    if not folder.exists():
        raise FlowkitError(f"{folder}: no such folder or file", absent=True)
    if not folder.is_dir():
        if folder.suffix in SUFFIXES:
            yield folder
        return
    for parent, folders, names in os.walk(folder):
        if SIDECAR in names or UNFINISHED in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix in SUFFIXES and not name.startswith(".") and _is_ours(path):
                yield path


def verify_file(path: Path, *, quick: bool = False) -> Verdict:
    """Compare a file with its checksum and, of a checkpoint, the files that it names with theirs.

    `quick` looks whether those are there. A file from before checksums, or of another program, is
    read as what it is, and at best "complete".
    """
    try:
        compared = _compare_zip(path, quick) if path.suffix == ".npz" else _compare(path, quick)
    except FileNotFoundError as error:
        return Verdict(path, (f"{error.filename}: file is missing",), "broken")
    except OSError as error:
        text = str(error) if isinstance(error, ReadError) else f"could not be read: {error}"
        return Verdict(path, (text,), "unreadable")
    except FlowkitError as error:
        return Verdict(path, (str(error),), "broken")
    return Verdict(path, (), "sound" if compared and not quick else "complete")


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            begin = file.read(END_BYTES)
            file.seek(-min(END_BYTES, path.stat().st_size), os.SEEK_END)
            end = file.read()
    except OSError:
        return True  # whose it is cannot be told
    if path.suffix == ".npz":
        return META in end or ZIP_SEAL in end[-len(ZIP_SEAL) - 8 :]
    return b'"format": "flowkit ' in begin or is_sealed(end) is not None


def _compare(path: Path, quick: bool) -> bool:
    """Whether all of a document, and of the files that it names, agrees with a checksum."""
    data = read_plain_file(path, error=FlowkitError)
    sealed = is_sealed(data)
    if sealed is False:
        raise FlowkitError(f"{path}: damaged: its checksum does not agree")
    what = parse_json(data, where=str(path), what="document of flowkit", error=FlowkitError)
    if what.get("format") == SPLIT_FORMAT:
        read_split(path)
        return bool(sealed)
    if what.get("format") != CHECKPOINT_FORMAT:
        raise FlowkitError(f"{path}: expected a split or a checkpoint of flowkit")
    read_checkpoint(path)
    files = tensor_files(path).values()
    for file, checksum in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: file is missing")
        if checksum is not None and not quick:
            check_tensors(file, checksum)
    return bool(sealed) and all(checksum is not None for _, checksum in files)


def _compare_zip(path: Path, quick: bool) -> bool:
    """Whether all of an .npz file agrees with a checksum."""
    with open_plain_file(path, error=ScoresError):
        pass
    try:
        sealed = None if quick else is_sealed_zip(path)
        if sealed is None and not quick:
            with zipfile.ZipFile(path) as archive:
                check_unpacked_size(archive, path.stat().st_size)
                if damaged := archive.testzip():
                    raise ScoresError(f"{path}: damaged: the checksum of {damaged} does not agree")
    except ScoresError:
        raise
    except ZIP_ERRORS as error:
        raise ScoresError(f"{path}: expected an .npz file ({error})") from error
    if sealed is False:
        raise ScoresError(f"{path}: damaged: its checksum does not agree")
    return bool(sealed)
