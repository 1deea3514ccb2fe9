"""The .npz files of scores and fusions: written in one step, read without executing anything."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from flowkit.documents import listed, open_plain_file, parse_json, replacing
from flowkit.errors import ReadError, ScoresError

MAX_BYTES = 1 << 31  # of all arrays of a file, unpacked: 4 million videos of 100 classes
LAST_CODE = 0x10FFFF  # of Unicode; NumPy crashes on what is above


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: dict[str, Any]
) -> None:
    """Write arrays and ``meta``, as JSON, to an .npz file; replaces what is there in one step."""
    text = np.array(json.dumps(meta, allow_nan=False))
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, meta=text)  # type: ignore[arg-type]


def read_arrays(
    path: str | os.PathLike[str],
    wanted: Mapping[str, str],
    *,
    optional: Mapping[str, str],
    maker: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an .npz file that are `wanted`, each "text" or "numbers", and its ``meta``.

    Checks every size before it reserves memory. `maker` is the command that an error names.
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
            size = sum(info.file_size for info in members.values())
            if size > MAX_BYTES:
                refuse(f"expected arrays of {MAX_BYTES:,} bytes at most, got {size:,}")
            arrays = {n: _parse_array(archive.read(i), n, kinds[n]) for n, i in members.items()}
    except FileNotFoundError:
        refuse(f"no such file: {maker} writes one")
    except zipfile.BadZipFile as error:
        refuse(f"expected an .npz file ({error})")
    except ReadError:
        raise
    except (ValueError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        if isinstance(error, ScoresError):
            raise
        refuse(str(error).partition("\n")[0] or type(error).__name__)
    text = arrays.pop("meta")
    if text.shape != ():
        refuse(f"expected meta to be one JSON string, got an array {text.shape}")
    return arrays, parse_json(text.item(), where=str(path), what="meta", error=ScoresError)


def _parse_array(data: bytes, name: str, kind: str) -> np.ndarray:
    """The array in the bytes of an .npy file; ValueError if they are not that.

    Beyond what NumPy checks itself, no size is believed before memory is reserved for it, and text
    is held to Unicode.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected {name} in .npy version 1.0 or 2.0, got {version}")
    try:
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    except ValueError as error:  # of several lines, with advice to execute what a file holds
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} has no header of an array ({reason})") from error
    if dtype.hasobject:
        advice = ": save it as numpy.array(names, dtype=str)" if kind == "text" else ""
        raise ValueError(f"{name} holds pickled Python objects, which are not read{advice}")
    if dtype.kind not in ("U" if kind == "text" else "fiu"):
        raise ValueError(f"expected {name} to be {kind}, got {dtype}")
    size, held = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if size != held or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"{name} is said to be {dtype} {shape}, but {held:,} bytes are there")
    codes = np.dtype("u4").newbyteorder(dtype.byteorder)
    if kind == "text" and np.frombuffer(data, codes, offset=file.tell()).max(initial=0) > LAST_CODE:
        raise ValueError(f"expected {name} to be text, got what is no Unicode")
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
