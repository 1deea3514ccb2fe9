"""Weights as TSN and I3D publish them: every key and shape by a table, and plain forward passes.

The tables are read off the published definitions; nothing here knows flowkit's networks.
"""

import math

import torch
from torch.nn import functional as F

# Block: inputs; 1x1; 3x3 reduced, 3x3; double 3x3 reduced, double 3x3; projection; pooling
TSN_BLOCKS = """
3a  192   64   64  64   64  96   32  avg
3b  256   64   64  96   64  96   64  avg
3c  320    0  128 160   64  96    0  max
4a  576  224   64  96   96 128  128  avg
4b  576  192   96 128   96 128  128  avg
4c  576  160  128 160  128 160  128  avg
4d  608   96  128 192  160 192  128  avg
4e  608    0  128 192  192 256    0  max
5a 1056  352  192 320  160 224  128  avg
5b 1024  352  192 320  192 224  128  max
"""
# Block: inputs; b0; b1a, b1b; b2a, b2b; b3b
I3D_BLOCKS = """
3b 192   64  96 128  16  32  32
3c 256  128 128 192  32  96  64
4b 480  192  96 208  16  48  64
4c 512  160 112 224  24  64  64
4d 512  128 128 256  24  64  64
4e 512  112 144 288  32  64  64
4f 528  256 160 320  32 128 128
5b 832  256 160 320  32 128 128
5c 832  384 192 384  48 128 128
"""


def rows(table):
    return [line.split() for line in table.strip().splitlines()]


def tsn_shapes(channels, classes, head="new_fc", trunk="base_model."):
    """Name -> shape of a BN-Inception of tsn-pytorch."""
    convolutions = [
        ("conv1_7x7_s2", channels, 64, 7),
        ("conv2_3x3_reduce", 64, 64, 1),
        ("conv2_3x3", 64, 192, 3),
    ]
    for number, *counts, _ in rows(TSN_BLOCKS):
        inputs, one, reduced, three, narrow, double, projected = map(int, counts)
        convolutions += [
            (f"inception_{number}_{name}", fed, given, side)
            for name, fed, given, side in (
                ("1x1", inputs, one, 1),
                ("3x3_reduce", inputs, reduced, 1),
                ("3x3", reduced, three, 3),
                ("double_3x3_reduce", inputs, narrow, 1),
                ("double_3x3_1", narrow, double, 3),
                ("double_3x3_2", double, double, 3),
                ("pool_proj", inputs, projected, 1),
            )
            if given
        ]
    shapes = {}
    for name, fed, given, side in convolutions:
        shapes[f"{trunk}{name}.weight"] = (given, fed, side, side)
        shapes[f"{trunk}{name}.bias"] = (given,)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{trunk}{name}_bn.{kind}"] = (given,)
    return shapes | {f"{head}.weight": (classes, 1024), f"{head}.bias": (classes,)}


def i3d_shapes(channels, classes):
    """Name -> shape of pytorch-i3d's InceptionI3d."""
    convolutions = [
        ("Conv3d_1a_7x7", channels, 64, 7),
        ("Conv3d_2b_1x1", 64, 64, 1),
        ("Conv3d_2c_3x3", 64, 192, 3),
    ]
    for number, *counts in rows(I3D_BLOCKS):
        inputs, b0, b1a, b1b, b2a, b2b, b3b = map(int, counts)
        convolutions += [
            (f"Mixed_{number}.{name}", fed, given, side)
            for name, fed, given, side in (
                ("b0", inputs, b0, 1),
                ("b1a", inputs, b1a, 1),
                ("b1b", b1a, b1b, 3),
                ("b2a", inputs, b2a, 1),
                ("b2b", b2a, b2b, 3),
                ("b3b", inputs, b3b, 1),
            )
        ]
    shapes = {}
    for name, fed, given, side in convolutions:
        shapes[f"{name}.conv3d.weight"] = (given, fed, side, side, side)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{kind}"] = (given,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    shapes["logits.conv3d.weight"] = (classes, 1024, 1, 1, 1)
    return shapes | {"logits.conv3d.bias": (classes,)}


def fill(shapes, seed=0):
    """Random tensors of these shapes, such that logits are of about 1."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = 0.5 + torch.rand(shape, generator=random)
        elif len(shape) > 1:
            deviation = math.sqrt(2 / math.prod(shape[1:]))
            if "conv1_7x7" in name:
                deviation /= 64  # of pixels in 0..255
            if shape[1] == 1024 and len(shape) != 4:
                deviation /= 16  # the last layer
            tensors[name] = deviation * torch.randn(shape, generator=random)
        else:
            tensors[name] = 0.1 * torch.randn(shape, generator=random)
    return tensors


def tsn_forward(state, x):
    """Logits of TSN's BN-Inception for its input, codes less their mean, (B, C, 224, 224)."""

    def unit(name, x, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)
        norm = [
            state[f"{name}_bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.relu(F.batch_norm(x, *norm, eps=1e-5))

    state = {name.removeprefix("base_model."): tensor for name, tensor in state.items()}
    x = F.max_pool2d(unit("conv1_7x7_s2", x, 2, 3), 3, 2, ceil_mode=True)
    x = unit("conv2_3x3", unit("conv2_3x3_reduce", x), 1, 1)
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for number, _, one, *_, pooling in rows(TSN_BLOCKS):
        name, stride = f"inception_{number}_", 1 if one != "0" else 2
        branches = [unit(f"{name}1x1", x)] if stride == 1 else []
        branches.append(unit(f"{name}3x3", unit(f"{name}3x3_reduce", x), stride, 1))
        double = unit(f"{name}double_3x3_1", unit(f"{name}double_3x3_reduce", x), 1, 1)
        branches.append(unit(f"{name}double_3x3_2", double, stride, 1))
        if stride == 2:
            branches.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        else:
            pool = F.avg_pool2d if pooling == "avg" else F.max_pool2d
            branches.append(unit(f"{name}pool_proj", pool(x, 3, 1, 1)))
        x = torch.cat(branches, 1)
    x = F.avg_pool2d(x, x.shape[2:]).flatten(1)  # 7x7 of 224 px
    return F.linear(x, state["new_fc.weight"], state["new_fc.bias"])


def i3d_forward(state, x):
    """Logits of I3D for its input in -1..1, (B, C, T, 224, 224), averaged over time."""

    def same(x, sides, strides):
        pads = []
        for size, side, stride in zip(x.shape[2:], sides, strides, strict=True):
            total = side - (size % stride or stride)
            pads = [max(total, 0) // 2, max(total, 0) - max(total, 0) // 2, *pads]
        return F.pad(x, pads)

    def unit(name, x, stride=1):
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(same(x, weight.shape[2:], [stride] * 3), weight, None, stride)
        norm = [
            state[f"{name}.bn.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.relu(F.batch_norm(x, *norm, eps=1e-3))

    def pool(x, sides, strides):
        return F.max_pool3d(same(x, sides, strides), sides, strides)

    x = pool(unit("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for number, *_ in rows(I3D_BLOCKS):
        if number == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if number == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        name = f"Mixed_{number}."
        branches = [unit(f"{name}b0", x)]
        branches += [unit(f"{name}{b}b", unit(f"{name}{b}a", x)) for b in ("b1", "b2")]
        branches.append(unit(f"{name}b3b", pool(x, (3, 3, 3), (1, 1, 1))))
        x = torch.cat(branches, 1)
    x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)  # 7x7 of 224 px
    logits = F.conv3d(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
    return logits.flatten(2).mean(2)
