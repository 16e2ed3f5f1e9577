"""Packed products: the numbers of torch's own linear, and never those of a weight that has moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from locant import dispatch, operators, products
from locant.products import activations, around, onednn
from locant.products import operators as product_operators

pytestmark = pytest.mark.skipif(not dispatch.packs_linear(), reason="torch without oneDNN's packed products")

ROUNDING = 2e-6  # float32, sums of at most 768 terms of size 1 relative to the largest result: sqrt(768) eps and more


def _drawn(rows: int = 700, width: int = 96, out: int = 288, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return torch.randn(rows, width, dtype=dtype), torch.randn(out, width, dtype=dtype), torch.randn(out, dtype=dtype)


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [(700,), (7, 100), (2, 5, 70), (1,), (0,)])
def test_it_is_torchs_linear(keep: bool, shape: tuple[int, ...]) -> None:
    _, weight, bias = _drawn()
    x = torch.randn(*shape, 96)
    for b in (bias, None):
        ours, theirs = products.linear(x, weight, b, keep), F.linear(x, weight, b)
        assert ours.shape == theirs.shape
        assert x.numel() == 0 or _apart(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("activation", products.ACTIVATIONS)
@pytest.mark.parametrize("rows", [onednn.CHUNK - 1, onednn.CHUNK, 2 * onednn.CHUNK + 3])
def test_a_perceptron_is_its_two_layers(activation: str, rows: int) -> None:
    x, w1, b1 = _drawn(rows)
    w2, b2 = torch.randn(64, 288), torch.randn(64)
    with torch.no_grad():
        hidden = {
            "none": lambda h: h, "gelu": F.gelu, "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"), "relu": F.relu,
            "silu": F.silu,
        }[activation](F.linear(x, w1, b1))  # fmt: skip
        assert _apart(products.perceptron(x, w1, b1, w2, b2, activation, True), F.linear(hidden, w2, b2)) <= ROUNDING


@pytest.mark.parametrize("rows", [700, 8197])
def test_gradients_are_those_of_torchs_linear(rows: int) -> None:
    x, weight, bias = (t.requires_grad_() for t in _drawn(rows))
    dy = torch.randn(rows, 288)
    for b in (bias, None):
        inputs = [t for t in (x, weight, b) if t is not None]
        ours = torch.autograd.grad(products.linear(x, weight, b, True), inputs, dy)
        theirs = torch.autograd.grad(F.linear(x, weight, b), inputs, dy)
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert _apart(one, other) <= 4 * ROUNDING  # sums over up to 8,000 rows
    perceptron = products.perceptron(x, weight, bias, torch.randn(64, 288), None, "gelu", True)
    assert perceptron.requires_grad


# rows, inputs, hidden, outputs: whole vectors and not, one row, blocks that are left over, sums in several parts
SIZES = [(1, 300, 1000, 4), (97, 5, 5000, 33), (700, 96, 384, 96), (193, 800, 65, 129), (601, 17, 300, 500)]


def _isas() -> list[str]:
    module = operators.built()
    return [] if isinstance(module, str) else [*module.isas()]


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Each instruction set in turn, taken for the fastest."""
    module = operators.built()
    before = module.isa()
    module.choose_isa(request.param)
    monkeypatch.setattr(product_operators, "able", lambda dtype: ("compiled",))
    yield request.param
    module.choose_isa(before)


def _perceptron_of(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, w1, b1, w2, b2, whose numbers are of size 1 everywhere; then a norm's scale and shift, and a residual."""
    torch.manual_seed(sum(size))
    rows, inputs, hidden, outputs = size
    shapes = (rows, inputs), (hidden, inputs), (hidden,), (outputs, hidden), (outputs,), (inputs,), (inputs,)
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in (*shapes, (rows, outputs))]
    drawn[1] /= inputs**0.5
    drawn[3] /= hidden**0.5
    return [t.to(dtype) for t in drawn]


def _exact(given: list[torch.Tensor], activation: str, norm: bool, residual: bool) -> torch.Tensor:
    x, w1, b1, w2, b2, scale, shift, other = given
    x = F.layer_norm(x, x.shape[-1:], scale, shift, 1e-5) if norm else x
    y = F.linear(activations.activate(F.linear(x, w1, b1), activation), w2, b2)
    return y * (b2 - 2) + other if residual else y


