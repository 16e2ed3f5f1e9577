"""Who benchmarks/gpu.py measures Locant's kernels against: torch's attention, the roll-and-mask way, whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from gpu_clock import Call
from gpu_problems import DEVICE, DRY
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from locant import accelerate, planner, speed
from locant.costs import SECONDS
from locant.masks import Structure, Windows
from locant.measuring.workload import Workload
from locant.problem import Problem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}  # fmt: skip
WITH_FLEX = ("28²", "64²")  # each of its problems compiles for many seconds


def contenders(name: str, work: Workload, ours: bool) -> dict[str, Call]:
    """Ours, and what one would use instead; forward alone, and with every gradient. "none/flash" has no position."""
    found: dict[str, Call] = {}
    kernels = ("triton",) * ours + ("sdpa",) + ("flex",) * (name in WITH_FLEX)
    for kernel in kernels:
        found[f"{kernel} forward"] = partial(work.forward, kernel)
        found[f"{kernel} train"] = partial(work.gradients, kernel)
    windows = Structure.of(work.mask).windows
    return found | (of_windows(work, windows[0]) if windows else of_planes(work))


def of_planes(work: Workload) -> dict[str, Call]:
    """torch's attention by each of its backends: without position; the bias expanded beforehand; learned."""
    q, k, v = (x.detach() for x in (work.q, work.k, work.v))
    learned = [x.detach().requires_grad_() for x in (q, k, v)]
    form = work.plan(train=False).problem.bias
    assert form is not None
    assert work.position is not None
    bias = work.position.values(form, q.device).dense(work.grid, work.key_grid).to(q.dtype)[None].detach()
    found: dict[str, Call] = {}
    for name, backend in BACKENDS.items():
        found[f"none/{name} forward"] = _by(backend, lambda: scaled_dot_product_attention(q, k, v))
        found[f"none/{name} train"] = _by(
            backend, lambda: torch.autograd.grad(scaled_dot_product_attention(*learned), learned, work.dout)
        )
        found[f"expanded/{name} forward"] = _by(backend, lambda: scaled_dot_product_attention(q, k, v, bias))
        found[f"learned/{name} train"] = _by(backend, partial(work.gradients, "sdpa"))
    return found


def of_windows(work: Workload, mask: Windows) -> dict[str, Call]:
    """On windows that were cut before, without position; and by rolling, cutting and masking, as models do it."""
    cut = [
        cut_windows(x.detach().transpose(1, 2).unflatten(1, work.grid.shape), mask.size)
        for x in (work.q, work.k, work.v)
    ]
    cut = [x.transpose(1, 2).contiguous() for x in cut]
    found: dict[str, Call] = {
        f"none/{name} forward": _by(backend, lambda: scaled_dot_product_attention(*cut))
        for name, backend in BACKENDS.items()
    }
    roll, arguments, dout = rolled(work, mask)
    learned = [x.detach().requires_grad_() for x in arguments]
    found["roll forward"] = lambda: roll(*arguments)
    found["roll train"] = lambda: torch.autograd.grad(roll(*learned), learned, dout)
    return found


def rolled(work: Workload, mask: Windows) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor], Tensor]:
    """Attention from a projection's output [batch, *grid, 3, heads, channels] and a table to the next one's input.

    The plane is rolled, cut into windows, attended with table and mask expanded for every window, put together and
    rolled back: what models of windows do without kernels of their own.
    """
    grid, axes = work.grid.shape, range(1, 1 + len(work.grid.shape))
    x = torch.stack([t.detach().transpose(1, 2).unflatten(1, grid) for t in (work.q, work.k, work.v)], -3).contiguous()
    form = work.plan(train=False).problem.bias
    assert form is not None
    assert work.position is not None
    table = work.position.values(form, x.device).table.detach().flatten(1).contiguous()
    inside = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in mask.size)).view(-1, len(grid))
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis, (size, r) in enumerate(zip(form.sizes, form.reach, strict=True)):
        index = index * size + inside[:, None, axis] - inside[None, :, axis] + r
    shifts = [-s for s in mask.shift]
    hidden = _hidden(grid, mask, x.device).to(x.dtype) if any(shifts) else None

    def attend(x: Tensor, table: Tensor) -> Tensor:
        y = torch.roll(x, shifts, tuple(axes)) if any(shifts) else x
        q, k, v = cut_windows(y, mask.size).permute(2, 0, 3, 1, 4).unbind(0)
        bias = table[:, index].to(x.dtype)[None]
        if hidden is not None:
            many = len(q) // len(hidden)
            bias = (bias + hidden[:, None]).expand(many, -1, -1, -1, -1).flatten(0, 1)
        out = scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)
        out = join_windows(out, grid, mask.size)
        return torch.roll(out, mask.shift, tuple(axes)) if any(shifts) else out

    dout = work.dout.transpose(1, 2).flatten(2).unflatten(1, grid).contiguous()
    return attend, (x, table), dout


