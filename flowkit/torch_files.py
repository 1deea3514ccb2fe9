"""Files that torch.save wrote, read without executing anything and without unpacking bombs."""

from __future__ import annotations

import re
import warnings
import zipfile
from typing import Any, BinaryIO

from flowkit.errors import FlowkitError


def read_torch_file(file: BinaryIO, *, where: str, error: type[FlowkitError]) -> Any:
    """What a file of torch.save holds, on the CPU: tensors, numbers, texts and lists of them.

    `error`, which names the file by `where`, for anything else.
    """
    import torch

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                    raise ValueError("its members are compressed, which torch.save never does")
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):  # of protocols that odd bytes stand for
            return torch.load(file, map_location="cpu", weights_only=True)
    # torch's reader of pickles raises whatever the first odd byte leads to
    except Exception as wrong:
        if isinstance(wrong, OSError):
            raise
        raise error(
            f"{where}: expected a file of tensors alone, for nothing else is loaded "
            f"({_reason(wrong)})"
        ) from wrong


def _reason(wrong: Exception) -> str:
    """What was found where torch refuses it, or the first sentence of another error.

    torch goes on to say how such a file would be executed.
    """
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(wrong)):
        return f"it holds {found[1]}"
    if found := re.search(r"Unsupported operand \d+", str(wrong)):
        return found[0]
    return re.split(r"\n|\. ", str(wrong))[0] or type(wrong).__name__