@pytest.mark.parametrize("activation", products.ACTIVATIONS)
@pytest.mark.parametrize("fused", [(False, False), (True, True)], ids=["bare", "norm and residual"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_products_are_no_worse_than_torchs(
    isa: str, size: tuple[int, ...], fused: tuple[bool, bool], activation: str
) -> None:
    """Beside float64, by the rule for every kernel: at most twice torch's error in float32, or 1e-5 of the largest."""
    low = _perceptron_of(size)
    x, w1, b1, w2, b2, scale, shift, other = low
    more = {"norm": products.Norm(scale, shift, 1e-5) if fused[0] else None, "residual": other if fused[1] else None}
    more["gain"] = b2 - 2 if fused[1] else None
    exact = _exact([t.double() for t in low], activation, *fused)
    allowed = max(2 * (_exact(low, activation, *fused) - exact).abs().max(), 1e-5 * exact.abs().max())
    with torch.no_grad():
        assert (products.perceptron(x, w1, b1, w2, b2, activation, True, **more) - exact).abs().max() <= allowed
        one = more | ({"residual": torch.ones(len(x), len(w1)), "gain": b1} if fused[1] else {})
        found = products.linear(x, w1, b1, True, activation=activation, **one)
        layer = F.layer_norm(x.double(), x.shape[-1:], scale.double(), shift.double(), 1e-5) if fused[0] else x.double()
        right = activations.activate(F.linear(layer, w1.double(), b1.double()), activation) * (
            b1.double() if fused[1] else 1
        ) + (1 if fused[1] else 0)
        assert (found - right).abs().max() <= 2e-6 * right.abs().max()  # sums of up to 800 terms of size 1


@pytest.mark.parametrize("activation", products.ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_every_gradient_of_a_compiled_perceptron(isa: str, size: tuple[int, ...], activation: str) -> None:
    low = _perceptron_of(size)
    dy = torch.randn(len(low[0]), len(low[3]), generator=torch.Generator().manual_seed(1))

    def gradients(call, dtype: torch.dtype) -> list[torch.Tensor]:
        given = [t.to(dtype).requires_grad_() for t in low]
        return [*torch.autograd.grad(call(*given), given[:5], dy.to(dtype))]

    def torchs(*given: torch.Tensor) -> torch.Tensor:
        return _exact([*given], activation, False, False)

    def ours(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, *_: object):
        return products.perceptron(x, w1, b1, w2, b2, activation, False)

    exact, theirs = gradients(torchs, torch.float64), gradients(torchs, torch.float32)
    for name, found, right, low_one in zip(
        "x w1 b1 w2 b2".split(), gradients(ours, torch.float32), exact, theirs, strict=True
    ):
        allowed = 3 * max((low_one - right).abs().max(), 1e-5 * right.abs().max())
        assert (found - right).abs().max() <= allowed, name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_in_bfloat16_nothing_is_rounded_but_what_is_stored(isa: str, size: tuple[int, ...]) -> None:
    """Products, sums and what follows are float32: 2⁻⁸ of each number that is stored, where torch rounds in between."""
    low = _perceptron_of(size, torch.bfloat16)
    x, w1, b1, w2, b2, scale, shift, other = low
    high = [t.double() for t in low]
    with torch.no_grad():
        for norm, residual in ((False, False), (True, True)):
            found = products.perceptron(
                x, w1, b1, w2, b2, "gelu", True, norm=products.Norm(scale, shift, 1e-5) if norm else None,
                residual=other if residual else None, gain=b2 - 2 if residual else None,
            )  # fmt: skip
            exact = _exact([*high[:4], b2.double(), *high[5:]], "gelu", norm, residual)
            torchs = _exact(low, "gelu", norm, residual)
            assert found.dtype == torch.bfloat16
            assert (found.double() - exact).norm() <= 1.05 * (torchs.double() - exact).norm()
        layer = products.linear(x, w1, b1, True).double()
        right = F.linear(high[0], high[1], high[2])
        assert ((layer - right).abs() <= 2**-8 * right.abs() + 1e-4).all()  # rounded once, after sums of size 20


@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_every_gradient_in_bfloat16(isa: str, size: tuple[int, ...]) -> None:
    low = [t.requires_grad_() for t in _perceptron_of(size, torch.bfloat16)[:5]]
    dy = torch.randn(size[0], size[3], dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))

    def gradients(dtype: torch.dtype, call) -> list[torch.Tensor]:
        given = [t.detach().to(dtype).requires_grad_() for t in low]
        return [*torch.autograd.grad(call(*given), given, dy.to(dtype))]

    def torchs(x, w1, b1, w2, b2):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    exact, theirs = gradients(torch.float64, torchs), gradients(torch.bfloat16, torchs)
    ours = gradients(torch.bfloat16, lambda *given: products.perceptron(*given, "gelu", False))
    layers = gradients(
        torch.bfloat16,
        lambda x, w1, b1, w2, b2: products.linear(F.gelu(products.linear(x, w1, b1, False)), w2, b2, False),
    )
    for name, one, other, right, low_one in zip("x w1 b1 w2 b2".split(), ours, layers, exact, theirs, strict=True):
        for found in (one, other):
            assert (found - right).norm() <= 1.1 * (low_one - right).norm() + 2**-9 * right.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(97, 96, 288, 32, 192), (193, 33, 90, 15, 60), (5, 384, 1152, 128, 1024)], ids=str)
