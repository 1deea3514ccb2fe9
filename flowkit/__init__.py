"""flowkit: optical flow for action recognition, from a folder of videos to a two-stream model.

``from flowkit import make_method, video_fields, open_record`` is the library in short; importing
flowkit itself loads nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["make_method", "open_record", "video_fields"]

_HOMES = {
    "make_method": "flowkit.flow.methods",
    "open_record": "flowkit.records.reading",
    "video_fields": "flowkit.extraction.extract",
}


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported from their modules when they are first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flowkit' has no attribute {name!r}")
