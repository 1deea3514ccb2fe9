"""Calls of stores: what passes is tried again, what stays ends at once, and both in one line."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flowkit.errors import FlowkitError, NoObjectError, StoreError
from flowkit.stores.urls import Url

TRIES = 8  # of a call, the first one included
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 20.0  # before the second try; each later one waits double
# Errors of botocore, aiohttp, fsspec and gcsfs that pass, by the names of their classes.
PASSING = frozenset({
    "TimeoutError", "ConnectionError", "IncompleteRead", "IncompleteReadError", "FSTimeoutError",
    "HTTPClientError", "ClientPayloadError", "ServerDisconnectedError", "ClientConnectionError",
    "ClientOSError", "ResponseParserError", "ResponseStreamingError", "EndpointConnectionError",
    "Truncated",
})  # fmt: skip
PASSING_CODES = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestLimitExceeded",
    "InternalError", "ServiceUnavailable", "BandwidthLimitExceeded", "IncompleteBody",
    "ConditionalRequestConflict", "OperationAborted",
})  # fmt: skip
PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENOMEM)  # this machine's

_retries = 0  # of this process

Result = TypeVar("Result")


class Truncated(OSError):
    """A store gave fewer bytes than it said."""


def retry_count() -> int:
    """How often this process has called a store again."""
    return _retries


def call(url: Url, operation: Callable[[], Result]) -> Result:
    """What ``operation()``, which asks the store of `url`, gives; tried again while that may help.

    The waits double, with chance in them, so that many workers do not come back at one moment.
    FileExistsError passes. NoObjectError where there is no such object; StoreError where the store
    forbids it or failed to the end. Neither holds the text of the store, which may quote a secret.
    """
    global _retries
    tries = 1
    while True:
        try:
            return operation()
        except FileExistsError:
            raise
        except Exception as error:
            if isinstance(error, FlowkitError) or getattr(error, "errno", None) in LOCAL:
                raise
            if tries == TRIES or not is_passing(error):
                raise _told(url, error, tries) from None
        time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)) * random.uniform(0.5, 1))
        tries += 1
        _retries += 1


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later."""
    code, status = _answer(error)
    if code in PASSING_CODES or status in PASSING_STATUS:
        return True
    # A body that was cut has an answer, too: aiohttp calls it 400, though the store sent 200.
    return not code and any(
        kind.__name__ in PASSING for one in _chain(error) for kind in type(one).__mro__
    )


def is_unknown_condition(error: BaseException) -> bool:
    """Whether a store says that it knows no conditional put."""
    code, status = _answer(error)
    return code == "NotImplemented" or status == 501


def _told(url: Url, error: Exception, tries: int) -> StoreError:
    """The error in one line, by its code and status."""
    code, status = _answer(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return NoObjectError(f"{url}: no such object, or no such bucket", absent=True)
    if isinstance(error, PermissionError) or status in (401, 403):
        return StoreError(f"{url}: the store forbids it ({code or type(error).__name__})")
    if type(error).__name__ == "NoCredentialsError":
        return StoreError(f"{url}: no credentials found, in the environment or its files")
    what = code or type(error).__name__
    if status and str(status) != code:
        what += f", status {status}"
    after = f" after {tries} tries" if tries > 1 else ""
    return StoreError(f"{url}: the store failed{after} ({what})")


def _answer(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status of a store's answer; "" and 0 where there was none."""
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            code = str(response["Error"].get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return code, int(status) or (int(code) if code.isdecimal() else 0)
        status = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(status, int) and 100 <= status < 600:
            return "", status
    return "", 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
