"""Networks of the user's own, "made_nets:NAME", as they come and as they should not be."""

import os
import sys

import torch
from torch import nn


def plain(channels: int, classes: int) -> nn.Sequential:
    """Ends in the layer of the classes; learns batch statistics."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, 2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 10, 3, 2), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(10, affine=False)),
        nn.Linear(10, classes),
    )


class Block(nn.Module):
    """A class is called as a function is; its layer of the classes is within, and not the last."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.top = nn.ModuleDict({"classes": nn.Linear(8, classes, bias=False)})
        self.conv = nn.Conv2d(channels, 8, 5, 4)

    def forward(self, images):
        return self.top["classes"](torch.relu(self.conv(images)).mean((2, 3)))


def no_linear(channels, classes):
    """Without an nn.Linear: where its head is, is not known."""
    convolutions = nn.Conv2d(channels, 5, 5, 4), nn.ReLU(), nn.Conv2d(5, classes, 1)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def log_softmax(channels, classes):
    """Its last nn.Linear does not give the logits as they are."""
    return nn.Sequential(plain(channels, classes), nn.LogSoftmax(1))


class Peeks(nn.Module):
    """Uses its layer of the classes beside calling it, so it cannot be taken out."""

    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 8, 5, 4), nn.Linear(8, classes)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)) * self.fc.weight.shape[1])


def frozen_first(channels, classes):
    """Its first layer is not to learn, whatever the mode."""
    net = plain(channels, classes)
    net[0].requires_grad_(False)
    return net


class Tied(nn.Module):
    """One filter under two names."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, 2)
        self.second, self.third = nn.Conv2d(6, 6, 3, 2), nn.Conv2d(6, 6, 3, 1)
        self.third.weight = self.second.weight
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        maps = self.third(torch.relu(self.second(torch.relu(self.first(images)))))
        return self.fc(maps.mean((2, 3)))


def talks(channels, classes):
    """Prints where answers of commands are printed."""
    print("made")
    return plain(channels, classes)


# What is wrong with each of these, and what is said of it


def one_argument(channels):
    return plain(channels, 2)


def raises(channels, classes):
    raise RuntimeError("no weights here\nat all")


def leaves(channels, classes):
    sys.exit("bye")


def number(channels, classes):
    return 7


not_callable = 7


def fixed_classes(channels, classes):
    return plain(channels, 1000)


def rgb_only(channels, classes):
    return plain(3, classes)


class GivesTwo(Block):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Double(Block):
    def forward(self, images):
        return super().forward(images).double()


class Unused(Block):
    def __init__(self, channels, classes):
        super().__init__(channels, classes)
        self.aux = nn.Conv2d(8, classes, 1)


class Detached(Block):
    def forward(self, images):
        return super().forward(images).detach()


class Random(Block):
    def forward(self, images):
        return super().forward(nn.functional.dropout(images, 0.5))


class FixedSide(nn.Module):
    """Takes 32 px alone."""

    def __init__(self, channels, classes):
        super().__init__()
        self.fc = nn.Linear(channels * 32 * 32, classes)

    def forward(self, images):
        return self.fc(images.flatten(1))


class InPlace(Block):
    def forward(self, images):
        maps = torch.sigmoid(self.conv(images))
        logits = self.top["classes"](maps.mean((2, 3)))
        maps.mul_(2)
        return logits


class Extra(Block):
    def get_extra_state(self):
        return {"epoch": 1}

    def set_extra_state(self, state):
        pass


class Drawn(Block):
    """What is drawn is in no state."""

    def __init__(self, channels, classes):
        super().__init__(channels, classes)
        self.drawn = torch.randn(8)

    def forward(self, images):
        return self.top["classes"](self.conv(images).mean((2, 3)) * self.drawn)


COUNT = iter(range(10**6))


def counted(channels, classes):
    net = nn.Sequential()
    net.add_module(f"net{next(COUNT)}", plain(channels, classes))
    return net


def all_frozen(channels, classes):
    return plain(channels, classes).requires_grad_(False)


ONE = Block(3, 3)


def the_same_again(channels, classes):
    return ONE


def renamed(channels, classes):
    """The names of its parameters are others from run to run."""
    net = plain(channels, classes)
    name = os.environ.get("MADE_NET_NAME", "net")
    made = nn.Sequential()
    made.add_module(name, net)
    return made
