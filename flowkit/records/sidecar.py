"""The sidecar: what ``record.json`` says, checked before anything is done with it, and checksums.

docs/formats.md specifies every key. A sidecar of before checksums has none; all else must be there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
from zlib_ng.zlib_ng import crc32  # 10 times as fast as zlib's

from flowkit.documents import RECORD_FORMAT as FORMAT
from flowkit.documents import SIDECAR, parse_document, seal, short
from flowkit.errors import RecordError, UsageError
from flowkit.records.layout import Storage, field_templates, image_template
from flowkit.series import Direction, Series
from flowkit.stores.urls import Place, Url

VERSION = 1  # version of the sidecar and of what it describes
MOST_FRAMES = 10_000_000  # 4 days of video
MOST_SIDE = 1 << 20  # px
MOST_PX = 3e38  # a displacement: what float32 holds
SOURCE = {  # what may be said of the source, each or null
    "name": str,
    "bytes": int,
    "modified_ns": int,
    "etag": str,
    "sha256": str,
    "images": int,
    "fps": float,
    "frames_expected": int,
    "damage": str,
}


class Checks(NamedTuple):
    """Of the files of one template, in order: their checksums (CRC-32) and their sizes in bytes."""

    crc32: list[int]
    size: list[int]

    def add(self, data: bytes) -> None:
        """Take the bytes of the next file."""
        self.crc32.append(crc32(data))
        self.size.append(len(data))


def sidecar_bytes(sidecar: dict[str, Any], checks: Mapping[str, Checks]) -> bytes:
    """A sidecar as a file, with the checksums of the record's files, by template, and its own."""
    checksums = {
        template: {
            key: "".join(f"{one:08x}" for one in values)
            for key, values in zip(Checks._fields, numbers, strict=True)
        }
        for template, numbers in checks.items()
    }
    head = {"format": FORMAT, "version": VERSION}
    return seal(json.dumps({**head, **sidecar, "checksums": checksums}, indent=1))


def parse_sidecar(data: bytes, path: Place) -> dict[str, Any]:
    """The sidecar of the record at `path` out of its bytes: RecordError unless all of it fits."""
    sidecar = parse_document(
        data,
        FORMAT,
        VERSION,
        where=f"{path}: {SIDECAR}",
        error=RecordError,
        maker="flowkit extract",
        shaped=("series",),
    )
    _Check(path, sidecar)
    return sidecar


def read_checks(sidecar: dict[str, Any]) -> dict[str, Checks] | None:
    """The checksums and sizes of a record's files by template; None where it is older than them."""
    if "checksums" not in sidecar:
        return None
    return {
        template: Checks(*(_hex(one[key]) for key in Checks._fields))
        for template, one in sidecar["checksums"].items()
    }


