"""What tests share: the folder of real clips, where there is one."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("FLOWKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips, splits and ground truth; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real clips at {DATA}: set FLOWKIT_DATA to the folder that holds them")
    return DATA


@pytest.fixture(scope="module")
def one_thread():
    """Torch computes in one thread: small networks are slower in more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
