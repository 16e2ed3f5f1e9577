"""One attention problem: what is static about it (a planner's key), its tensors (a kernel's input)."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from locant.forms import AxialValues, AxialVectors, OffsetTable, OffsetValues, Separable, SeparableValues
from locant.grid import Grid
from locant.masks import Mask, Padding, Structure

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Problem:
    """All that choosing a kernel may depend on: shapes, dtypes and descriptions, never values."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    grid: Grid
    key_grid: Grid
    dtype: str = "float32"
    device: str = "cpu"
    bias: OffsetTable | None = None
    content: AxialVectors | None = None
    bias_grad: bool = False  # of the table, or of content's terms
    gate: Separable | None = None
    mask: Structure = field(default_factory=Structure)  # a default object could not be rebuilt by torch.compile
    dropout: bool = False
    lse: bool = False
    rotated: bool = False  # q and k are turned before a kernel meets them
    exporting: bool = False
    transformed: bool = False  # by torch.func
    chip: str = ""  # of a GPU: "sm90", "gfx942"

    @property
    def queries(self) -> int:
        return self.grid.tokens

    @property
    def keys(self) -> int:
        return self.key_grid.tokens

    @property
    def terms(self) -> int:
        """How many numbers the content's terms are, before they are read at offsets."""
        return 0 if self.content is None else self.batch * self.heads * self.queries * sum(self.content.sizes)

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return BYTES[self.dtype]

    @property
    def stream(self) -> int:
        """Bytes of q, k, v and the output, each once: what any kernel has to move."""
        rows = self.heads * self.queries * (self.head_dim + self.value_dim)
        rows += self.kv_heads * self.keys * (self.head_dim + self.value_dim)
        return self.batch * rows * self.width


@dataclass(frozen=True)
class Inputs:
    """The tensors of a problem. `mask` is bound: checked and laid out by token.

    q and k are rotated already, and q holds what a content scheme adds to it for the product with k.
    """

    q: Float[Tensor, "batch heads queries head_dim"]
    k: Float[Tensor, "batch kv_heads keys head_dim"]
    v: Float[Tensor, "batch kv_heads keys value_dim"]
    scale: float
    bias: OffsetValues | None = None
    content: AxialValues | None = None
    gate: SeparableValues | None = None
    mask: Mask | None = None
    dropout: float = 0.0
    qkv: Float[Tensor, "batch *grid 3 heads head_dim"] | None = None  # what q, k and v are views of, if they are

    def grouped(self) -> tuple[Tensor, Tensor]:
        """k and v as torch's own operators need them: every query head's own, and 0 where `Padding` hides them.

        0 · NaN is NaN: what nobody may see is made 0, so that it can't leak.
        """
        k, v = self.k, self.v
        for padding in () if self.mask is None else self.mask.members():
            if isinstance(padding, Padding):
                hidden = ~padding.valid[:, None, :, None]
                k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        groups = self.q.shape[1] // max(k.shape[1], 1)
        return (k, v) if groups == 1 else (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
