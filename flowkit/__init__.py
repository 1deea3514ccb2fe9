"""flowkit: optical flow for action recognition, from a folder of videos to a two-stream model.

``from flowkit import ...`` gives every public name; each is imported from its module when it is
first asked for, so that importing flowkit itself loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowkit.data.clips import Clip, View
    from flowkit.data.datasets import TestClips, TrainingClips
    from flowkit.data.frames import FrameForm
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import read_split
    from flowkit.data.stacks import StackForm, flow_stack
    from flowkit.errors import (
        CheckpointError,
        DeviceError,
        FlowkitError,
        InstallError,
        RecordError,
        ScoresError,
        SplitError,
        UsageError,
        VideoError,
    )
    from flowkit.evaluation.scoring import Scorer
    from flowkit.extraction.extract import extract, video_fields
    from flowkit.extraction.request import Request
    from flowkit.fields import read_flo, write_flo
    from flowkit.flow.methods import compute_field, make_method
    from flowkit.networks.checkpoints import load_net
    from flowkit.pictures.colors import colorize
    from flowkit.records.foreign import open_foreign
    from flowkit.records.layout import Storage
    from flowkit.records.reading import find_records, open_record
    from flowkit.report.figures import evaluate
    from flowkit.scores.files import Scores, read_scores, write_scores
    from flowkit.scores.fusion import Fusion, fuse
    from flowkit.video.reading import open_video
    from flowkit.video.sources import find_videos

__version__ = "0.2.0"

# Where each public name lives.
_HOMES = {
    "open_video": "flowkit.video.reading",
    "find_videos": "flowkit.video.sources",
    "make_method": "flowkit.flow.methods",
    "compute_field": "flowkit.flow.methods",
    "video_fields": "flowkit.extraction.extract",
    "read_flo": "flowkit.fields",
    "write_flo": "flowkit.fields",
    "colorize": "flowkit.pictures.colors",
    "extract": "flowkit.extraction.extract",
    "Request": "flowkit.extraction.request",
    "Storage": "flowkit.records.layout",
    "open_record": "flowkit.records.reading",
    "find_records": "flowkit.records.reading",
    "open_foreign": "flowkit.records.foreign",
    "Clip": "flowkit.data.clips",
    "View": "flowkit.data.clips",
    "FrameForm": "flowkit.data.frames",
    "StackForm": "flowkit.data.stacks",
    "flow_stack": "flowkit.data.stacks",
    "TrainingClips": "flowkit.data.datasets",
    "TestClips": "flowkit.data.datasets",
    "RecordFolder": "flowkit.data.record_folders",
    "read_split": "flowkit.data.splits",
    "load_net": "flowkit.networks.checkpoints",
    "Scorer": "flowkit.evaluation.scoring",
    "Scores": "flowkit.scores.files",
    "read_scores": "flowkit.scores.files",
    "write_scores": "flowkit.scores.files",
    "Fusion": "flowkit.scores.fusion",
    "fuse": "flowkit.scores.fusion",
    "evaluate": "flowkit.report.figures",
    "FlowkitError": "flowkit.errors",
    "UsageError": "flowkit.errors",
    "VideoError": "flowkit.errors",
    "RecordError": "flowkit.errors",
    "SplitError": "flowkit.errors",
    "CheckpointError": "flowkit.errors",
    "ScoresError": "flowkit.errors",
    "InstallError": "flowkit.errors",
    "DeviceError": "flowkit.errors",
}

__all__ = [
    "CheckpointError",
    "Clip",
    "DeviceError",
    "FlowkitError",
    "FrameForm",
    "Fusion",
    "InstallError",
    "RecordError",
    "RecordFolder",
    "Request",
    "Scorer",
    "Scores",
    "ScoresError",
    "SplitError",
    "StackForm",
    "Storage",
    "TestClips",
    "TrainingClips",
    "UsageError",
    "VideoError",
    "View",
    "colorize",
    "compute_field",
    "evaluate",
    "extract",
    "find_records",
    "find_videos",
    "flow_stack",
    "fuse",
    "load_net",
    "make_method",
    "open_foreign",
    "open_record",
    "open_video",
    "read_flo",
    "read_scores",
    "read_split",
    "video_fields",
    "write_flo",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported from their modules when they are first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flowkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
