"""What tests share: the folder of real clips, where there is one."""

import gc
import os
import sys
from pathlib import Path

import pytest

from flowkit.workers import children

# One thread in each library, before any of them is imported: there are as many processes of pytest
# as cores, and threads that wait for each other's turn on busy cores spend most of the time.
for name in children.CHILD_ENVIRONMENT:
    if "THREADS" in name:
        os.environ.setdefault(name, "1")

# What is imported stays until the end, so no search for garbage need visit it, here or in a fork.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


DATA = Path(os.environ.get("FLOWKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips, splits and ground truth; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real clips at {DATA}: set FLOWKIT_DATA to the folder that holds them")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def forked_workers():
    """Workers are forked, as in a fresh program, although tests have torch and threads.

    Not where a driver of GPUs is loaded: a copy of a process that uses one cannot.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            children,
            "may_fork",
            lambda: "/libcuda.so" not in Path("/proc/self/maps").read_text(),
        )
        patch.setattr(children, "_count_threads", lambda: 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_process_of_joblib_stays():
    """The workers that joblib keeps for later end with the tests of a file."""
    yield
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    if loky is not None and loky._executor is not None:
        loky._executor.shutdown(wait=True)
