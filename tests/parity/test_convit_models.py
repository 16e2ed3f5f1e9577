"""ConViT on timm's weights, every parameter drawn anew: logits, gradients, a training step, features, distances."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from redrawing import redraw
from torch import Tensor, nn

from locant import GatedPosition, Grid, checkpoints
from locant.checkpoints.convit import LAYOUTS
from locant.checkpoints.names import turned_in
from locant.models import convit
from locant.models.nonlocality import attention_map, non_locality
from locant.nn import Attention, GatedAttention

MOST = 1e-5
LAYOUT = next(layout for layout in LAYOUTS if layout.name == "timm")


def pair(timm: object, name: str, **given: object) -> tuple[nn.Module, nn.Module]:
    """timm's model in float64 and ours with its weights, which the table of names carries over, all of them."""
    theirs = redraw(getattr(import_module("timm.models.convit"), name)(**given)).double()
    ours = getattr(convit, name)(**given).double()
    report = checkpoints.load(ours, theirs.state_dict(), layout="timm")
    assert report.exact
    assert report.dropped == [f"blocks.{block}.attn.pos_proj.bias" for block in range(10)]
    return theirs, ours


def of_its_size(found: Tensor, golden: Tensor) -> float:
    return float((found.detach().double() - golden.detach()).abs().max() / golden.detach().abs().max())


