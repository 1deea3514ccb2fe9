"""The one import of OpenCV: it names the ways out where that fails, and makes forks safe."""

import os

from flowkit.errors import InstallError

try:
    import cv2
except ImportError as error:
    raise InstallError(
        f"OpenCV cannot be imported ({error}): either install its system libraries "
        "(Debian: apt-get install libgl1 libglib2.0-0 libxcb1), or take the build that needs none: "
        "pip uninstall -y opencv-contrib-python && pip install opencv-contrib-python-headless"
    ) from error

__all__ = ["cv2"]

_threads = cv2.getNumThreads()


def _end_threads() -> None:
    global _threads
    _threads = cv2.getNumThreads()
    cv2.setNumThreads(1)


def _allow_threads() -> None:
    cv2.setNumThreads(_threads)


# A forked copy of OpenCV's thread pool has no threads behind it, and waits for them for ever. So
# the pool is ended before a fork; the child, a loader's worker, goes on with one thread.
os.register_at_fork(before=_end_threads, after_in_parent=_allow_threads)
