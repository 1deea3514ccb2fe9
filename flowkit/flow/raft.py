"""RAFT, a learned flow (Teed and Deng, ECCV 2020): torchvision's networks, weights from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.documents import read_plain_file
from flowkit.errors import InstallError, UsageError
from flowkit.flow.method import check_parameters, parameter
from flowkit.flow.pairs import Pair, check_pair, consecutive
from flowkit.torch_files import read_torch_file

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH_BYTES = 1 << 30  # bytes of correlations: those of a pair grow with the square of its pixels
MOST_PAIRS = 8  # pairs in a batch: larger ones are hardly faster
STRIDE = 8  # px of a cell of the feature maps
SMALLEST_SIDE = 128  # px: a correlation pyramid of four levels needs 16 cells
WHERE = (
    "torchvision's raft_large or raft_small, such as "
    "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth"
)


@dataclass(frozen=True)
class RAFT:
    """RAFT by torchvision (doi 10.1007/978-3-030-58536-5_24), on a CUDA device if there is one.

    `weights` is a file of the weights of torchvision's ``raft_large`` or ``raft_small`` (.pth or
    .safetensors; which of the two is seen from them); nothing is downloaded. The networks were
    trained on RGB and see the frames in color, scaled to [-1, 1]; a gray frame, or without `color`
    every one, as three equal channels. Sides are padded by repeating the border, on both sides
    alike, to a multiple of 8 px and at least 128.

    The identity is the name of the file, the `sha256` of its content, which is filled in, and the
    other parameters; one that does not name `color` is of gray frames.
    UsageError where there is no such file or another content than `sha256` says.
    """

    name: ClassVar[str] = "raft"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    unnamed: ClassVar[dict[str, Any]] = {"color": False}  # what an identity without it means

    weights: str = parameter("", "File of torchvision's weights of RAFT, large or small.")
    updates: int = parameter(12, "Updates of the field.", at_least=1)
    sha256: str = parameter("", "SHA-256 that the file of weights must have.")
    color: bool = parameter(True, "Frames in color, as in the training of RAFT; else gray thrice.")

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.weights:
            raise UsageError(f"raft: expected --raft-weights FILE, {WHERE}")
        digest = hashlib.sha256(_read(self.weights)).hexdigest()
        if self.sha256 not in ("", digest):
            raise UsageError(
                f"raft: {self.weights}: expected weights of SHA-256 {self.sha256}, "
                f"got {digest}: name the file that was used before"
            )
        object.__setattr__(self, "sha256", digest)
        object.__setattr__(self, "weights", os.path.abspath(self.weights))  # for all workers

    def prepare(self) -> None:
        """UsageError where the weights do not fit, InstallError where torch cannot be imported."""
        load_network(self.weights, self.sha256, "cpu")

    def identity(self) -> dict[str, Any]:
        """The parameters; of the file its name and checksum, wherever it lies."""
        identity = {**dataclasses.asdict(self), "weights": Path(self.weights).name}
        return {name: value for name, value in identity.items() if self.unnamed.get(name) != value}

    def device(self) -> str:
        """The device that RAFT computes on: "cuda" if torch can use one, else "cpu"."""
        return "cuda" if _torch().cuda.is_available() else "cpu"

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames, color=self.color))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray or BGR frames, in order, float32 (H, W, 2) px.

        Reads a batch of up to eight pairs ahead; a batch ends where the size changes. InstallError
        where torch or torchvision cannot be imported.
        """
        network = load_network(self.weights, self.sha256, self.device())
        for batch in _batches(pairs):
            yield from _compute(network, batch, self.updates)


