"""What a video file declares and does not have, without decoding it: bytes, index, fragments."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from flowkit.video.fragments import missing_fragments

# The boxes that may stand at the top of an MP4 or MOV file; whatever else follows them is junk.
MP4_BOXES = frozenset(
    b"ftyp moov mdat moof mfra sidx ssix styp prft emsg meta pdin free skip wide uuid pnot PICT "
    b"udta imda".split()
)
AVI_HAS_INDEX = 0x10  # AVIF_HASINDEX, a flag of the main header
EBML_HEADER = 0x1A45DFA3
MATROSKA_ELEMENTS = frozenset({EBML_HEADER, 0x18538067, 0xEC, 0xBF})  # segment, void, checksum


def signs_of_loss(path: Path) -> list[str]:
    """What the file at `path` lacks of its container, in words; empty for a whole file.

    Looked at are AVI, MP4/MOV and Matroska/WebM. A container that does not declare its length
    (recorded live) lacks nothing. What follows the container, as after a careless join, is not
    looked at.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        is_avi = start[:4] == b"RIFF" and start[8:] == b"AVI "
        if is_avi:
            end = _riff_end(file, size)
        elif start[4:8] in MP4_BOXES:
            end = _mp4_end(file, size)
        elif start[:4] == EBML_HEADER.to_bytes(4, "big"):
            end = _matroska_end(file, size)
        else:
            end = size
        if end > size:
            return [f"{end - size:,} bytes missing at the end"]
        if start[4:8] in MP4_BOXES and not is_avi:
            return missing_fragments(file, end)
        if is_avi and _lacks_index(file, size):
            return ["the index is missing"]
    return []


def _riff_end(file: BinaryIO, size: int) -> int:
    """Where the last RIFF chunk ends: one "AVI ", then "AVIX" for every further gigabyte or so."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            break
        end += 8 + int.from_bytes(head[4:8], "little")
    return end


def _lacks_index(file: BinaryIO, size: int) -> bool:
    """True if an AVI's header speaks of an index that is not there; its frames are then unknown."""
    promised = False
    at = 12
    while at < size:
        file.seek(at)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[8:] == b"hdrl":
            header = file.read(length)
            flags = int.from_bytes(header[20:24], "little")  # the fourth number of "avih"
            promised = bool(flags & AVI_HAS_INDEX) and b"indx" not in header  # OpenDML has that
        elif head[:4] == b"idx1":
            return False
        at += 8 + length + length % 2
    return promised


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box ends (ISO/IEC 14496-12, section 4.2)."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        # A second ftyp begins the next file
        if head[4:8] not in MP4_BOXES or (end and head[4:8] == b"ftyp"):
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the true one follows in 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: this box reaches to the end of the file, however long that is
            break
        end += length
    return end


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Where the last element ends: an EBML header, a segment with all the rest (RFC 8794)."""
    end = 0
    while end < size:
        file.seek(end)
        element, _ = _ebml_number(file, keep_marker=True)
        length, unknown = _ebml_number(file, keep_marker=False)
        if element not in MATROSKA_ELEMENTS or unknown:
            break
        end = file.tell() + length
    return end


def _ebml_number(file: BinaryIO, *, keep_marker: bool) -> tuple[int, bool]:
    """A number of 1 to 8 bytes, as many as its first one bit says; True if all its bits are set."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, True
    width = 9 - first[0].bit_length()  # bytes
    number = int.from_bytes(first + file.read(width - 1), "big")
    value = number & ((1 << 7 * width) - 1)
    return (number if keep_marker else value), value == (1 << 7 * width) - 1
