"""One training, step by step: its network, optimizer and data, and how far it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flowkit.data.datasets import TestClips
from flowkit.data.origins import Origin
from flowkit.data.plane_batches import PlaneBatch, stack_planes
from flowkit.data.stacks import StackForm
from flowkit.documents import differences
from flowkit.errors import (
    CheckpointError,
    FlowkitError,
    RecordError,
    TrainingError,
    UsageError,
)
from flowkit.networks.checkpoints import Checkpoint, put_weights, read_checkpoint, read_tensors
from flowkit.networks.streams import BATCH_NORMS
from flowkit.networks.towers import Net, TowersNet
from flowkit.training.descent import Descent, Group
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Job, Machine
from flowkit.training.loading import Given, Loader, PassesAhead, PassLoader, affordable_workers
from flowkit.training.micro_batch import fitting_micro_batch
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import MicroBatches, StepClips, task_counts
from flowkit.training.saving import CheckpointThread

log = logging.getLogger(__name__)

EVAL_CLIPS = 32  # held-out clips of a pass
HEADS = ("heads.", "hidden.")  # names of parameters that take the whole learning rate
OTHER_TASK = -100  # label of a clip for the heads of other tasks: cross_entropy leaves it out


class ClipLoaders:
    """What loads the clips of a training, `passes`, and of its held-out part, if there is one.

    All loader processes are started here, before a GPU is opened and while there is no thread.
    """

    def __init__(self, job: Job, ranks: Ranks, machine: Machine, clips: StepClips) -> None:
        self.clips = clips
        self.heldout_clips: TestClips | None = None
        self.heldout: Loader | None = None
        workers, samples = machine.workers, _share(job, ranks)
        sample_bytes = 4 * sum(map(math.prod, job.shapes))  # of floats, in shared memory
        if job.tasks[0].split.heldout:
            self.heldout_clips = job.clips_of("heldout", moments=job.eval_moments)
            affordable = affordable_workers(workers, EVAL_CLIPS * sample_bytes)
            self.heldout = Loader(self.heldout_clips, affordable)
        if not clips.as_planes:  # which have memory of their own
            most = min(samples, (machine.micro_batch or samples) * job.recipe.segments)
            workers = affordable_workers(workers, most * sample_bytes)
        self.passes = PassLoader(clips, samples, ranks.device, workers)

    def close(self) -> None:
        """End the processes."""
        self.passes.close()
        if self.heldout is not None:
            self.heldout.close()


class Training:
    """A training that is ready to take steps, of the parts that `prepare` makes for a job.

    `net` is on the device of `ranks` and its parameters are those of `descent`; `micro_batch` is
    the most clips of a pass. `step` steps are taken already, and `progress` is what a checkpoint
    tells of them. `flow` is what all records were made with, `trained_on` what the weights see.
    """

    def __init__(
        self,
        job: Job,
        ranks: Ranks,
        machine: Machine,
        *,
        loaders: ClipLoaders,
        net: Net,
        descent: Descent,
        micro_batch: int,
        flow: dict[str, Any] | None,
        trained_on: Origin,
        step: int = 0,
        progress: dict[str, Any] | None = None,
    ) -> None:
        self.job, self.ranks, self.machine = job, ranks, machine
        self.loaders, self.clips, self.heldout = loaders, loaders.clips, loaders.heldout_clips
        self.net, self.descent = net, descent
        self.flow, self.trained_on = flow, trained_on
        self.step, self.progress = step, progress or {}
        self.micro_batch = micro_batch
        self.saving = CheckpointThread()
        recipe = job.recipe
        self.batches = MicroBatches(
            step,
            recipe.steps,
            recipe.batch_size,
            max(1, micro_batch // recipe.segments),
            ranks.rank,
            ranks.size,
            segments=recipe.segments,
        )
        self._choose_what_learns()

    @property
    def rate(self) -> float:
        """The learning rate of the heads at the next step."""
        return self.job.recipe.rate(self.step, self.progress.get("drops", 0))

    @property
    def passes(self) -> int:
        """Forward and backward passes of a step, on each process."""
        return self.batches.passes(0)

    @contextmanager
    def loader(self) -> Iterator[Iterator[Given]]:
        """What is given to all passes of all steps to come, loaded until the block ends."""
        with self.loaders.passes.reading(self.batches) as batches:
            passes, device = map(self._to_device, batches), self.ranks.device
            yield PassesAhead(passes, device) if device.type == "cuda" else passes

    def close(self) -> None:
        """End the loader processes."""
        self.loaders.close()

    def take_step(self, batches: Iterator[Given]) -> tuple[list[float], list[int]]:
        """One update; the mean loss and the number of right answers of each task."""
        recipe, ranks, tasks = self.job.recipe, self.ranks, self.net.tasks
        self._choose_what_learns()
        torch.manual_seed(_seed(self.job.seed, self.step, ranks.rank))
        counts = task_counts(self.step, recipe.batch_size, len(tasks))
        self.descent.clear()
        told = torch.zeros(2, len(tasks), dtype=torch.float64, device=ranks.device)
        passes = self.batches.passes(self.step)
        for number in range(passes):
            told += self._take_pass(_next_pass(batches), counts, is_last=number == passes - 1)
            if isinstance(batches, PassesAhead):
                batches.fetch()  # while the device computes what it was given
        sums_told, right = ranks.sum(told).tolist()
        losses = [s / n for s, n in zip(sums_told, counts, strict=True)]
        if not math.isfinite(sum(losses)):
            raise TrainingError(
                f"step {self.step}: the loss is {sum(losses)}; nothing was updated, the last "
                f"checkpoint stays: lower the learning rate (--lr, {self.rate:g} now) "
                "or limit the gradient (--clip-norm)"
            )
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip_norm)
        self.descent.step(self.rate)
        self.step += 1
        return losses, [int(n) for n in right]

    def _take_pass(self, given: Given, counts: list[int], *, is_last: bool) -> torch.Tensor:
        """Add the gradients of some clips of a step; the last of its passes shares them all.

        The sum of the losses and the number of right answers of each task, float64 (2, T); `counts`
        are the tasks' videos in the whole step.
        """
        inputs, labels = given
        is_shared = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if is_shared and not is_last else nullcontext():  # type: ignore[operator]
            with self._autocast():
                logits = self.model(*inputs)
            segments = self.job.recipe.segments
            # Mean over the segments of a video
            logits = logits.float().unflatten(0, (-1, segments)).mean(1)
            parts = self.net.split_logits(logits).values()
            outputs = self.net.split_outputs(logits).values()  # of a task, one for each loss
            sums = [
                torch.stack(
                    [
                        cross_entropy(one, own, ignore_index=OTHER_TASK, reduction="sum")
                        for one in ones
                    ]
                ).sum()
                for ones, own in zip(outputs, labels, strict=True)
            ]
            loss = torch.stack([s / n for s, n in zip(sums, counts, strict=True)]).sum()
            (loss * self.ranks.size).backward()  # processes are averaged
        right = [(part.argmax(1) == own).sum() for part, own in zip(parts, labels, strict=True)]
        return torch.stack([torch.stack(sums).detach().double(), torch.stack(right).double()])

    @torch.no_grad()
    def ask_heldout(self, is_stopped: Callable[[], object]) -> tuple[float, float] | None:
        """Mean loss and accuracy over the held-out videos of the first task.

        A video's scores are the mean softmax of its clips. None where `is_stopped` says so
        meanwhile (which a training of several processes does not ask).
        """
        assert self.heldout is not None and self.loaders.heldout is not None
        clips, ranks = self.heldout, self.ranks
        own = range(ranks.rank, len(clips), ranks.size)
        order = [own[start : start + EVAL_CLIPS] for start in range(0, len(own), EVAL_CLIPS)]
        classes = len(self.job.tasks[0].classes)
        sums = torch.zeros(len(clips.videos), classes, dtype=torch.float64, device=ranks.device)
        self._average_statistics()
        self.net.eval()
        with self.loaders.heldout.reading(map(list, order)) as batches:
            for batch in batches:
                if ranks.size == 1 and is_stopped():
                    self.net.train()
                    return None
                views = (batch[stream].flatten(0, 1) for stream in self.job.inputs)  # one per clip
                with self._autocast():
                    logits = self.net(*map(self._place, views))
                first = self.net.split_logits(logits.float())[self.net.tasks[0]]
                sums.index_add_(0, batch["video"].to(ranks.device), first.softmax(1).double())
        self.net.train()
        scores = ranks.sum(sums) / clips.moments
        labels = torch.tensor(clips.labels, device=ranks.device)
        right = scores.gather(1, labels[:, None]).clamp_min(1e-12)
        return -right.log().mean().item(), (scores.argmax(1) == labels).double().mean().item()

    def save(self, folder: Path, *names: str) -> None:
        """Begin to write a checkpoint of this step into `folder` under `names`.

        It is one of this moment, whatever steps follow; `finish_saving` waits for it.
        """
        self._average_statistics()
        if self.ranks.is_first:
            job = self.job
            checkpoint = Checkpoint(
                step=self.step,
                net=job.net,
                inputs=job.inputs,
                dropout=job.recipe.dropout,
                tasks={task.name: task.classes for task in job.tasks},
                short_side=job.augmentation.short_side,
                crop=job.augmentation.crop,
                flow=self.flow,
                training=job.describe() | {"places": job.places()},
                progress=dict(self.progress),
                trained_on=self.trained_on,
                towers=job.towers,
                hidden=job.hidden,
            )
            self.saving.write(folder, names, checkpoint, self.net.state_dict(), self._momentum())

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is on the disk, and until all processes are here."""
        self.saving.finish()
        self.ranks.wait()

    def _average_statistics(self) -> None:
        """Give all processes the mean of their running batch statistics, where these are learned.

        Each process sees its own passes, as one process does in turn. Running statistics are linear
        in those of the passes, so it does not matter how often this is done.
        """
        learned = [
            module
            for module in self.net.modules()
            if isinstance(module, BATCH_NORMS) and module.training and module.track_running_stats
        ]
        for module in learned:
            assert module.running_mean is not None and module.running_var is not None
            self.ranks.average([module.running_mean, module.running_var])

    def _choose_what_learns(self) -> None:
        """Let learn what the recipe says of this step; on the first step and at a new phase."""
        top_blocks = self.job.recipe.top_blocks_at(self.step)
        if getattr(self, "top_blocks", "none yet") == top_blocks:
            return
        self.top_blocks = top_blocks
        self.net.train_top(top_blocks)
        model: nn.Module = torch.compile(self.net) if self.machine.compile else self.net  # type: ignore[assignment]
        if self.ranks.size > 1:
            devices = [self.ranks.device] if self.ranks.device.type == "cuda" else None
            model = DistributedDataParallel(
                model, devices, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self.model = model

    def _momentum(self) -> dict[str, torch.Tensor]:
        momentum = self.descent.momentum
        return {n: momentum[one] for n, one in self.net.named_parameters() if one in momentum}

    def _to_device(self, batch: dict[str, Any]) -> Given:
        """What a pass is given of a loader's batch; nothing here waits for a GPU."""
        segments, device = self.job.recipe.segments, self.ranks.device
        task, label = (
            batch[name][::segments].to(device, non_blocking=True) for name in ("task", "label")
        )
        places = range(len(self.net.tasks))
        labels = [torch.where(task == place, label, OTHER_TASK) for place in places]
        size = (self.job.augmentation.crop, self.job.augmentation.crop)
        inputs = []
        for stream, form in self.job.inputs.items():
            seen = batch[stream]
            if isinstance(form, StackForm) and isinstance(seen, PlaneBatch):
                seen = stack_planes(seen, form=form, size=size, device=device)
                if self.job.towers is not None:
                    seen = seen.unflatten(0, (-1, self.job.towers.frames))
            inputs.append(self._place(seen))
        return Given(inputs, labels)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        is_last = self.machine.channels_last and tensor.ndim == 4  # towers take (B, T, C, h, w)
        layout = torch.channels_last if is_last else torch.contiguous_format
        tensor = tensor.to(self.ranks.device, non_blocking=True)
        return tensor.contiguous(memory_format=layout)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.machine.bf16)