class _Check:
    """A pass over a parsed sidecar that refuses, in one line, the first value that cannot be."""

    def __init__(self, path: Place, sidecar: dict[str, Any]) -> None:
        self.path, self.sidecar = path, sidecar
        for name, check in (("frames", _is_count), ("size", _is_size), ("fps", _is_rate)):
            self.expect(name, check(self.get(name)), self.get(name))
        plain = sidecar.get("plain_fields", 0)
        self.expect("plain_fields", _is_count(plain), plain)
        self.check_source()
        storage = self.check_request()
        series = self.check_series()
        self.check_files(storage, series)

    def refuse(self, what: str, value: object) -> NoReturn:
        raise RecordError(f"{self.path}: {SIDECAR}: {what} cannot be {short(value)}")

    def expect(self, what: str, fits: bool, value: object) -> None:
        if not fits:
            self.refuse(what, value)

    def get(self, key: str) -> Any:
        if key not in self.sidecar:
            raise RecordError(f"{self.path}: {SIDECAR} is not of this format: it has no {key}")
        return self.sidecar[key]

    def check_source(self) -> None:
        source = self.sidecar.get("source", {})
        self.expect("source", isinstance(source, dict), source)
        for key, kind in SOURCE.items():
            value = source.get(key)
            self.expect(f"source.{key}", value is None or type(value) is kind, value)

    def check_request(self) -> Storage:
        request = self.get("request")
        self.expect("request", isinstance(request, dict), request)
        method = request.get("method", {"name": ""})
        named = isinstance(method, dict) and isinstance(method.get("name"), str)
        self.expect("request.method", named, method)
        camera = request.get("stabilize", {"name": ""})
        named = isinstance(camera, dict) and isinstance(camera.get("name"), str)
        self.expect("request.stabilize", named, camera)
        options = {
            key: request[key]
            for key in ("format", "quality", "bound", "rgb_quality", "layout")
            if key in request
        }
        for key, value in options.items():
            kinds = (str,) if key in ("format", "layout") else (int, float, type(None))
            sane = not isinstance(value, int | float) or abs(value) <= MOST_PX
            self.expect(f"request.{key}", type(value) in kinds and sane, value)
        if "format" not in request:
            raise RecordError(f"{self.path}: {SIDECAR} is not of this format: it has no format")
        try:
            return Storage(**options)
        except (UsageError, TypeError) as error:
            raise RecordError(f"{self.path}: {SIDECAR}: {str(error)[:200]}") from error

    def check_series(self) -> list[Series]:
        found: list[Series] = []
        given = self.get("series")
        self.expect("series", isinstance(given, list) and given != [], given)
        for number, one in enumerate(given):
            where = f"series {number + 1}"
            self.expect(where, isinstance(one, dict), one)
            direction, step = one.get("direction"), one.get("step")
            self.expect(f"direction of {where}", direction in get_args(Direction), direction)
            self.expect(f"step of {where}", _is_count(step) and step > 0, step)
            series = Series(direction, step)
            self.expect(where, series not in found, series)
            count = one.get("fields")
            wanted = self.sidecar["frames"] - step
            self.expect(f"fields of {where}", type(count) is int and count == wanted, count)
            found.append(series)
        return found

    def check_files(self, storage: Storage, series: list[Series]) -> None:
        """Templates are those of the layout, no others; ranges and checksums are of all files."""
        counts: dict[str, int] = {}
        images = self.get("images")
        path = self.path.name if isinstance(self.path, Url) else os.path.abspath(self.path)
        folder = PurePosixPath(path)
        templates = [
            field_templates(folder, storage, one, first_step=series[0].step) for one in series
        ]
        for one, files in zip(self.sidecar["series"], templates, strict=True):
            self.expect("files", one.get("files") == files, one.get("files"))
            counts |= dict.fromkeys(files.values(), one["fields"])
            ranges = one.get("ranges")
            fits = _are_ranges(ranges, one["fields"]) if storage.is_planes else ranges is None
            self.expect("ranges", fits, ranges)
        if images is not None:
            self.expect("images", images == image_template(folder, storage), images)
            counts[images] = self.sidecar["frames"]
        checksums = self.sidecar.get("checksums")
        if checksums is not None:
            self.expect("checksums", _are_checksums(checksums, counts), checksums)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_FRAMES


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 1 <= side <= MOST_SIDE for side in value)
    )


def _is_rate(value: object) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < 1e9)  # type: ignore[operator]


def _are_ranges(value: object, count: int) -> bool:
    """Whether a value is [[lo x, hi x], [lo y, hi y]] in px, finite, for each of `count` fields."""
    if not isinstance(value, list) or len(value) != count:
        return False
    for width in (2, 2):
        if not all(isinstance(one, list) and len(one) == width for one in value):
            return False
        value = list(chain.from_iterable(value))
    if not {type(one) for one in value} <= {int, float}:
        return False
    return all(abs(one) <= MOST_PX for one in value) and all(
        lo <= hi for lo, hi in zip(value[::2], value[1::2], strict=True)
    )


def _are_checksums(value: object, counts: Mapping[str, int]) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == counts.keys()
        and all(
            isinstance(one, dict)
            and one.keys() == set(Checks._fields)
            and all(isinstance(text, str) for text in one.values())
            and all(
                re.fullmatch("[0-9a-f]*", text) and len(text) == 8 * counts[template]
                for text in one.values()
            )
            for template, one in value.items()
        )
    )


def _hex(text: str) -> list[int]:
    return np.frombuffer(bytes.fromhex(text), ">u4").tolist()