def test_norms_behind_units_and_rms(isa: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    rows, inputs, outputs, unit, united = sizes
    x, w, bias, hidden, _, scale, shift, _ = _perceptron_of((rows, inputs, outputs, inputs), dtype)
    behind = products.Norm(bias + 1, bias - 1, 1e-6)
    allowed = 3e-6 if dtype == torch.float32 else 2**-7
    x[rows // 2] = 0
    with torch.no_grad():
        for b in (None, bias):
            wide = F.linear(x.double(), w.double(), None if b is None else b.double())
            # 1 units of length 1, and a unit of zeros stays one
            found = products.linear(x, w, b, True, units=(unit, united), gain=bias)
            heads = wide[:, :united].unflatten(-1, (-1, unit))
            length = heads.norm(dim=-1, keepdim=True)
            right = torch.cat(((heads / length.where(length > 0, 1)).flatten(-2), wide[:, united:]), -1) * bias.double()
            assert _apart(found, right) <= allowed
            # 2 a norm behind
            resid = torch.randn(rows, outputs).to(dtype)
            found = products.linear(x, w, b, True, behind=behind, residual=resid)
            right = F.layer_norm(wide, (outputs,), behind.scale.double(), behind.shift.double(), 1e-6) + resid.double()
            assert _apart(found, right) <= 4 * allowed  # differences of sums, divided by their size
        # 3 a RMSNorm in front, of a layer and of a perceptron with a norm behind
        rms = F.rms_norm(x.double(), (inputs,), scale.double(), 1e-6)
        found = products.linear(x, w, bias, True, norm=products.Norm(scale, None, 1e-6, False))
        assert _apart(found, F.linear(rms, w.double(), bias.double())) <= 2 * allowed
        found = products.perceptron(
            x, w, bias, hidden, None, "relu", True, norm=products.Norm(scale, None, 1e-6, False), residual=x,
            behind=products.Norm(scale, shift, 1e-6),
        )  # fmt: skip
        inner = F.linear(F.relu(F.linear(rms, w.double(), bias.double())), hidden.double())
        right = F.layer_norm(inner, (inputs,), scale.double(), shift.double(), 1e-6) + x.double()
        assert _apart(found, right) <= 4 * allowed


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    _bits_do_not_depend_on_threads(_perceptron_of((601, 96, 300, 130)))
    _bits_do_not_depend_on_threads(_perceptron_of((601, 97, 300, 130), torch.bfloat16))


def _bits_do_not_depend_on_threads(low: list[torch.Tensor]) -> None:
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        try:
            given = [t.clone().requires_grad_() for t in low]
            y = products.perceptron(*given[:5], "gelu", False)
            z = products.linear(given[0], given[1], given[2], False)
            parts = torch.autograd.grad(y.square().sum() + z.square().sum(), given[:5])
            with torch.no_grad():
                few = products.perceptron(low[0][:200], *low[1:5], "silu", True)
            found.append([y, z, few, *parts])
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("activation", products.ACTIVATIONS)
def test_activations_far_out(isa: str, activation: str) -> None:
    """Huge, tiny, infinite and no numbers, through a weight of 1."""
    ends = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.5, -5.5, 13.0, -13.0, 90.0, -90.0, 1e4, -1e4, 1e30, -1e30])
    x = torch.cat((ends, torch.linspace(-12, 12, 4097), torch.tensor([float("inf"), float("nan")])))[:, None]
    one = torch.ones(1024, 1)
    with torch.no_grad():
        found = products.linear(x, one, None, True, activation=activation)[:, 0]
    assert found[-1].isnan()
    assert found[-2] == float("inf")
    right = activations.activate(x[:-2, 0].double(), activation)
    # exponents of up to 17 are rounded to 2⁻²⁰; numbers of size 1 to 2⁻²⁴, a few times
    assert ((found[:-2] - right).abs() <= 2**-20 * right.abs() + 2**-24).all()


def test_what_does_not_fit_is_torchs_to_broadcast_or_refuse() -> None:
    """Kernels read by addresses: a vector or a residual of another length or dtype never gets to them."""
    x, w1, b1, w2, b2, scale, shift, _ = _perceptron_of((700, 96, 384, 96))
    with torch.no_grad():
        for wrong in (b1[:5], b1.double(), b1[None].expand(2, -1)):
            with pytest.raises(RuntimeError):
                products.linear(x, w1, wrong, True)
            with pytest.raises(RuntimeError):
                products.perceptron(x, w1, wrong, w2, b2, "gelu", True)
        with pytest.raises(RuntimeError):
            products.perceptron(x, w1, b1, w2[:, :300], b2, "gelu", True)
        with pytest.raises(RuntimeError):
            products.linear(x, w1, b1, True, norm=products.Norm(scale[:5], shift, 1e-5))
        right = F.linear(x, w1, b1)
        for residual in (b1, torch.ones(700, 1), right.double()):
            found = products.linear(x, w1, b1, True, residual=residual)
            assert found.dtype == (residual + right).dtype
            assert _apart(found, residual + right) <= ROUNDING
        assert _apart(products.linear(x, w1, b1, True, gain=torch.tensor(3.0)), 3 * right) <= ROUNDING


