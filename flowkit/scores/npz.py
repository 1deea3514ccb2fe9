"""The .npz files of scores and fusions: written in one step, read without executing anything."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import numpy as np

from flowkit.documents import listed, replacing
from flowkit.errors import ScoresError

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

    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            kinds = {**wanted, "meta": "text", **optional}
            missing = [n for n in (*wanted, "meta") if f"{n}.npy" not in members]
            if missing:
                there = listed(sorted(members)) or "nothing"
                refuse(f"expected arrays {', '.join(missing)}, which are missing; it has {there}")
            found = {name: members[f"{name}.npy"] for name in kinds if f"{name}.npy" in members}
            size = sum(info.file_size for info in found.values())
            if size > MAX_BYTES:
                refuse(f"expected arrays of {MAX_BYTES:,} bytes at most, got {size:,}")
            arrays = {n: _parse_array(archive.read(i), n, kinds[n]) for n, i in found.items()}
        text = arrays.pop("meta")
        if text.shape != ():
            refuse(f"expected meta to be one JSON string, got an array {text.shape}")
        meta = json.loads(text.item(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        refuse(f"no such file: {maker} writes one")
    except zipfile.BadZipFile as error:
        refuse(f"expected an .npz file ({error})")
    except (ValueError, EOFError, OSError, zlib.error, NotImplementedError) as error:
        refuse(str(error) or type(error).__name__)
    except RuntimeError as error:  # an encrypted member, or JSON nested too deep
        refuse(f"cannot be read ({error})")
    if not isinstance(meta, dict):
        refuse(f"expected meta to be a JSON object, got {type(meta).__name__}")
    return arrays, meta


def _parse_array(data: bytes, name: str, kind: str) -> np.ndarray:
    """The array in the bytes of an .npy file, without pickles; ValueError if they are not that."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected {name} in .npy version 1.0 or 2.0, got {version}")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, by_columns, dtype = read_header(file)
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
    order: Literal["F", "C"] = "F" if by_columns else "C"
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order=order)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON in meta, got {name}")
