"""A whole timm Swin whose attention modules are swapped for ours, forward and a step of training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from locant import Grid
from locant.nn import WindowAttention
from rows.mend import mend_torchvision
from rows.row import Row, Setting, fresh, near, of_ratio

BATCH, SIDE, CLASSES = 8, 224, 1000


class Swapped(nn.Module):
    """timm's block calls this where it rolled, partitioned, attended, merged and rolled back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        theirs = block.attn
        self.attend = WindowAttention(
            theirs.dim, theirs.num_heads, block.window_size, grid=Grid(*block.input_resolution),
            shift=block.shift_size, small="per-axis",
        )  # fmt: skip
        table = theirs.relative_position_bias_table.detach().T.reshape(self.attend.position.table.shape)
        parts = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
        state = {name: theirs.state_dict()[name] for name in parts}
        self.attend.load_state_dict({**state, "position.table": table})

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def pair() -> tuple[nn.Module, nn.Module]:
    """timm's swin_tiny, and the same with our attention in it."""
    mend_torchvision()
    from timm import create_model
    from timm.models.swin_transformer import SwinTransformerBlock

    fresh()
    theirs = create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, drop_path_rate=0.0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_(std=0.5)  # so that a wrong table shows in the logits
    ours = copy.deepcopy(theirs)
    for block in [m for m in ours.modules() if isinstance(m, SwinTransformerBlock)]:
        swapped = Swapped(block)
        block.attn = nn.Identity()
        block.swapped = swapped
        object.__setattr__(block, "_attn", swapped)  # before the method of the class
    return theirs, ours


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """Forward, loss, backward, AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def call() -> None:
        optimiser.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimiser.step()

    return call


def swin(setting: Setting) -> Iterator[Row]:
    theirs, ours = pair()
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    theirs.eval(), ours.eval()
    what = f"swin_tiny, {SIDE} px, batch {BATCH}, whole model"
    with torch.inference_mode():
        near("logits", ours(x), theirs(x))
        times = setting.times({"ours": lambda: ours(x), "timm default": lambda: theirs(x)})
    ratio = times.ratio("timm default", "ours")
    yield of_ratio("swin", f"{what}, forward", "timm default", ratio, times, target=1.4)
    theirs.train(), ours.train()
    labels = torch.randint(CLASSES, (BATCH,))
    times = setting.times({"ours": step(ours, x, labels), "timm default": step(theirs, x, labels)})
    ratio = times.ratio("timm default", "ours")
    yield of_ratio("swin", f"{what}, training step", "timm default", ratio, times, target=1.35)
