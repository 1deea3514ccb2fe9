"""Records in stores: each a pack, one object that is put whole, where none stands already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.documents import differences
from flowkit.errors import RecordError
from flowkit.records import zips
from flowkit.records.copies import local_copy
from flowkit.records.ownership import claim_of
from flowkit.records.reading import read_sidecar
from flowkit.stores.retries import retry_count
from flowkit.stores.urls import Place, Url


def put_pack(pack: Path, target: Url, sidecar: dict[str, Any], *, overwrite: bool = False) -> bool:
    """Put a finished pack, whose sidecar that is, into a store; it is read back from disk before.

    Returns False where another run has put the same record meanwhile: theirs stays. RecordError
    where theirs was asked for otherwise, or where what stands there is no record of flowkit's.
    """
    from flowkit.stores.objects import CONDITIONAL, is_object, put_object

    for name, place in zips.list_members(pack).items():
        zips.read_members(pack, [(name, place)])
    if overwrite and is_object(target):
        with local_copy(target) as copy:
            claim_of(copy.path)
    asked = retry_count()
    try:
        put_object(pack, target, replace=overwrite)
    except FileExistsError:
        theirs = read_sidecar(target)
        expect_same(target, theirs, sidecar, pack=True)
        # A put whose answer was lost is tried again, and then finds itself.
        return retry_count() > asked and theirs == read_sidecar(pack)
    if target.scheme not in (*CONDITIONAL, "file"):  # another run's may have come in between
        expect_same(target, read_sidecar(target), sidecar, pack=True)
    return True


def expect_same(
    standing: Place, theirs: dict[str, Any], sidecar: dict[str, Any], *, pack: bool
) -> None:
    """RecordError unless the record that stands there was asked for as this one was."""
    found = request_differences(standing, theirs, sidecar["request"], pack=pack)
    for key in ("name", "bytes"):
        one, other = (each.get("source", {}).get(key) for each in (theirs, sidecar))
        found += differences({f"source.{key}": one}, {f"source.{key}": other})
    if found:
        raise RecordError(
            f"{standing}: another run has finished it meanwhile, otherwise than asked for: "
            f"{'; '.join(found)}"
        )


def request_differences(
    standing: Place, sidecar: dict[str, Any], request: dict[str, Any], *, pack: bool
) -> list[str]:
    """How the record at `standing`, with that sidecar, differs from a `request` for one."""
    found = differences(sidecar["request"], request)
    is_pack = standing.suffix == ".zip" and (isinstance(standing, Url) or standing.is_file())
    if is_pack != pack:
        kind = "folder" if pack else "pack"
        found.append(f"a {kind} on disk: flowkit pack|unpack converts")
    return found
