"""Attention inside windows, from the qkv product's output to the projection's input, against timm's Swin block.

timm's side is timm's own code, both paths, with rolling and partitioning in it; its two linear layers are taken out.
Ours reads the map as the qkv product leaves it. AIM's windows in time are measured against the usual regrouping.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from locant import Grid, RelativeTable, Windows, attention_packed
from locant.measuring.clock import Times
from locant.measuring.workload import Workload
from rows.mend import mend_torchvision
from rows.row import Row, Setting, exact, fresh, near, of_ratio
from rows.whole import eager

HEAD_DIM = 32


@dataclass(frozen=True)
class Stage:
    """One block of a Swin."""

    model: str
    batch: int
    side: int
    heads: int
    window: int
    shift: int
    number: int

    @property
    def last(self) -> bool:
        return self.side == self.window

    def __str__(self) -> str:
        shifted = ", shifted" if self.shift else ""
        return f"{self.model}, stage {self.number}: {self.side} × {self.side}, {self.heads} heads{shifted}"


def _stages(model: str, batch: int, sides: tuple[int, ...], heads: tuple[int, ...], window: int) -> list[Stage]:
    return [
        Stage(model, batch, side, count, window, shift, number)
        for number, (side, count) in enumerate(zip(sides, heads, strict=True), start=1)
        for shift in ((0,) if side == window else (0, window // 2))
    ]


STAGES = (
    *_stages("Swin-T, 224 px", 8, (56, 28, 14, 7), (3, 6, 12, 24), 7),
    *_stages("Swin, 384 px", 4, (96, 48, 24, 12), (4, 8, 16, 32), 12),
)


class _Given(torch.autograd.Function):
    """Stands in for the qkv product: hands over its output; backward, a gradient of the tokens that costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qkv: Tensor, dx: Tensor) -> Tensor:
        ctx.dx = dx
        return qkv.view_as(qkv)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return ctx.dx, gradient, None


class _Product(nn.Module):
    def __init__(self, qkv: Tensor, dx: Tensor) -> None:
        super().__init__()
        self.qkv, self.dx = qkv, dx

    def forward(self, x: Tensor) -> Tensor:
        return _Given.apply(x, self.qkv, self.dx)


class Contest:
    """The contenders on one stage."""

    def __init__(self, stage: Stage) -> None:
        mend_torchvision()
        from timm.models.swin_transformer import SwinTransformerBlock, window_partition

        fresh()
        side, window, shift, dim = stage.side, stage.window, stage.shift, stage.heads * HEAD_DIM
        self.grid, self.mask = Grid(side, side), Windows((window, window), (shift, shift))
        self.position = RelativeTable(Grid(window, window), stage.heads, init_std=0.5)
        self.qkv = torch.randn(stage.batch, side, side, 3, stage.heads, HEAD_DIM, requires_grad=True)
        self.dout = torch.randn(stage.batch, side, side, dim)
        self.block = SwinTransformerBlock(
            dim, (side, side), num_heads=stage.heads, window_size=window, shift_size=shift
        ).eval()
        rolled = self.qkv.detach().flatten(3).roll((-shift, -shift), (1, 2))
        rows = window_partition(rolled, (window, window)).flatten(1, 2).contiguous()
        self.rows, self.x = rows.requires_grad_(), torch.randn(stage.batch, side, side, dim, requires_grad=True)
        attend = self.block.attn
        attend.qkv, attend.proj = _Product(self.rows, torch.zeros(*rows.shape[:2], dim)), nn.Identity()
        with torch.no_grad():
            attend.relative_position_bias_table.copy_(self.position.table.flatten(1).T)

    def workload(self) -> Workload:
        """The same problem, seen by whoever checks exactness."""
        q, k, v = (x.detach().requires_grad_() for x in self.qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0))
        dout = self.dout.flatten(1, 2).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        return Workload(q, k, v, dout, self.grid, self.grid, self.position, self.mask)

    def ours(self) -> Tensor:
        return attention_packed(self.qkv, position=self.position, mask=self.mask, kernel="native")

    def ours_trained(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.ours(), (self.qkv, self.position.table), self.dout)

    def theirs(self, fused: bool) -> Tensor:
        self.block.attn.fused_attn = fused
        return self.block._attn(self.x)

    def theirs_trained(self, fused: bool) -> tuple[Tensor, ...]:
        table = self.block.attn.relative_position_bias_table
        return torch.autograd.grad(self.theirs(fused), (self.x, self.rows, table), self.dout)

    def equal(self, *, train: bool) -> None:
        """Ours against float64, and all against each other, before a time is taken."""
        exact(self.workload(), train=train)
        with torch.no_grad():
            for fused in (False, True):
                near("windows", self.theirs(fused), self.ours())
        if train:
            _, dtable = self.ours_trained()
            for fused in (False, True):
                *_, theirs = self.theirs_trained(fused)
                near("the table's gradient", theirs.T.reshape(dtable.shape), dtable)

    def times(self, setting: Setting, *, train: bool) -> Times:
        if train:
            return setting.times({
                "ours": self.ours_trained,
                "timm default": lambda: self.theirs_trained(False),
                "timm fused": lambda: self.theirs_trained(True),
            })  # fmt: skip
        with torch.no_grad():
            return setting.times({
                "ours": self.ours, "timm default": lambda: self.theirs(False), "timm fused": lambda: self.theirs(True)
            })  # fmt: skip


