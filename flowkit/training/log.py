"""What a training tells while it runs: rows of a CSV file, TensorBoard's events, a picture."""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flowkit.documents import read_plain_file, replacing
from flowkit.errors import CheckpointError, InstallError
from flowkit.pictures.curves import draw_curves

CSV_FILE, CURVES_FILE, TENSORBOARD_FOLDER = "log.csv", "curves.svg", "tensorboard"


@dataclass(frozen=True)
class StepReport:
    """How a training does after `step` of `steps` steps.

    `losses` and `accuracies` are means over the clips of each task since the last one told;
    `heldout_loss` and `heldout_accuracy`, over the held-out videos of the first task, are there
    where they have just been computed. `seconds_left` does not count what that takes.
    """

    step: int
    steps: int
    losses: dict[str, float]
    accuracies: dict[str, float]
    learning_rate: float
    samples_per_s: float
    seconds_left: float
    heldout_loss: float | None = None
    heldout_accuracy: float | None = None

    @property
    def loss(self) -> float:
        """The sum of the tasks' losses, which is what training makes small."""
        return sum(self.losses.values())

    def row(self) -> dict[str, Any]:
        """The values of a row of the CSV file, by column."""
        row: dict[str, Any] = {
            "step": self.step,
            "learning_rate": self.learning_rate,
            "samples_per_s": round(self.samples_per_s, 2),
            "loss": self.loss,
            "accuracy": next(iter(self.accuracies.values())),
            "heldout_loss": self.heldout_loss,
            "heldout_accuracy": self.heldout_accuracy,
        }
        if len(self.losses) > 1:
            row |= {f"loss_{task}": loss for task, loss in self.losses.items()}
            row |= {f"accuracy_{task}": accuracy for task, accuracy in self.accuracies.items()}
        return row


class TrainingLog:
    """Writes the rows of one training; a context manager.

    Rows after `step` that an interrupted training left in `folder` are removed. InstallError where
    TensorBoard is asked for and is not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        self.path = folder / CSV_FILE
        self.board = _open_board(folder / TENSORBOARD_FOLDER, step) if tensorboard else None
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_log(folder) if int(row["step"]) <= step]
        self.columns: Sequence[str] = list(rows[0]) if rows else ()
        with (
            replacing(self.path) as part,
            part.open("w", newline="", encoding="ascii") as file,
        ):
            if rows:
                _writer(file, self.columns, header=True).writerows(rows)
        self.file = self.path.open("a", newline="", encoding="ascii")

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()

    def add(self, progress: StepReport) -> None:
        """Write one row, at once."""
        row = progress.row()
        writer = _writer(self.file, self.columns or list(row), header=not self.columns)
        self.columns = list(writer.fieldnames)
        writer.writerow(row)
        self.file.flush()
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, progress.step)


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the CSV file in `folder`, none where there is no such file yet.

    CheckpointError where it is not that of a training.
    """
    path = folder / CSV_FILE
    if not path.exists():
        return []
    try:
        text = read_plain_file(path, error=CheckpointError).decode("ascii")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [row for row in rows if None not in row.values()]  # a last row cut short
        for row in rows:
            int(row["step"])
    except (ValueError, KeyError, csv.Error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: expected the CSV file of a training ({error}): move it away to go on"
        ) from error
    return rows


def draw_log(folder: Path) -> Path:
    """Draw the CSV file in `folder` as a picture beside it: loss and accuracy over the steps."""
    rows = read_log(folder)

    def points(column: str) -> list[tuple[float, float]]:
        values = [(float(row["step"]), float(row[column])) for row in rows if row[column]]
        return [point for point in values if math.isfinite(point[1])]

    picture = draw_curves(
        {
            title: {"training": points(title), "held out": points(f"heldout_{title}")}
            for title in ("loss", "accuracy")
        },
        percent=["accuracy"],
    )
    with replacing(folder / CURVES_FILE) as part:
        part.write_text(picture, encoding="utf-8")
    return folder / CURVES_FILE


def _writer(file: IO[str], columns: Sequence[str], *, header: bool) -> csv.DictWriter[str]:
    writer = csv.DictWriter(file, list(columns))
    if header:
        writer.writeheader()
    return writer


def _open_board(folder: Path, step: int) -> Any:
    try:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise InstallError(
            f"TensorBoard cannot be imported ({error}): pip install tensorboard, or leave "
            "--tensorboard out; log.csv holds the same values"
        ) from error
    return tensorboard.SummaryWriter(str(folder), purge_step=step + 1)
