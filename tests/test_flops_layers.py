"""Layers and functions of torch, each against a count by hand; what has no formula is refused and never 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from locant import flops
from locant.multiply_adds import MultiplyAdds


class Called(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., object], *weights: Tensor) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(weights)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs, *self.weights)


def numbers(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


# tokens · in · out; an LSTM has 4 gates and a GRU 3, each of the input and of the state, for each direction and layer
LAYERS: dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...], int]] = {
    "Linear": (nn.Linear(3, 4), ((2, 5, 3),), 2 * 5 * 3 * 4),
    "Bilinear": (nn.Bilinear(3, 5, 6), ((5, 3), (5, 5)), 5 * 3 * 5 * 6),
    "Bilinear of two axes": (nn.Bilinear(3, 5, 6, bias=False), ((2, 7, 3), (2, 7, 5)), 2 * 7 * 3 * 5 * 6),
    "Conv1d, groups": (nn.Conv1d(4, 6, 3, groups=2), ((2, 4, 9),), 2 * 6 * 7 * 3 * 2),
    "Conv2d, strided": (nn.Conv2d(4, 6, (3, 2), stride=2), ((2, 4, 9, 8),), 2 * 6 * 4 * 4 * 6 * 4),
    "Conv3d": (nn.Conv3d(2, 3, 2), ((1, 2, 3, 4, 5),), 3 * 2 * 3 * 4 * 8 * 2),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), ((2, 4, 5, 5),), 2 * 4 * 5 * 5 * 9 * 6),
    "RNN": (nn.RNN(3, 4, num_layers=2), ((5, 2, 3),), 5 * 2 * (4 * (3 + 4) + 4 * (4 + 4))),
    "LSTM": (nn.LSTM(3, 4, bidirectional=True), ((5, 2, 3),), 2 * 5 * 2 * 4 * 4 * (3 + 4)),
    "LSTM, projected": (nn.LSTM(3, 4, proj_size=2), ((5, 2, 3),), 5 * 2 * (4 * 4 * (3 + 2) + 4 * 2)),
    "GRU": (nn.GRU(3, 4), ((5, 2, 3),), 5 * 2 * 3 * 4 * (3 + 4)),
    "RNNCell": (nn.RNNCell(3, 4), ((2, 3),), 2 * 4 * (3 + 4)),
    "LSTMCell": (nn.LSTMCell(3, 4), ((2, 3),), 2 * 4 * 4 * (3 + 4)),
    "GRUCell": (nn.GRUCell(3, 4), ((2, 3),), 2 * 3 * 4 * (3 + 4)),
    "MultiheadAttention": (nn.MultiheadAttention(8, 2), ((5, 2, 8),) * 3, 2 * (5 * 4 * 8 * 8 + 2 * 5 * 5 * 8)),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(8, 2, 16), ((5, 2, 8),), 2 * (5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8),
    ),
    "TransformerDecoderLayer": (
        nn.TransformerDecoderLayer(8, 2, 16), ((5, 2, 8), (7, 2, 8)),
        2 * (5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8 + (2 * 5 + 2 * 7) * 8 * 8 + 2 * 5 * 7 * 8),
    ),
    "distances": (Called(torch.cdist), ((2, 4, 3), (2, 5, 3)), 2 * 4 * 5 * 3),
    "distances of many": (Called(torch.cdist), ((30, 3), (40, 3)), 30 * 40 * 3),
    "distances along rows": (Called(lambda a, b: torch.cdist(a, b, p=1.0)), ((4, 3), (5, 3)), 4 * 5 * 3),
    "distances within": (Called(torch.pdist), ((6, 3),), 15 * 3),
    "addbmm": (Called(torch.addbmm), ((3, 4), (2, 3, 5), (2, 5, 4)), 2 * 3 * 5 * 4),
    "addr": (Called(torch.addr), ((3, 4), (3,), (4,)), 3 * 4),
    "conv_tbc": (Called(torch.conv_tbc), ((5, 2, 3), (3, 3, 4), (4,)), 3 * 2 * 4 * 3 * 3),
    "einsum": (Called(lambda a, b: torch.einsum("nij,njk->nik", a, b)), ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "inner": (Called(torch.inner), ((3, 4), (5, 4)), 3 * 5 * 4),
    "multi_dot": (Called(lambda *x: torch.linalg.multi_dot(x)), ((2, 3), (3, 4), (4, 5)), 2 * 3 * 4 + 2 * 4 * 5),
    "in place": (Called(lambda x, a, b: x.clone().addmm_(a, b)), ((2, 5), (2, 3), (3, 5)), 2 * 3 * 5),
    "in place, by batch": (
        Called(lambda x, a, b: x.clone().baddbmm_(a, b)), ((7, 2, 5), (7, 2, 3), (7, 3, 5)), 7 * 2 * 3 * 5,
    ),
    "number by number": (
        Called(lambda a, b: torch.linalg.cross(a, b) + torch.linalg.vector_norm(a, dim=-1, keepdim=True)),
        ((4, 3), (4, 3)), 0,
    ),
    "upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), ((1, 2, 3, 3),), 0),
    "pooling": (nn.AvgPool2d(2), ((1, 2, 4, 4),), 0),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_by_hand(name: str, training: bool) -> None:
    layer, shapes, golden = LAYERS[name]
    found = flops.count(layer.train(training), *(numbers(*shape) for shape in shapes))
    assert found.multiply_adds == golden


@pytest.mark.parametrize("learns", [True, False], ids=["learned", "frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_encoder_with_a_padding_mask(training: bool, learns: bool) -> None:
    """Two layers: four projections and a perceptron of 64 on 10 tokens of 32 channels, and both products."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    model.train(training).requires_grad_(learns)
    padding = torch.zeros(2, 10, dtype=torch.bool)
    found = flops.count(model, torch.randn(2, 10, 32), arguments={"src_key_padding_mask": padding})
    attending = 2 * 2 * 10 * 10 * 16
    assert found.parts == MultiplyAdds(projections=2 * 2 * 10 * 32 * (4 * 32 + 2 * 64), logits=2 * attending,
                                       values=2 * attending)  # fmt: skip
    assert found.multiply_adds == 353_280


