"""How hypothesis changes the bytes, the values and the words of a file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st

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
