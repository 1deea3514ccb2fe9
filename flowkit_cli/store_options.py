"""Options of commands that take addresses in stores, and what becomes of such an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flowkit.stores.urls import Access, is_url, local_path, parse_url, read_options

ACCESS = "flowkit.access"  # where a command's context keeps what its options say of stores
CACHE_MB = 4096  # of what training and evaluation read


class PlacePath(click.Path):
    """A path or, where it begins with s3:// or the like, an address: a `Url`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What click makes of a path, or the address with what the options say of its store."""
        if not is_url(value):
            return super().convert(value, param, ctx)
        return parse_url(value, None if ctx is None else store_access(ctx))


class LocalPath(click.Path):
    """A path of this machine; an address in a store is refused before anything is looked at."""

    @classmethod
    def like(cls, path: click.Path) -> LocalPath:
        """With the settings of another type of paths."""
        made = cls()
        vars(made).update(vars(path))
        return made

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What click makes of a path; UsageError for an address."""
        local_path(value)
        return super().convert(value, param, ctx)


def store_access(context: click.Context) -> Access:
    """How the options of a command say that stores are reached.

    A cache is made where a first address is read, and is removed when the command ends.
    """
    access: Access = context.meta.get(ACCESS, Access())
    if access.cache_bytes and not access.cache:
        from flowkit.records.copies import scratch_folder
        from flowkit.records.unfinished import WorkFolder, remove_dead

        scratch = scratch_folder(access)
        remove_dead(scratch)
        work = context.with_resource(WorkFolder(scratch))
        access = replace(access, cache=str(work.path / "cache"))
        context.meta[ACCESS] = access
    return access


def _say(context: click.Context, **facts: Any) -> None:
    context.meta[ACCESS] = replace(context.meta.get(ACCESS, Access()), **facts)


def _read_settings(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> None:
    _say(context, options=read_options(given))


def _read_scratch(context: click.Context, option: click.Parameter, folder: Path | None) -> None:
    _say(context, scratch="" if folder is None else str(folder.absolute()))


def _read_cache(context: click.Context, option: click.Parameter, megabytes: int) -> None:
    _say(context, cache_bytes=megabytes << 20)


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --storage-option and --scratch, which are read before any address is."""
    command = click.option(
        "--scratch",
        type=click.Path(path_type=Path, file_okay=False),
        callback=_read_scratch,
        is_eager=True,
        expose_value=False,
        metavar="DIR",
        help="Folder for what of a store (s3://...) is on this machine while it is used: a video "
        "and a record of each worker.  [default: flowkit-UID in the system's temporary folder]",
    )(command)
    return click.option(
        "--storage-option",
        multiple=True,
        callback=_read_settings,
        is_eager=True,
        expose_value=False,
        metavar="KEY=VALUE",
        help="A setting of the store's file system, as fsspec names it, such as "
        "endpoint_url=https://...; no secret: those go into the environment or the store's own "
        "files.",
    )(command)


def cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--store-cache, for commands that read clips of records again and again."""
    return click.option(
        "--store-cache",
        type=click.IntRange(0),
        default=CACHE_MB,
        show_default=True,
        callback=_read_cache,
        is_eager=True,
        expose_value=False,
        metavar="MB",
        help="Keep so much of the records of a store (s3://...) on this machine, in --scratch, "
        "while they are read.",
    )(command)
