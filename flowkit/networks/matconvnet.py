"""MatConvNet's networks in MATLAB files, read in a process of its own: some crash the reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowkit.errors import CheckpointError, InstallError
from flowkit.workers.engine import Done, Failed
from flowkit.workers.pool import run_pool

TIMEOUT_S = 600.0  # seconds; 370 MB may come from a cold network disk


class MatConvNet(NamedTuple):
    """Convolutions by name, filters float32 (h, w, I, O) and bias (O,); the average image."""

    layers: dict[str, tuple[np.ndarray, np.ndarray]]
    average: np.ndarray  # float64 (h, w, 3)


def read_network(path: Path) -> MatConvNet:
    """The network in a .mat file up to version 7; CheckpointError for anything else.

    One flipped bit can crash SciPy's reader, so it runs in a child process.
    """
    with closing(run_pool(_read, [path], workers=1, timeout_s=TIMEOUT_S)) as events:
        for event in events:
            if isinstance(event, Done):
                return event.result
            if isinstance(event, Failed):
                if event.exception == "InstallError":
                    raise InstallError(event.reason)
                if event.exception == "CheckpointError":
                    raise CheckpointError(event.reason)
                raise CheckpointError(
                    f"{path}: expected a MATLAB file up to version 7 (its reader: {event.reason})"
                )
    raise CheckpointError(f"{path}: was not read")


def _read(path: Path, report: Callable[[Any], None]) -> MatConvNet:
    """What a child does: reads the file and takes out of it what `MatConvNet` holds."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise InstallError(f"reading {path} needs scipy ({error}): pip install scipy") from error
    try:
        data = loadmat(path, struct_as_record=False, squeeze_me=True)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a MATLAB file up to version 7 ({error})"
        ) from error
    try:
        layers = {}
        for layer in np.atleast_1d(data["layers"]):
            if layer.type == "conv":
                filters, bias = layer.weights if hasattr(layer, "weights") else _old_names(layer)
                filters = np.asarray(filters, np.float32)
                if filters.ndim == 2:  # 1x1 filters, squeezed
                    filters = filters[None, None]
                layers[str(layer.name)] = (filters, np.array(bias, np.float32).reshape(-1))
        return MatConvNet(layers, np.asarray(_normalization(data).averageImage, np.float64))
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected a network of MatConvNet with layers and an average image ({error!r})"
        ) from error


def _normalization(data: Mapping[str, Any]) -> Any:
    return data["normalization"] if "normalization" in data else data["meta"].normalization


def _old_names(layer: Any) -> tuple[Any, Any]:
    return layer.filters, layer.biases  # the names before MatConvNet 1.0 beta 8
