"""Objects of stores as files of this machine, for as long as they are used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flowkit.errors import FlowkitError
from flowkit.records.unfinished import WorkFolder
from flowkit.stores.urls import Access, Place, State, Url


class Copy(NamedTuple):
    """A local copy of an object: its file, the object's state, and `WorkFolder.beat`."""

    path: Path
    state: State
    beat: Callable[[], None]


def scratch_folder(access: Access) -> Path:
    """The folder below which local copies lie, and what is going to be put into a store."""
    if access.scratch:
        return Path(access.scratch)
    return Path(tempfile.gettempdir(), f"flowkit-{os.getuid()}")


def work_folder(place: Place) -> Path:
    """Where the unfinished work lies that is for a place: below a folder itself, or in scratch."""
    return scratch_folder(place.access) if isinstance(place, Url) else place


@contextmanager
def local_copy(url: Url, *, owner: str = "") -> Iterator[Copy]:
    """A copy of an object until the block ends; what flowkit refuses there is named by its address.

    StoreError where it cannot be had. For `owner` see `WorkFolder`.
    """
    from flowkit.stores.objects import get_object

    with WorkFolder(scratch_folder(url.access), owner) as work:
        path = work.path / f"copy{url.suffix}"
        state = get_object(url, path)
        try:
            yield Copy(path, state, work.beat)
        except FlowkitError as error:
            text = str(error)
            if str(path) not in text:
                raise
            raise type(error)(text.replace(str(path), str(url))) from error
