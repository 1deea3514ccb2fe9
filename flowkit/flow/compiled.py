"""Functions compiled by Numba: once, kept on disk, and again where that is damaged."""

from __future__ import annotations

import logging
import os
import pickle
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

log = logging.getLogger("flowkit")

# What pickle, by which Numba reads its cache, says that it may raise on damaged data.
UNREADABLE = (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError)

_compiling = threading.Lock()


def ensure_compiled(
    dispatcher: Any, signature: tuple[Any, ...], *, title: str, seconds: int
) -> None:
    """Compile `dispatcher` for `signature`, or read it from disk, on the first call in a process.

    Where it is compiled, the log says so, of `title` and with the `seconds` that it takes.
    """
    with _compiling:
        if not dispatcher.signatures:
            _keep_on_disk(dispatcher)
            _compile(dispatcher, signature, title, seconds)


def _compile(dispatcher: Any, signature: tuple[Any, ...], title: str, seconds: int) -> None:
    """Compile, saying so, or load; what cannot be read is deleted and compiled again."""
    from numba.core import event

    class Announcement(event.Listener):
        def on_start(self, started: Any) -> None:
            if started.data["dispatcher"] is dispatcher:
                log.info("compiling %s for this processor, once, about %d s", title, seconds)

        def on_end(self, ended: Any) -> None:
            pass

    with event.install_listener("numba:compile", Announcement()):
        try:
            dispatcher.compile(signature)
        except UNREADABLE as error:
            folder = Path(dispatcher.stats.cache_path)
            log.warning("unreadable compiled code in %s (%r): deleting it", folder, error)
            for file in folder.glob(f"*.{dispatcher.__qualname__}-*.nb[ic]"):
                file.unlink(missing_ok=True)
            dispatcher.compile(signature)
        except OSError as error:
            if not dispatcher.signatures:
                raise
            log.warning("cannot keep the compiled code (%s): every process compiles", error)


def _keep_on_disk(dispatcher: Any) -> None:
    """Cache beside the module or in the user's cache folder, else in a temporary folder."""
    import numba

    config: Any = numba.config
    try:
        dispatcher.enable_caching()
        return
    except RuntimeError:  # Numba found no folder that can be written
        usual = config.CACHE_DIR
    try:
        config.CACHE_DIR = os.fspath(_temporary_folder())
        dispatcher.enable_caching()
    except (OSError, RuntimeError) as error:
        log.warning("cannot keep the compiled code (%s): every process compiles", error)
    finally:
        config.CACHE_DIR = usual


def _temporary_folder() -> Path:
    """A folder that the user's processes share and nobody else can write: code is run from it."""
    folder = Path(tempfile.gettempdir()) / f"flowkit-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o022 == 0
    if private and found.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix="flowkit-"))