def prepare(job: Job, ranks: Ranks, machine: Machine, *, resume: Path | None = None) -> Training:
    """The training of a job, ready to take steps; reads every record's sidecar.

    `resume` is a checkpoint to go on from, ``last.json`` of the same job or of one of fewer steps.
    UsageError where it was begun otherwise, or where not one clip fits into memory.
    """
    checkpoint = None if resume is None else _check_resumed(resume, job)
    clips = StepClips(
        job.tasks,
        job.inputs,
        augmentation=job.augmentation,
        seed=job.seed,
        segments=job.recipe.segments,
        draw=job.recipe.draw,
        several=job.several,
        missing=job.missing,
    )
    if ranks.device.type == "cuda":
        clips.send_planes()  # planes go to the device, which makes the stacks
    flow = clips.find_flow() if "temporal" in job.inputs else None
    if job.towers is not None:
        _check_flow(flow, job.sources[1])
    loaders = ClipLoaders(job, ranks, machine, clips)
    try:
        return _prepare(job, ranks, machine, loaders, flow, resume, checkpoint)
    except BaseException:
        loaders.close()
        raise


def _prepare(
    job: Job,
    ranks: Ranks,
    machine: Machine,
    loaders: ClipLoaders,
    flow: dict[str, Any] | None,
    resume: Path | None,
    checkpoint: Checkpoint | None,
) -> Training:
    """What of `prepare` is computed on the device."""
    if ranks.device.type == "cuda":
        log.info("%s is an %s", ranks.device, torch.cuda.get_device_name(ranks.device))
    net = job.build() if checkpoint is None else checkpoint.build(job.own)
    if resume is not None:
        put_weights(net, resume)
    net.frozen_statistics = job.recipe.frozen_statistics
    if isinstance(net, TowersNet):
        net.checkpointing = machine.checkpointing
    net.train().to(ranks.device)
    if machine.channels_last:
        for parameter in net.parameters():
            if parameter.ndim == 4:  # filters over time have five dimensions
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    descent = _make_descent(net, job.recipe)
    if resume is not None:
        _load_momentum(net, descent, read_tensors(resume, "state"))
    known = None if checkpoint is None else checkpoint.trained_on
    training = Training(
        job,
        ranks,
        machine,
        loaders=loaders,
        net=net,
        descent=descent,
        micro_batch=_fit_micro_batch(job, ranks, machine, net),
        flow=flow,
        trained_on=job.origin() if known is None else known,
        step=0 if checkpoint is None else checkpoint.step,
        progress=None if checkpoint is None else checkpoint.progress,
    )
    if ranks.is_first and (training.passes > 1 or ranks.size > 1):
        log.info(
            "a batch of %d is made up on %d processes in %d passes of at most %d clips",
            *(job.recipe.batch_size, ranks.size, training.passes, training.micro_batch),
        )
    return training