def test_a_bilinear_layer_is_a_projection() -> None:
    assert flops.count(nn.Bilinear(3, 5, 6), numbers(5, 3), numbers(5, 5)).parts == MultiplyAdds(projections=450)


REFUSED: dict[str, tuple[Callable[..., object], tuple[tuple[int, ...], ...], str]] = {
    "solve": (torch.linalg.solve, ((3, 3), (3, 2)), "aten._linalg_solve_ex"),
    "svd": (torch.linalg.svd, ((3, 4),), "aten._linalg_svd"),
    "inverse": (torch.linalg.inv, ((3, 3),), "aten.linalg_inv_ex"),
    "exponential": (torch.matrix_exp, ((3, 3),), "aten.linalg_matrix_exp"),
    "Fourier": (torch.fft.fft2, ((4, 4),), "aten._fft"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_formula_is_refused(name: str) -> None:
    function, shapes, operator = REFUSED[name]
    model = nn.Sequential(Called(function)) if len(shapes) == 1 else Called(function)
    where = "0" if len(shapes) == 1 else "the model"
    with pytest.raises(ValueError, match=f"there is none for {operator}.*, which {where} calls. Register one"):
        flops.count(model, *(numbers(*shape) for shape in shapes))


def test_operators_of_others_are_refused_until_their_formula_is_registered() -> None:
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    @torch.library.custom_op("locant_tests::mix", mutates_args=())
    def mix(x: Tensor) -> Tensor:
        return x @ x.mT

    mix.register_fake(lambda x: x.new_empty(x.shape[0], x.shape[0]))
    with pytest.raises(ValueError, match="there is none for locant_tests.mix"):
        flops.count(Called(lambda x: mix(x)), numbers(3, 4))
    register_flop_formula(torch.ops.locant_tests.mix)(lambda x, **_: 2 * x[0] * x[0] * x[1])
    try:
        assert flops.count(Called(lambda x: mix(x)), numbers(3, 4)).multiply_adds == 3 * 3 * 4
    finally:
        del flop_registry[torch.ops.locant_tests.mix]