def in_our_names(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return turned_in(theirs, LAYOUT, {name: tuple(value.shape) for name, value in ours.items()})


def stepped(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a training step, and the logits behind it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(images), labels).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    return gradients, model(images)


@pytest.mark.row(21)
@pytest.mark.parametrize("name", ["convit_tiny", "convit_small"])
def test_logits(timm, parity, name):
    """float32 against timm's in float64: at most 1e-5 of their size, or twice what timm itself is off in float32."""
    theirs, ours = pair(timm, name)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        golden = theirs.eval()(images.double())
        low = of_its_size(theirs.float()(images), golden)
        error = of_its_size(ours.eval().float()(images), golden)
    parity(21, f"timm {name}, logits (of their size)", error, max(2 * low, MOST))


@pytest.mark.row(21)
@pytest.mark.parametrize(("name", "side"), [("convit_tiny", 112), ("convit_small", 64)])
def test_a_training_step(timm, parity, name, side):
    """Gradients of all parameters and the logits behind the step, in float64, so that only mathematics can differ."""
    theirs, ours = pair(timm, name, img_size=side, num_classes=10)
    images, labels = torch.randn(2, 3, side, side, dtype=torch.float64), torch.tensor([3, 7])
    golden, behind = stepped(theirs, images, labels)
    found, logits = stepped(ours, images, labels)
    wanted = in_our_names(golden, found)
    assert set(wanted) == set(found)
    worst = max(of_its_size(found[key], wanted[key]) for key in wanted)
    parity(21, f"timm {name}, gradients of a step (float64, of their size)", worst, 1e-10)
    parity(21, f"timm {name}, logits behind a step (float64, of their size)", of_its_size(logits, behind), 1e-10)


@pytest.mark.row(21)
def test_a_training_step_in_float32(timm, parity):
    """Each gradient off by at most 3e-5 of its size, or three times what timm's own is off in float32."""
    theirs, ours = pair(timm, "convit_tiny", img_size=64, num_classes=10)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    plain, ours = copy.deepcopy(theirs).float(), ours.float()
    golden, behind = stepped(theirs, images.double(), labels)
    low, low_logits = stepped(plain, images, labels)
    found, logits = stepped(ours, images, labels)
    golden, low = in_our_names(golden, found), in_our_names(low, found)
    allowed = {key: 3 * max(of_its_size(low[key], golden[key]), MOST) for key in golden}
    worst = max(of_its_size(found[key], golden[key]) / allowed[key] for key in golden)
    parity(21, "timm convit_tiny, gradients of a step (float32, of what the policy allows each)", worst, 1.0)
    allowed = 3 * max(of_its_size(low_logits, behind), MOST)
    parity(21, "timm convit_tiny, logits behind a step (of their size)", of_its_size(logits, behind), allowed)


@pytest.mark.row(21)
@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_parameters(timm, parity, name):
    """As many as timm's, less the bias per head of ten layers, which cancels."""
    with torch.device("meta"):
        theirs, ours = (getattr(m, name)() for m in (import_module("timm.models.convit"), convit))
    counts = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    dead = sum(p.numel() for key, p in theirs.named_parameters() if key.endswith("pos_proj.bias"))
    assert dead == 10 * ours.blocks[0].attention.heads
    parity(21, f"timm {name}, number of parameters", counts[1] + dead - counts[0], 0)
    published = {"convit_tiny": 5_710_512, "convit_small": 27_777_322, "convit_base": 86_540_040}
    assert counts[0] == published[name]


@pytest.mark.row(21)
def test_a_class_token_that_never_joins(timm):
    """What is refused here, timm builds: it classifies by a patch, whatever the class token says."""
    given = {"img_size": 32, "num_classes": 4, "depth": 2, "local_up_to_layer": 2}
    theirs = import_module("timm.models.convit").convit_tiny(**given).eval()
    images = torch.randn(1, 3, 32, 32)
    before = theirs(images)
    with torch.no_grad():
        theirs.cls_token.add_(5.0)
    assert theirs.forward_features(images).shape[1] == 4  # the patches alone
    assert torch.equal(theirs(images), before)
    with pytest.raises(ValueError, match="local_up_to_layer"):
        convit.ConViT(img_size=32, depth=2, local_up_to_layer=2, dim=192, heads=4)


@pytest.mark.row(17)
@pytest.mark.parametrize("side", [1, 2, 5, 14])
def test_features(timm, parity, side):
    gate = GatedPosition(3)
    with torch.no_grad():
        gate.direction.copy_(torch.tensor([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]))
        gate.spread.copy_(torch.tensor([0.0, 0.0, 1.0]))
    grid = Grid(side, side)
    found = gate.values(grid, grid).dense(grid, grid).permute(1, 2, 0)
    golden = import_module("timm.models.convit").GPSA(8, 2).get_rel_indices(side * side)[0]
    parity(17, "timm get_rel_indices", float((found - golden).detach().abs().max()), 0.0)


@pytest.mark.row(20)
def test_eight_by_two_is_four_by_four_to_timm(timm):
    """16 patches: timm has one answer for both shapes, here each has its own, and the square one is timm's."""
    theirs = import_module("timm.models.convit").GPSA(8, 4).eval()
    nn.init.normal_(theirs.pos_proj.weight)
    ours, x = GatedAttention(8, 4), torch.randn(1, 16, 8)
    weight = theirs.pos_proj.weight.detach()
    state = {key: theirs.state_dict()[key] for key in ("qk.weight", "v.weight", "proj.weight", "proj.bias")}
    gate = {"direction": -weight[:, [1, 0]], "spread": weight[:, 2], "gate": theirs.gating_param.detach()}
    ours.load_state_dict(state | {f"position.{key}": value for key, value in gate.items()})
    assert float((ours(x, grid=Grid(4, 4)) - theirs(x)).detach().abs().max()) <= MOST
    assert float((ours(x, grid=Grid(2, 8)) - theirs(x)).detach().abs().max()) > 1e-2


@pytest.mark.row(22)
def test_the_bias_that_cancels(timm, parity):
    """Another pos_proj.bias, the same output; in a training step it does not move."""
    theirs = redraw(import_module("timm.models.convit").GPSA(36, 9)).double()
    x = torch.randn(2, 49, 36, dtype=torch.float64)
    before = theirs(x)
    (gradient,) = torch.autograd.grad(before.square().sum(), theirs.pos_proj.bias)
    with torch.no_grad():
        theirs.pos_proj.bias.add_(torch.randn(9) * 5)
    parity(22, "timm GPSA with another pos_proj.bias (float64, of its size)", of_its_size(theirs(x), before), 1e-10)
    dead = float(gradient.abs().max() / before.detach().abs().max())
    parity(22, "zero: gradient of timm's pos_proj.bias (float64, of the output's size)", dead, 1e-10)


@pytest.mark.row(23)
def test_distances(timm, parity):
    """On a square without a class token the published metric is right, layer by layer, for gated and plain ones."""
    peer, grid, x = import_module("timm.models.convit"), Grid(5, 5), torch.randn(3, 25, 36)
    gpsa, plain = (
        redraw(peer.GPSA(36, 9)).eval(),
        redraw(peer.MHSA(36, 9)).eval(),
    )
    gpsa(x)  # makes its indices
    names = ("qk.weight", "v.weight", "proj.weight", "proj.bias")
    gated, ours = GatedAttention(36, 9), Attention(36, 9, qkv_bias=False)
    weight = gpsa.pos_proj.weight.detach()
    state = {key: gpsa.state_dict()[key] for key in names} | {"position.gate": gpsa.gating_param.detach()}
    gated.load_state_dict(state | {"position.direction": -weight[:, [1, 0]], "position.spread": weight[:, 2]})
    ours.load_state_dict(plain.state_dict())
    for module, theirs in ((gated, gpsa), (ours, plain)):
        found, golden = non_locality(attention_map(module, x, grid), grid), theirs.get_attention_map(x)
        parity(
            23, f"timm {type(theirs).__name__}.get_attention_map", float((found - golden).detach().abs().max()), MOST
        )