def cut_windows(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[batch, *grid, ...] → [batch · windows, tokens, ...]."""
    axes, batch = len(size), len(x)
    for axis, n in enumerate(size):
        x = x.unflatten(1 + 2 * axis, (x.shape[1 + 2 * axis] // n, n))
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), *range(2 * axes + 1, x.ndim)]
    return x.permute(order).reshape(-1, math.prod(size), *x.shape[2 * axes + 1 :]) if batch else x


def join_windows(x: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """The inverse: [batch · windows, tokens, channels] → [batch, *grid, channels]."""
    axes, cells = len(size), [n // w for n, w in zip(grid, size, strict=True)]
    x = x.reshape(-1, *cells, *size, x.shape[-1])
    order = [0, *(at for axis in range(axes) for at in (1 + axis, 1 + axes + axis)), 2 * axes + 1]
    return x.permute(order).reshape(-1, *grid, x.shape[-1])


def _hidden(grid: tuple[int, ...], mask: Windows, device: torch.device) -> Tensor:
    """[windows, tokens, tokens]: -100 between tokens that a roll has brought into one window."""
    number = torch.zeros(1, dtype=torch.int64, device=device)
    for n, w, s in zip(grid, mask.size, mask.shift, strict=True):
        at = torch.arange(n, device=device)
        number = number[..., None] * 3 + (at >= n - w).long() + (at >= n - s).long() * (s > 0)
    cells = cut_windows(number.view(1, *grid, 1), mask.size)[..., 0]
    return torch.where(cells[:, :, None] == cells[:, None, :], 0.0, -100.0)


def _by(backend: SDPBackend, call: Call) -> Call:
    def made() -> object:
        with nullcontext() if DRY else sdpa_kernel([backend]):
            return call()

    return made


# --- whole models ----------------------------------------------------------------------------------------------------


def models() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]]:
    """A model and its input, of each library that may be there."""

    def of_timm(name: str, batch: int) -> tuple[nn.Module, Tensor]:
        import timm
        from timm.models.swin_transformer import SwinTransformer

        if DRY:
            sizes: dict[str, Any] = {"img_size": 16, "embed_dim": 16, "depths": (2,), "num_heads": (1,)}
            return SwinTransformer(window_size=2, num_classes=4, **sizes), torch.randn(1, 3, 16, 16)
        return timm.create_model(name), torch.randn(batch, 3, 224, 224)

    def of_transformers(batch: int) -> tuple[nn.Module, Tensor]:
        from transformers import SwinConfig, SwinModel

        if DRY:
            tiny = SwinConfig(image_size=16, embed_dim=16, depths=[2], num_heads=[1], window_size=2)
            return SwinModel(tiny), torch.randn(1, 3, 16, 16)
        return SwinModel(SwinConfig()), torch.randn(batch, 3, 224, 224)

    yield "timm swin_tiny, batch 128", lambda: of_timm("swin_tiny_patch4_window7_224", 128)
    if not DRY:
        yield "timm vit_relpos_base, batch 64", lambda: of_timm("vit_relpos_base_patch16_224", 64)
    yield "transformers Swin tiny, batch 128", lambda: of_transformers(128)


def model_calls(model: nn.Module, x: Tensor) -> dict[str, Call]:
    """Forward, and a training step's forward and backward, with products in bfloat16."""

    def output() -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            found = model(x)
        return found if isinstance(found, Tensor) else found[0]

    def forward() -> Tensor:
        with torch.no_grad():
            return output()

    parameters = [p for p in model.parameters() if p.requires_grad]

    def train() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(output().float().square().mean(), parameters, allow_unused=True)

    return {"forward": forward, "train": train}


def of_model(make: Callable[[], tuple[nn.Module, Tensor]], measure: Callable[[dict[str, Call]], Any]) -> dict[str, Any]:
    """The model as it is, then the same one with Triton's kernels: times, and how far the outputs are apart."""
    model, x = make()
    model, x = model.to(DEVICE).eval(), x.to(DEVICE)
    plain = model_calls(model, x)
    before, times = plain["forward"](), measure({f"plain {n}": call for n, call in plain.items()})
    report = accelerate(model, pack=False)
    with triton_first() as chosen:
        ours = model_calls(model, x)
        after = ours["forward"]()
        times = {
            kind: {**times[kind], **more} for kind, more in measure({f"ours {n}": c for n, c in ours.items()}).items()
        }
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    apart = ((after - before).abs().max() / before.abs().max()).item()
    return {**times, "replaced": len(report.replaced), "kernels": sorted(chosen), "apart": apart}


@contextmanager
def triton_first() -> Iterator[set[str]]:
    """A plan takes Triton's kernels wherever they do not refuse, whatever their costs; what was chosen is gathered."""
    kept, names = planner.choose, set[str]()

    def choose(problem: Problem, kernel: str = "auto") -> str:
        able = kernel == "auto" and planner.named("triton").refuses(problem) is None
        names.add(name := "triton" if able else kept(problem, kernel))
        return name

    _forget()
    planner.choose = choose
    try:
        yield names
    finally:
        planner.choose = kept
        _forget()


def _forget() -> None:
    planner._planned.cache_clear()
    planner._remembered.cache_clear()


def predicted(problem: Problem, kernel: str, constants: dict[tuple[str, ...], list[float]]) -> float | None:
    """Seconds by constants that were just fitted, or by those that stand in locant.costs."""
    key = speed.key(problem, planner.named(kernel))
    own = constants.get(key, SECONDS.get(key))
    parts = speed.parts(problem, planner.named(kernel))
    return None if own is None else sum(a * b for a, b in zip(parts, own, strict=True))
