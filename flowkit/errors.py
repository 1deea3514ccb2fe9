"""What can go wrong, by name: every error of flowkit, each also the fitting built-in."""


class FlowkitError(Exception):
    """Anything flowkit refuses; its text is one line that a user can act on.

    `absent` is True where the very path that was asked for is not there: the RecordError of a
    mistyped folder has it, that of a damaged record has not.
    """

    def __init__(self, *text: object, absent: bool = False) -> None:
        super().__init__(*text)
        self.absent = absent


class UsageError(FlowkitError, ValueError):
    """The request itself cannot be carried out, whatever the data: nothing was done."""


class VideoError(FlowkitError, ValueError):
    """A video cannot be opened, or did not give every frame that its file promises."""


class RecordError(FlowkitError, ValueError):
    """A flow record is missing, unfinished, damaged, or not what was asked for."""


class ReadError(FlowkitError, OSError):
    """A file could not be read this time, for the disk or the system; it may well be sound."""


class StoreError(ReadError):
    """An object store forbids it, or failed for longer than it was asked again."""

    retries = 0  # how often stores were asked again until it was raised


class NoObjectError(StoreError, FileNotFoundError):
    """An object store has no object of that address."""


class SplitError(FlowkitError, ValueError):
    """A split file or the videos it lists do not fit together."""


class InstallError(FlowkitError, ImportError):
    """A library that flowkit needs cannot be imported here."""


class DeviceMemoryError(FlowkitError, MemoryError):
    """A GPU has no memory for a batch: a smaller one may fit."""


class DeviceError(FlowkitError, RuntimeError):
    """A GPU failed in the middle of its work: the process that uses it cannot go on."""


class TrainingError(FlowkitError, ArithmeticError):
    """A training cannot go on: its loss is no number any more."""


class FlowProcessDied(FlowkitError):
    """The process that computed a video's flow is no more: the video has to be begun again."""


class ScoresError(FlowkitError, ValueError):
    """A scores file is missing or malformed, or scores do not fit together."""


class CheckpointError(FlowkitError, ValueError):
    """A checkpoint or a file of weights is missing, damaged, or not what was asked for."""


class ExportError(FlowkitError, ArithmeticError):
    """An exported network does not give the outputs of the one it was made of."""
