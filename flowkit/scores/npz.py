"""The .npz files of scores and fusions: written in one step, read without executing anything."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from flowkit.documents import (
    NPY_ERRORS,
    ZIP_ERRORS,
    listed,
    open_plain_file,
    parse_json,
    replacing,
    seal_zip,
)
from flowkit.errors import ReadError, ScoresError

MAX_BYTES = 1 << 31  # bytes of all arrays of a file, unpacked: 4 million videos of 100 classes
# A file that is larger than this unpacked is at most so many times as large as it is packed
PACKED_BYTES, MOST_PACKED = 64 << 20, 50
LAST_CODE = 0x10FFFF  # largest code of Unicode; NumPy crashes on what is above


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: dict[str, Any]
) -> None:
    """Write arrays and ``meta``, as JSON, to an .npz file; replaces what is there in one step.

    It ends with its own checksum (`flowkit.documents.seal_zip`).
    """
    text = np.array(json.dumps(meta, allow_nan=False))
    with replacing(path) as part:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, meta=text)  # type: ignore[arg-type]
        seal_zip(part)


def read_arrays(
    path: str | os.PathLike[str],
    wanted: Mapping[str, str],
    *,
    optional: Mapping[str, str],
    maker: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an .npz file that are `wanted`, each "text" or "numbers", and its ``meta``.

    No size is believed before it is checked. `maker` is the command that an error names.
    """

    def refuse(reason: str) -> NoReturn:
        raise ScoresError(f"{path}: {reason}") from None

    kinds = {**wanted, "meta": "text", **optional}
    try:
        with (
            open_plain_file(path, error=ScoresError) as file,
            zipfile.ZipFile(file) as archive,
        ):
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            there = listed(sorted(members)) or "nothing"
            if missing := [name for name in (*wanted, "meta") if name not in members]:
                refuse(f"expected arrays {', '.join(missing)}, which are missing; it has {there}")
            if unknown := sorted(members.keys() - kinds.keys()):
                refuse(f"expected arrays {', '.join(kinds)}, got {listed(unknown)} as well")
            check_unpacked_size(archive, os.fstat(file.fileno()).st_size)
            arrays = {n: _parse_array(archive.read(i), n, kinds[n]) for n, i in members.items()}
    except FileNotFoundError:
        raise ScoresError(f"{path}: no such file: {maker} writes one", absent=True) from None
    except zipfile.BadZipFile as error:
        refuse(f"expected an .npz file ({error})")
    except (ReadError, ScoresError):
        raise
    except ZIP_ERRORS as error:
        refuse(str(error).partition("\n")[0] or type(error).__name__)
    text = arrays.pop("meta")
    if text.shape != ():
        refuse(f"expected meta to be one JSON string, got an array {text.shape}")
    return arrays, parse_json(text.item(), where=str(path), what="meta", error=ScoresError)


def check_unpacked_size(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """ValueError where the members of an .npz of so many bytes unpack to more than they may."""
    size = sum(info.file_size for info in archive.infolist())
    most = min(MAX_BYTES, max(PACKED_BYTES, MOST_PACKED * file_bytes))
    if size > most:
        raise ValueError(f"expected arrays of {most:,} bytes at most, got {size:,}")
    packed = {info.compress_type for info in archive.infolist()}
    if not packed <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("expected arrays as numpy.savez writes them, got another compression")


def _parse_array(data: bytes, name: str, kind: str) -> np.ndarray:
    """The array in the bytes of an .npy file; ValueError if they are not that.

    Memory that a header asks for in vain is never touched: NumPy finds the bytes missing first.
    """
    file = io.BytesIO(data)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    # The text has several lines, with advice to unpickle
    except NPY_ERRORS as error:
        reason = str(error).partition("\n")[0]
        if "Object arrays" in reason and kind == "text":
            reason += "; save it as numpy.array(names, dtype=str)"
        raise ValueError(f"expected {name} to be a whole array ({reason})") from error
    if array.dtype.kind not in ("U" if kind == "text" else "fiu"):
        raise ValueError(f"expected {name} to be {kind}, got {array.dtype}")
    if file.read(1) or array.dtype.itemsize == 0:  # the latter: text of no width, of any length
        raise ValueError(f"expected {array.dtype} {array.shape} in {name}, got {len(data):,} bytes")
    codes = np.dtype("u4").newbyteorder(array.dtype.byteorder)
    if kind == "text" and array.ravel().view(codes).max(initial=0) > LAST_CODE:
        raise ValueError(f"expected {name} to be text, got what is no Unicode")
    return array