def _make_descent(net: Net, recipe: Recipe) -> Descent:
    """Of the trunk and the heads, and of the biases of both if the recipe treats them otherwise."""
    has_own_biases = recipe.bias_rate != 1 or not recipe.bias_decay
    groups = []
    for share, is_head in ((recipe.trunk_rate, False), (1.0, True)):
        named = [(n, p) for n, p in net.named_parameters() if n.startswith(HEADS) == is_head]
        biases = [one for name, one in named if has_own_biases and name.endswith("bias")]
        apart = {id(one) for one in biases}
        others = [one for _, one in named if id(one) not in apart]
        groups.append(Group(others, share, recipe.weight_decay))
        if biases:
            decay = recipe.weight_decay if recipe.bias_decay else 0.0
            groups.append(Group(biases, share * recipe.bias_rate, decay))
    return Descent(groups, recipe.momentum, squares=recipe.optimizer == "rmsprop")


def _load_momentum(net: Net, descent: Descent, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(net.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"momentum of {name}: the network has no such parameter")
        own = torch.empty_like(parameters[name]).copy_(tensor)
        descent.momentum[parameters[name]] = own


def _fit_micro_batch(job: Job, ranks: Ranks, machine: Machine, net: Net) -> int:
    """The most clips of a pass, in the phase in which the most learns: the last one."""
    recipe = job.recipe
    if recipe.batch_size < ranks.size:
        raise UsageError(
            f"expected a batch of at least one clip for each of {ranks.size} processes, "
            f"got {recipe.batch_size}"
        )
    share = _share(job, ranks)
    if machine.micro_batch is not None:
        return min(share, machine.micro_batch)
    net.train_top(recipe.top_blocks_at(recipe.steps - 1))
    fits = fitting_micro_batch(net, job.shapes, share, ranks.device, bf16=machine.bf16)
    return int(-ranks.most(-fits))  # the least of all


def _share(job: Job, ranks: Ranks) -> int:
    """The most samples of a step that one process takes."""
    return -(-job.recipe.batch_size // ranks.size) * job.recipe.segments


def _next_pass(batches: Iterator[Given]) -> Given:
    """The next pass; an error of flowkit in a worker as it was there, without its traceback."""
    try:
        return next(batches)
    except FlowkitError as error:
        kind = type(error)
        text = str(error).strip().splitlines()[-1]
        raise kind(text.removeprefix(f"{kind.__module__}.{kind.__name__}: ")) from error


def _check_flow(flow: dict[str, Any] | None, temporal: str) -> None:
    """RecordError where records were made otherwise than those of the temporal tower."""
    known = read_checkpoint(temporal).flow
    if known is not None and (found := differences(flow or {}, known)):
        raise RecordError(
            f"the records' flow is not what {temporal} was trained on: "
            + "; ".join(text.replace("asked for", "in training") for text in found)
        )


def _check_resumed(path: Path, job: Job) -> Checkpoint:
    checkpoint = read_checkpoint(path)
    steps = checkpoint.training.get("recipe", {}).get("steps", job.recipe.steps)
    if job.recipe.steps > steps:  # it is prolonged
        job = replace(job, recipe=replace(job.recipe, steps=steps))
    if found := job.differences(checkpoint):
        raise UsageError(
            f"{path}: was begun otherwise: {'; '.join(found)}: "
            "give the same options, or --overwrite"
        )
    return checkpoint


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
