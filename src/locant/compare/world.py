"""One process, or several under `torchrun`: the same data order, each example counted once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, nn


def in_bfloat16(device: str, asked: str | None) -> bool:
    """Whether products run in bfloat16: where it was asked for, and unasked on accelerators that have it."""
    if asked is not None:
        return asked == "bfloat16"
    kind = device.split(":")[0]
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)


def autocast(device: str, asked: str | None) -> torch.autocast:
    """The context that models run in. The weights stay in float32, and so does the loss."""
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=in_bfloat16(device, asked))


@dataclass(frozen=True)
class World:
    """The processes that train one model together."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @staticmethod
    def join(device: str) -> World:
        """The world that `torchrun` started, or this process alone."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return World(device=device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        return World(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, index: np.ndarray) -> np.ndarray:
        """This process's part of a batch: nearly equal runs, in order."""
        return np.array_split(index, self.size)[self.rank]

    def wrap(self, model: nn.Module, unused: bool = False) -> nn.Module:
        """For training together; `unused`: some parameters may play no part, as in models of the user's."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)

    def loss(self, losses: Tensor, whole: int) -> Tensor:
        """The mean over the whole batch from this part's losses: gradients are averaged over processes, so each
        part is weighted by its own size."""
        return losses.sum() * (self.size / whole)

    def total(self, values: Tensor) -> Tensor:
        """Summed over processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def level(self, model: nn.Module) -> None:
        """Give every process the buffers of the leading one: each counted BatchNorm's on its own part."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def agree(self, text: str) -> str:
        """What the leading process says."""
        said: Sequence[str | None] = [text]
        if self.size > 1:
            distributed.broadcast_object_list(said)  # type: ignore[arg-type]
        return str(said[0])