def forward(setting: Setting) -> Iterator[Row]:
    """Denormal numbers flushed: timm at its best."""
    found = []
    for stage in STAGES:
        contest = Contest(stage)
        contest.equal(train=False)
        times = contest.times(setting, train=False)
        peer = times.fastest("timm default", "timm fused")
        ratio = times.ratio(peer, "ours")
        found.append(ratio.median)
        target = 1.6 if stage.last else 1.9
        yield of_ratio("windows", f"forward, {stage}", f"{peer}, flushed", ratio, times, target=target)
    low, middle, high = statistics.quantiles(found, n=4)
    yield Row(
        "windows", "forward, median of all stages above", "the faster of timm's paths, flushed",
        middle, low, high, len(found), target=2.8,
    )  # fmt: skip


def default(setting: Setting) -> Iterator[Row]:
    """Shifted blocks as users run them: denormal numbers as torch leaves them."""
    for stage in STAGES:
        if not stage.shift:
            continue
        contest = Contest(stage)
        contest.equal(train=False)
        times = contest.times(setting, train=False)
        ratio = times.ratio("timm default", "ours")
        yield of_ratio("windows-default", f"forward, {stage}", "timm default as it comes", ratio, times, target=4.0)


def train(setting: Setting) -> Iterator[Row]:
    for stage in STAGES:
        contest = Contest(stage)
        contest.equal(train=True)
        times = contest.times(setting, train=True)
        peer = times.fastest("timm default", "timm fused")
        target = 2.0 if stage.number == 1 else 1.25
        ratio = times.ratio(peer, "ours")
        yield of_ratio("windows-train", f"forward + backward, {stage}", f"{peer}, flushed", ratio, times, target=target)


def temporal(setting: Setting) -> Iterator[Row]:
    """AIM's attention over time: each place in all frames, against regrouping '(b t) n d -> (b n) t d' and back."""
    fresh()
    batch, frames, side, heads, head_dim = 2, 8, 14, 12, 64
    grid, mask = Grid(frames, side, side), Windows((frames, 1, 1))
    position = RelativeTable(Grid(frames, 1, 1), heads, init_std=0.5)
    qkv = torch.randn(batch, *grid.shape, 3, heads, head_dim)
    offset = torch.arange(frames)[:, None] - torch.arange(frames) + frames - 1
    bias = position.table.detach().flatten(1)[:, offset][None].contiguous()

    def regrouped(attend: Callable[..., Tensor]) -> Tensor:
        rows = qkv.flatten(2, 3).transpose(1, 2).flatten(0, 1)  # [batch · places, frames, 3, heads, head_dim]
        out = attend(*rows.permute(2, 0, 3, 1, 4).unbind(0), bias).transpose(1, 2).flatten(2)
        return out.unflatten(0, (batch, -1)).transpose(1, 2).unflatten(2, (side, side))

    def ours() -> Tensor:
        return attention_packed(qkv, position=position, mask=mask, kernel="native")

    q, k, v = (x.requires_grad_() for x in qkv.flatten(1, 3).permute(2, 0, 3, 1, 4).unbind(0))
    exact(Workload(q, k, v, torch.ones_like(q), grid, grid, position, mask), train=False)
    with torch.no_grad():
        near("windows in time", regrouped(eager), ours())
        times = setting.times({
            "ours": ours, "eager": lambda: regrouped(eager), "SDPA": lambda: regrouped(scaled_dot_product_attention)
        })  # fmt: skip
    peer = times.fastest("eager", "SDPA")
    what = f"forward, AIM's windows in time, {frames} × {side} × {side}, {heads} heads of {head_dim}"
    yield of_ratio("temporal", what, f"{peer}, regrouped", times.ratio(peer, "ours"), times)
