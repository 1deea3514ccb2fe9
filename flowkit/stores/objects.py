"""Objects of stores through fsspec: listed, described, read in part or whole, put, removed.

A file system of fsspec has a thread, which no fork copies: each process opens its own, and closes
it before it forks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from flowkit.errors import InstallError, NoObjectError, StoreError, UsageError
from flowkit.stores.retries import Truncated, call, is_unknown_condition
from flowkit.stores.urls import State, Url

S3 = ("s3", "s3a")
CONDITIONAL = (*S3, "gs", "gcs")  # stores that put an object only where none is, when asked to
CONNECT_S, ANSWER_S = 20, 60  # seconds until a silent store counts as one that failed
BLOCK = 8 << 20  # bytes that are read at a time for a checksum

_opened: dict[tuple[int, str, tuple[tuple[str, str], ...]], Any] = {}  # by process


def list_objects(folder: Url) -> Iterator[Url]:
    """Every object below a folder, with its state, as the store lists them: page by page.

    No more than a page (s3) or a folder (others) of names is in memory. Nothing for no objects.
    """
    system = _system(folder)
    pages = _pages_of_s3 if folder.scheme in S3 else _pages
    for page in pages(system, folder):
        for name, facts in page:
            # Names that the store gives are as they are: another parse might change them
            yield Url(f"{folder.text}/{name}", folder.access, _state(facts))


def object_state(url: Url) -> State:
    """The size of an object, and its etag or time; NoObjectError where there is none."""
    system = _system(url)
    facts = call(url, lambda: system.info(_path(url)))
    if facts["type"] != "file":
        raise NoObjectError(f"{url}: no such object, or no such bucket", absent=True)
    return _state(facts)


def is_object(url: Url) -> bool:
    """Whether there is an object of that address."""
    try:
        object_state(url)
    except NoObjectError:
        return False
    return True


def read_range(url: Url, start: int, end: int) -> bytes:
    """The bytes of an object from `start` to before `end`, or to its end where that comes first."""
    system = _system(url)
    return call(url, lambda: system.cat_file(_path(url), start=start, end=end))


def read_object(url: Url, most: int) -> bytes:
    """All bytes of an object; StoreError where it has more than `most`."""
    size = object_state(url).size
    if size > most:
        raise StoreError(f"{url}: expected at most {most:,} bytes, the object has {size:,}")
    return read_range(url, 0, size) if size else b""


def hash_object(url: Url) -> str:
    """The SHA-256 of an object's bytes, in hexadecimal; a block of them is in memory."""
    digest, size = hashlib.sha256(), object_state(url).size
    for start in range(0, size, BLOCK):
        digest.update(read_range(url, start, min(start + BLOCK, size)))
    return digest.hexdigest()


def get_object(url: Url, file: Path) -> State:
    """Copy an object to `file`, and give its state; StoreError if that changes meanwhile."""
    system = _system(url)
    before = url.state or object_state(url)

    def get() -> None:
        system.get_file(_path(url), str(file))
        if file.stat().st_size != before.size and object_state(url) == before:
            raise Truncated(f"{file.stat().st_size} bytes of {before.size}")

    call(url, get)
    if object_state(url) != before:
        if url.state is not None:  # it changed after it was listed
            return get_object(Url(url.text, url.access), file)
        raise StoreError(f"{url}: changed while it was read")
    return before


def put_object(file: Path, url: Url, *, replace: bool) -> None:
    """Put a file as one object, which is there whole or not at all.

    FileExistsError where one is there and not to be replaced; a store that cannot be asked so is
    looked at before, and another's object that comes in between is replaced.
    """
    if url.scheme == "file":
        call(url, lambda: _put_beside(file, Path(_path(url)), replace=replace))
        return
    system = _system(url)
    mode = "overwrite" if replace else "create"
    if url.scheme not in CONDITIONAL or replace:
        call(url, lambda: system.put_file(str(file), _path(url), mode=mode))
        return

    def put() -> bool:
        try:
            system.put_file(str(file), _path(url), mode=mode)
        except Exception as error:
            if is_unknown_condition(error):
                return False
            raise
        return True

    if not call(url, put):
        if is_object(url):
            raise FileExistsError(str(url))
        call(url, lambda: system.put_file(str(file), _path(url)))