@lru_cache(maxsize=1)
def load_network(weights: str, sha256: str, device: str) -> Any:
    """torchvision's network with the weights of a file, ready to compute; the latest is kept.

    UsageError where the file has changed, or holds anything but the tensors of RAFT.
    """
    torch = _torch()
    try:
        from torchvision.models import optical_flow
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: made for another torch
        raise InstallError(
            f"--method raft needs torchvision, which cannot be imported ({error}): "
            "pip install torchvision, of the version that fits torch"
        ) from error
    state = _read_tensors(weights, sha256)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    differences = []
    for make in (optical_flow.raft_large, optical_flow.raft_small):
        with torch.device("meta"):
            network = make()
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        if wanted == shapes:
            network.load_state_dict(state, assign=True)
            return network.to(device).eval()
        unfit = [name for name, shape in wanted.items() if shapes.get(name) != shape]
        unknown = [name for name in shapes if name not in wanted]
        first = (unfit or unknown)[0]
        differences.append(
            f"for {make.__name__} {len(unfit)} of {len(wanted)} tensors are missing or of another "
            f"shape and {len(unknown)} unknown ({first} first)"
        )
    raise UsageError(f"raft: {weights}: expected {WHERE}; {'; '.join(differences)}")


def _compute(network: Any, batch: list[Pair], updates: int) -> list[np.ndarray]:
    """The fields of pairs of one size, all gray or all BGR."""
    import numpy as np

    torch = _torch()
    height, width = batch[0][0].shape[:2]
    top, bottom = _padding(height)
    left, right = _padding(width)
    frames = torch.from_numpy(np.array(batch)).to(next(network.parameters()).device)
    with torch.inference_mode():
        if frames.ndim == 4:  # gray (B, 2, H, W)
            frames = frames[..., None]
        frames = frames.permute(1, 0, 4, 2, 3).flip(2)  # (B, 2, H, W, C) -> (2, B, C, H, W), RGB
        frames = frames.float().div_(127.5).sub_(1).flatten(0, 1)
        frames = torch.nn.functional.pad(frames, (left, right, top, bottom), mode="replicate")
        first, second = frames.expand(-1, 3, -1, -1).chunk(2)  # each (B, 3, H', W')
        flow = network(first, second, num_flow_updates=updates)[-1]  # (B, 2, H', W')
        flow = flow[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
        # Returned, not yielded: a mode that a generator has entered holds for its caller, too.
        return [field.copy() for field in flow.cpu().numpy()]  # contiguous, and free of the batch


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs of one size, as many as correlations of `BATCH_BYTES` allow, up to `MOST_PAIRS`."""
    batch: list[Pair] = []
    for first, second in pairs:
        check_pair(first, second, color=True)
        if batch and (first.shape != batch[0][0].shape or len(batch) == _room(batch[0][0].shape)):
            yield batch
            batch = []
        batch.append((first, second))
    if batch:
        yield batch


def _room(shape: tuple[int, ...]) -> int:
    """Pairs of frames of a `shape` (H, W) or (H, W, 3) in a batch."""
    cells = 1
    for side in shape[:2]:
        cells *= (side + sum(_padding(side))) // STRIDE
    return max(1, min(MOST_PAIRS, BATCH_BYTES // (cells * cells * 4 * 4 // 3)))  # float32, levels


def _padding(side: int) -> tuple[int, int]:
    """Pixels to put before and behind a side, as the authors of RAFT divide them."""
    more = max(-(-side // STRIDE) * STRIDE, SMALLEST_SIDE) - side
    return more // 2, more - more // 2


def _read(weights: str) -> bytes:
    try:
        return read_plain_file(weights, error=UsageError)
    except (OSError, UsageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"raft: cannot read the weights {weights} ({reason}); expected a file of {WHERE}"
        ) from error


def _read_tensors(weights: str, sha256: str) -> dict[str, torch.Tensor]:
    data = _read(weights)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UsageError(f"raft: {weights} has changed meanwhile: start again")
    torch = _torch()
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if Path(weights).suffix == ".safetensors":
            state: Any = load(data)
        else:
            state = read_torch_file(BytesIO(data), where=weights, error=UsageError)
    except (SafetensorError, UsageError) as error:
        raise UsageError(f"raft: {weights}: expected tensors, {WHERE}; {error}") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(one) for one in state.values()):
        raise UsageError(f"raft: {weights}: expected tensors by name, {WHERE}")
    return state


def _torch() -> Any:
    try:
        import torch
    except (ImportError, OSError) as error:
        raise InstallError(f"--method raft needs torch ({error}): pip install torch") from error
    return torch
