"""The verb: a call is read once (locant.call), a kernel is chosen (locant.planner) and run."""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from locant import hooks, planner
from locant.call import Call, Positions, describe, materialise
from locant.checks import check_tensor
from locant.grid import Grid, check_grid
from locant.kernels import reference
from locant.kernels.kernel import Output
from locant.masks import Mask


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = ..., key_grid: Grid | None = ...,
    position: Positions = ..., mask: Mask | None = ..., scale: float | Tensor | None = ..., dropout: float = ...,
    return_lse: Literal[False] = ..., kernel: str = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = ..., key_grid: Grid | None = ...,
    position: Positions = ..., mask: Mask | None = ..., scale: float | Tensor | None = ..., dropout: float = ...,
    return_lse: Literal[True], kernel: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, grid: Grid | None = ..., key_grid: Grid | None = ...,
    position: Positions = ..., mask: Mask | None = ..., scale: float | Tensor | None = ..., dropout: float = ...,
    return_lse: bool = ..., kernel: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys value_dim"],
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | Tensor | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    kernel: str = "auto",
) -> Float[Tensor, "batch heads queries value_dim"] | tuple[Tensor, Float[Tensor, "batch heads queries"]]:
    """softmax_keys(scale · q kᵀ + bias) v, exactly, by the cheapest kernel that can.

    Args:
        q, k, v: projected heads; kv_heads divides heads (grouped-query attention repeats them).
        grid: where the queries are. Default `Grid(queries)`.
        key_grid: where the keys are. Default `grid`; needed when they are as many as the queries are not.
        position: how position acts: a bias, a rotation, content or a gate, or several of them in a tuple, a list or
            an `nn.ModuleList`, which a module of yours registers, trains, moves and saves. Biases add up; the other
            members must act through different entrances. Embeddings act before projection: see `locant.nn`.
        mask: who may attend. A row that may attend to nothing gives zeros and finite gradients.
        scale: of the content logits, default head_dim ** -0.5. Biases are added after it, unscaled. A tensor, such as
            a learned one, is one number or `[heads, 1, 1]`, and gets its gradient.
        dropout: probability on the weights; drawn from torch's default generator. Set it to 0 in evaluation.
        return_lse: also return log Σ_keys exp(logits), -inf on rows that see nothing.
        kernel: "auto", or a kernel by name, which runs or raises its reason.

    Raises:
        ValueError: sizes, dtypes, devices, grids, masks or positions that don't fit; a kernel that refuses.

    A NaN in keys or values that `Padding` hides does not leak; under other masks it may spread within its sample.
    """
    call = describe(q, k, v, grid, key_grid, position, mask, scale, dropout, return_lse, kernel)
    out, lse = hooks.through(call, _run)
    return out if lse is None else (out, lse)


def attention_packed(
    qkv: Float[Tensor, "batch *grid 3 heads head_dim"],
    *,
    grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | Tensor | None = None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Float[Tensor, "batch *grid channels"]:
    """`attention` straight from a qkv projection, laid out `[batch, *grid, 3, heads, head_dim]`.

    With a prefix, or by choice, the tokens lie on one axis: `[batch, tokens, 3, heads, head_dim]`. The result has the
    same leading axes and `heads · head_dim` channels, ready for the output projection.
    """
    check_tensor("attention_packed", "qkv", qkv, "a tensor [batch, *grid, 3, heads, head_dim]")
    check_grid("attention_packed", "grid", grid, needed=False)
    if qkv.ndim < 5 or qkv.shape[-3] != 3:
        raise ValueError(
            "attention_packed needs qkv of shape [batch, *grid, 3, heads, head_dim]; "
            f"got {list(qkv.shape)}. Reshape the projection: qkv(x).unflatten(-1, (3, heads, head_dim))."
        )
    places = tuple(qkv.shape[1:-3])
    grid = Grid(*places) if grid is None else grid
    if places not in ((grid.tokens,), grid.shape) or (
        places == grid.shape and places != (grid.tokens,) and grid.prefix
    ):
        raise ValueError(
            f"attention_packed on {grid} needs qkv of shape [batch, {grid.tokens}, 3, heads, head_dim] or, without a "
            f"prefix, [batch, *{grid.shape}, 3, heads, head_dim]; got {list(qkv.shape)}. Pass the grid of these tokens."
        )
    q, k, v = qkv.flatten(1, -4).permute(2, 0, 3, 1, 4).unbind(0)
    call = describe(q, k, v, grid, None, position, mask, scale, dropout, False, kernel, qkv)
    out, _ = hooks.through(call, _run)
    return out.transpose(1, 2).flatten(2).unflatten(1, places)


def weights(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | Tensor | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The probabilities that `attention` would use, before dropout. Dense by definition: O(queries × keys)."""
    call = describe(q, k, k, grid, key_grid, position, mask, scale, 0.0, False)
    return reference.weights(call.problem, materialise(call))


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid | None = None,
    key_grid: Grid | None = None,
    position: Positions = None,
    mask: Mask | None = None,
    scale: float | Tensor | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    kernel: str = "auto",
) -> planner.Plan:
    """What `attention` would do with these arguments, and why: reads shapes and descriptions, never values.

    q, k and v may be on the meta device. `print(plan(...))` shows the kernel, its cost, and a sentence for every
    kernel that was passed over.
    """
    call = describe(q, k, v, grid, key_grid, position, mask, scale, dropout, return_lse, kernel)
    return planner.plan(call.problem, kernel)


def _run(call: Call) -> Output:
    chosen = planner.named(planner.cached(call.problem, call.kernel))
    out, lse = chosen.run(call.problem, materialise(call))
    return out, lse if call.problem.lse else None
