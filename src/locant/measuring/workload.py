"""One attention problem with its tensors: what a kernel is run on, forward and with every gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from locant.attend import attention, plan
from locant.grid import Grid
from locant.masks import Mask
from locant.planner import Plan
from locant.positions.position import Position


@dataclass(frozen=True)
class Workload:
    """Projected heads on a grid, a position, a mask. The gradient `dout` of the output is drawn with them."""

    q: Float[Tensor, "batch heads queries head_dim"]
    k: Float[Tensor, "batch kv_heads keys head_dim"]
    v: Float[Tensor, "batch kv_heads keys value_dim"]
    dout: Float[Tensor, "batch heads queries value_dim"]
    grid: Grid
    key_grid: Grid
    position: Position | None = None
    mask: Mask | None = None

    @staticmethod
    def draw(
        batch: int, heads: int, head_dim: int, grid: Grid, *, key_grid: Grid | None = None, kv_heads: int | None = None,
        value_dim: int | None = None, position: Position | None = None, mask: Mask | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Workload:  # fmt: skip
        """Numbers from torch's generator. The heads lie in memory as a projection leaves them: token by token."""
        key_grid = grid if key_grid is None else key_grid
        kv_heads = heads if kv_heads is None else kv_heads
        value_dim = head_dim if value_dim is None else value_dim

        def rows(count: int, tokens: int, channels: int) -> Tensor:
            return torch.randn(batch, tokens, count, channels, dtype=dtype).transpose(1, 2)

        q, k, v = (
            rows(*sizes).requires_grad_()
            for sizes in (
                (heads, grid.tokens, head_dim), (kv_heads, key_grid.tokens, head_dim),
                (kv_heads, key_grid.tokens, value_dim),
            )
        )  # fmt: skip
        return Workload(q, k, v, rows(heads, grid.tokens, value_dim), grid, key_grid, position, mask)

    def to(self, device: str) -> Workload:
        """The same numbers on a device, as leaves of their own."""
        if device == "cpu":
            return self
        q, k, v = (x.detach().to(device).requires_grad_() for x in (self.q, self.k, self.v))
        return replace(
            self, q=q, k=k, v=v, dout=self.dout.to(device),
            position=None if self.position is None else self.position.to(device),
            mask=None if self.mask is None else self.mask.to(torch.device(device)),
        )  # fmt: skip

    @property
    def learned(self) -> list[Tensor]:
        """What the position scheme learns."""
        return [] if self.position is None else [p for p in self.position.parameters() if p.requires_grad]

    @property
    def pairs(self) -> int:
        """Scores of the dense definition."""
        return self.q.shape[0] * self.q.shape[1] * self.grid.tokens * self.key_grid.tokens

    def forward(self, kernel: str = "auto") -> Tensor:
        with torch.no_grad():
            return self._attend(kernel)

    def gradients(self, kernel: str = "auto") -> tuple[Tensor, ...]:
        """Forward and backward: of q, k, v, and all that the position learns."""
        return torch.autograd.grad(self._attend(kernel), [self.q, self.k, self.v, *self.learned], self.dout)

    def plan(self, *, train: bool) -> Plan:
        """What `kernel="auto"` would choose."""
        with torch.set_grad_enabled(train):
            return plan(
                self.q, self.k, self.v, grid=self.grid, key_grid=self.key_grid, position=self.position, mask=self.mask
            )

    def _attend(self, kernel: str) -> Tensor:
        return attention(
            self.q, self.k, self.v, grid=self.grid, key_grid=self.key_grid, position=self.position, mask=self.mask,
            kernel=kernel,
        )  # fmt: skip