def test_a_gradient_of_a_gradient_of_a_perceptron() -> None:
    low = _perceptron_of((300, 40, 60, 20), torch.float32)
    found = []
    for call in (
        lambda *g: products.perceptron(*g, "gelu", False),
        lambda *g: _exact([*g, *low[5:]], "gelu", False, False),
    ):
        given = [t.clone().requires_grad_() for t in low[:5]]
        (dx,) = torch.autograd.grad(call(*given).square().sum(), given[0], create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), given[1:4]))
    for one, other in zip(*found, strict=True):
        assert _apart(one, other) <= 16 * ROUNDING


def test_in_training_only_what_the_activation_takes_is_kept() -> None:
    """For backward: x and [rows, hidden] once, where torch keeps it twice."""
    x, w1, b1, w2, b2 = (t.requires_grad_() for t in _perceptron_of((2000, 32, 512, 32))[:5])
    kept: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        products.perceptron(x, w1, b1, w2, b2, "gelu", False)
    own = sum(t.untyped_storage().nbytes() for t in (x, w1, b1, w2, b2))
    assert sum(kept.values()) - own == 4 * 2000 * 512


def test_a_gradient_of_a_gradient() -> None:
    x, weight, _ = _drawn()
    x.requires_grad_(), weight.requires_grad_()
    found = []
    for linear in (lambda: products.linear(x, weight, None, True), lambda: F.linear(x, weight)):
        (dx,) = torch.autograd.grad(linear().pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.pow(2).sum(), weight)[0])
    assert _apart(*found) <= 8 * ROUNDING


def test_autocast_gives_what_torch_gives() -> None:
    x, weight, bias = _drawn()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for keep in (True, False):
            ours, theirs = products.linear(x, nn.Parameter(weight), bias, keep), F.linear(x, weight, bias)
            assert ours.dtype == theirs.dtype == torch.bfloat16
            assert _apart(ours, theirs) <= 2**-7  # an ulp of bfloat16
    w = nn.Parameter(weight)
    with torch.autocast("cpu", torch.bfloat16):
        products.linear(x, w, bias, False).sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = _drawn(dtype=dtype)
    assert torch.equal(products.linear(x, weight, bias, True), F.linear(x, weight, bias))


def test_copies_have_their_own() -> None:
    layer = nn.Linear(96, 288)
    x, _, _ = _drawn()
    with torch.no_grad():
        products.linear(x, layer.weight, None, True)
        other = copy.deepcopy(layer)
        other.weight.mul_(2)
        assert _apart(products.linear(x, other.weight, None, True), F.linear(x, other.weight)) <= ROUNDING
        assert _apart(products.linear(x, layer.weight, None, True), F.linear(x, layer.weight)) <= ROUNDING


def test_the_operators_are_sound() -> None:
    x, weight, bias = _drawn(40, 24, 32)
    fused = "none", *around.NOTHING, False
    torch.library.opcheck(torch.ops.locant.linear.default, (x.requires_grad_(), weight.requires_grad_(), bias, *fused))
    torch.library.opcheck(
        torch.ops.locant.perceptron.default,
        (x.detach(), weight.detach(), bias, torch.randn(8, 32), None, "gelu", *fused[1:]),
    )
    if "compiled" in product_operators.able(torch.float32):
        layers = x, weight, bias.requires_grad_(), torch.randn(8, 32).requires_grad_(), None
        torch.library.opcheck(torch.ops.locant.perceptron_training.default, (*layers, "gelu", False))
        torch.library.opcheck(torch.ops.locant.perceptron_training.default, (*layers, "gelu", True))


@pytest.mark.compiled
def test_in_a_graph_it_is_one_node_and_sees_a_moved_weight() -> None:
    x, weight, bias = _drawn()
    w = nn.Parameter(weight)
    compiled = torch.compile(lambda x: products.linear(x, w, bias, True), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert _apart(compiled(x), F.linear(x, w, bias)) <= ROUNDING
        w.mul_(2)
        assert _apart(compiled(x), F.linear(x, w, bias)) <= ROUNDING
    compiled(x).sum().backward()
    assert _apart(w.grad, x.sum(0).expand(288, 96)) <= 4 * ROUNDING