def remove_object(url: Url) -> None:
    """Remove an object."""
    system = _system(url)
    call(url, lambda: system.rm_file(_path(url)))


def close_stores() -> None:
    """Close this process's file systems and end fsspec's thread: what is forked next is whole.

    What is asked for afterwards opens them again, here as in the fork.
    """
    if not _opened:
        return
    import asyncio

    from fsspec import asyn

    systems = [one for (pid, *_), one in _opened.items() if pid == os.getpid()]
    _opened.clear()
    loop, thread = asyn.loop[0], asyn.iothread[0]
    if loop is None or thread is None:
        return
    for system in systems:
        if hasattr(system, "close_session") and getattr(system, "_s3", None) is not None:
            system.close_session(loop, system._s3creator)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(ANSWER_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(ANSWER_S)
    loop.close()
    asyn.loop[0] = asyn.iothread[0] = None


def _put_beside(file: Path, target: Path, *, replace: bool) -> None:
    """A file of a disk: written under another name, then renamed or linked to its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as copy:
            copy.write(file.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
        part.replace(target) if replace else os.link(part, target)
    finally:
        part.unlink(missing_ok=True)


def _system(url: Url) -> Any:
    """The file system of a store, opened once in each process."""
    key = (os.getpid(), url.scheme, url.access.options)
    if key not in _opened:
        _opened[key] = _open(url)
    return _opened[key]


def _open(url: Url) -> Any:
    settings = url.access.settings()
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)  # errors are told once, by `call`
    if url.scheme in S3:
        # Their own retries are nobody's to count: flowkit.stores.retries does all of it.
        settings["config_kwargs"] = {
            "connect_timeout": CONNECT_S,
            "read_timeout": ANSWER_S,
            **settings.get("config_kwargs", {}),
            "retries": {"total_max_attempts": 1},
        }
    try:
        import fsspec

        system = fsspec.filesystem(
            url.scheme, use_listings_cache=False, skip_instance_cache=True, **settings
        )
    except ImportError as error:
        raise InstallError(
            f"{url}: {url.scheme}:// needs a library that is not installed "
            f"({error.name or type(error).__name__}): pip install 'flowkit-video[s3]' for s3://, "
            "'flowkit-video[gs]' for gs://"
        ) from None
    except (ValueError, TypeError) as error:
        kind = "an unknown kind of store" if isinstance(error, ValueError) else "unknown options"
        raise UsageError(f"{url}: {kind}; see --storage-option") from None
    if url.scheme in S3:
        system.retries = 1
    return system


def _path(url: Url) -> str:
    """An address as its file system has it: without the scheme."""
    return url.text.partition("://")[2] if url.scheme != "memory" else f"/{url.text[9:]}"


def _pages_of_s3(system: Any, folder: Url) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    bucket, _, prefix = _path(folder).partition("/")
    prefix += "/" if prefix else ""
    more: dict[str, str] = {}
    while True:
        asked = {"Bucket": bucket, "Prefix": prefix, **more}
        answer = call(folder, lambda: system.call_s3("list_objects_v2", **asked))  # noqa: B023
        yield [
            (one["Key"].removeprefix(prefix), one)
            for one in answer.get("Contents", ())
            if not one["Key"].endswith("/")  # the mark of an empty folder
        ]
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


def _pages(system: Any, folder: Url) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """A page per folder, in the order of names."""
    waiting = [_path(folder)]
    start = len(waiting[0].rstrip("/")) + 1
    while waiting:
        here = waiting.pop()
        try:
            entries = call(folder, lambda: system.ls(here, detail=True))  # noqa: B023
        except NoObjectError:  # a folder without objects is no folder
            continue
        entries.sort(key=lambda entry: entry["name"])
        waiting += [one["name"] for one in reversed(entries) if one["type"] == "directory"]
        yield [(one["name"][start:], one) for one in entries if one["type"] == "file"]


def _state(facts: dict[str, Any]) -> State:
    """A state out of what a listing or a look at one object tells of it."""
    size = int(facts.get("size", facts.get("Size", 0)))
    etag = facts.get("ETag", facts.get("etag", facts.get("md5Hash")))
    if etag:
        return State(size, str(etag).strip('"'))
    time = facts.get("mtime", facts.get("LastModified", facts.get("created")))
    if isinstance(time, datetime):
        time = time.timestamp()
    return State(size, None, None if time is None else int(time * 1e9))
