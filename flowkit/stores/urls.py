"""Addresses in object stores, such as s3://bucket/folder/a.avi; nothing here imports fsspec."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from flowkit.errors import UsageError

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
# Words that names of secrets hold; such settings have no place in a command, which `ps` shows.
SECRETS = ("key", "secret", "token", "password", "passwd", "credential", "signature")
REACH = (
    "extract, info, verify, split, train --records, eval --records, predict and pack --out take "
    "addresses; copy it here first"
)
ELSEWHERE = "secrets go into the environment or the store's own files of credentials"


@dataclass(frozen=True)
class Access:
    """How stores are reached, and what of them is kept on this machine; holds no secret.

    `options` are fsspec's settings of a file system, names with dots for nested ones. `scratch` is
    the folder of local copies ("" for the system's). Ranges that are read are kept in the folder
    `cache`, of at most `cache_bytes`; 0 keeps none.
    """

    options: tuple[tuple[str, str], ...] = ()
    scratch: str = ""
    cache: str = ""
    cache_bytes: int = 0

    def settings(self) -> dict[str, Any]:
        """The options as fsspec takes them: values that are JSON as such, dots as nesting."""
        settings: dict[str, Any] = {}
        for name, text in self.options:
            *parents, last = name.split(".")
            inner = settings
            for parent in parents:
                inner = inner.setdefault(parent, {})
            try:
                inner[last] = json.loads(text)
            except ValueError:
                inner[last] = text
        return settings


@dataclass(frozen=True, slots=True)  # there is one of every key of a listing
class State:
    """What tells one version of an object from another: bytes, and the store's mark or time."""

    size: int
    etag: str | None = None
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Url:
    """The address of an object, or of all below it; it has a path's names and parts.

    `state` is what a listing said of the object. Make one with `parse_url`.
    """

    text: str
    access: Access = Access()
    state: State | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: Url) -> bool:
        return self.text < other.text

    def __truediv__(self, name: str | PurePath) -> Url:
        return Url(f"{self.text}/{PurePosixPath(name)}", self.access)

    @property
    def scheme(self) -> str:
        """What comes before ``://``."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Url:
        """The address less its last part; that of a bucket is itself."""
        head, slash, _ = self.text.rpartition("/")
        return self if not slash or head.endswith("/") else Url(head, self.access)

    def with_name(self, name: str) -> Url:
        """The address with another last part."""
        return self.parent / name

    def relative_to(self, base: Url) -> PurePosixPath:
        """The path from `base`; ValueError where it does not lie below it."""
        if not self.text.startswith(f"{base.text}/"):
            raise ValueError(f"{self} does not lie below {base}")
        return PurePosixPath(self.text.removeprefix(f"{base.text}/"))


Place = Path | Url


def is_url(text: object) -> bool:
    """Whether a text is an address of a store, not a path of this machine."""
    return isinstance(text, str) and ADDRESS.fullmatch(text) is not None


def local_path(place: object) -> Path:
    """A path of this machine as it is given; UsageError where an address in a store came."""
    if isinstance(place, Path) or not is_url(str(place)):
        return Path(str(place))
    shown = "" if holds_secret(str(place)) else f"{place}: "
    raise UsageError(f"{shown}expected a path of this machine, got an address in a store: {REACH}")


def parse_url(text: str, access: Access | None = None) -> Url:
    """The address that a text gives; UsageError, without the text, where it holds a secret."""
    match = ADDRESS.fullmatch(text)
    if match is None:
        raise UsageError(f"expected an address such as s3://bucket/folder, got {text!r}")
    scheme, rest = match[1].lower(), match[2]
    if holds_secret(text):
        raise UsageError(f"{scheme}://...: an address holds no password or signature: {ELSEWHERE}")
    if not rest.strip("/"):
        raise UsageError(f"{text}: expected an address such as {scheme}://bucket/folder")
    start = "/" if rest.startswith("/") else ""  # file:///folder
    parts = rest.strip("/")
    return Url(f"{scheme}://{start}{parts}", access or Access())


def holds_secret(text: str) -> bool:
    """Whether an address holds a user with a password, or a signed query."""
    match = ADDRESS.fullmatch(text)
    if match is None:
        return False
    user, at, _ = match[2].partition("/")[0].rpartition("@")
    query = match[2].partition("?")[2].lower()
    return bool(at and user) or any(word in query for word in SECRETS)


def as_place(text: str | os.PathLike[str] | Url, access: Access | None = None) -> Place:
    """The path or the address that a text gives."""
    if isinstance(text, Url):
        return text if access is None else replace(text, access=access)
    return parse_url(text, access) if isinstance(text, str) and is_url(text) else Path(text)


def relative_to(place: Place, base: Place) -> PurePosixPath:
    """The path of a place from another of its kind; ValueError where it does not lie below it."""
    if isinstance(place, Url) and isinstance(base, Url):
        return place.relative_to(base)
    if isinstance(place, Path) and isinstance(base, Path):
        return PurePosixPath(place.relative_to(base))
    raise ValueError(f"{place} does not lie below {base}")


def absolute(place: Place) -> str:
    """An address as it is, a path from the root."""
    return str(place) if isinstance(place, Url) else os.path.abspath(place)


def read_options(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The options of texts KEY=VALUE; UsageError, without the value, where one names a secret."""
    return tuple(_read_option(text) for text in given)


def _read_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError("--storage-option: expected KEY=VALUE, such as endpoint_url=https://...")
    if names_secret(name) or holds_secret(value) or any(map(names_secret, _keys(value))):
        raise UsageError(f"--storage-option {name}=...: names a secret: {ELSEWHERE}")
    return name, value


def names_secret(name: str) -> bool:
    """Whether a setting of that name holds a secret."""
    return any(word in name.lower() for word in SECRETS)


def _keys(value: str) -> Iterator[str]:
    """All names within a value that is JSON."""
    try:
        waiting = [json.loads(value)]
    except ValueError:
        return
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def without_secrets(arguments: Iterable[str]) -> list[str]:
    """The arguments of a command as a log may show them."""
    return [_without_secret(text) for text in arguments]


def _without_secret(text: str) -> str:
    name, _, value = text.partition("=")
    if is_url(text):
        return f"{text.partition('://')[0]}://..." if holds_secret(text) else text
    secret = names_secret(name) or holds_secret(value) or any(map(names_secret, _keys(value)))
    return f"{name}=..." if value and secret else text
