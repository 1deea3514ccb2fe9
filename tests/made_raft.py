"""Files of RAFT's tensors as they are before any training."""

from pathlib import Path


def save_raft(path: Path, *, net: str = "raft_small", seed: int = 0) -> str:
    """Save torchvision's `net` with random weights, and give the path as text."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import optical_flow

    torch.manual_seed(seed)
    state = getattr(optical_flow, net)().state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)
