"""Multiply-adds and FLOPs of a model by part, counted from shapes alone: `count(model, *inputs) -> Flops`.

    part          what is counted, in multiply-adds; FLOPs are twice as many
    projections   products with a weight: qkv, output projections, perceptrons, heads, recurrent cells
    logits        heads · head_dim for each pair of a query and a key
    values        heads · value_dim for each pair
    position      what position adds to this: see below
    convolution   outputs · kernel volume · input channels, patch embeddings included

Pairs are those that lie in one window: the cells as they are, smaller at borders. Order, padding and other masks take
none away, as is usual. Weights that are asked for (`need_weights`) form the logits again, and count again. Of position:

    RelativeTable, ALiBi, embeddings, rotations   0: they are read, added or multiplied element by element
    GatedPosition                                 (axes + 1) · heads per pair, once for the batch
    LogCPB                                        its perceptron on every offset, once for the batch
    TransformerXL                                 W_r on every distance, once for the batch; q · R per pair
    Shaw, Decomposed                              q · R per query and offset of each axis

Not counted: softmax, norms, activations, additions, scaling, look-ups, pooling and interpolation.

This is what the mathematics needs, the same whichever kernel runs. `torch.utils.flop_counter.FlopCounterMode` counts
what a kernel does: the two agree where that kernel forms each pair in a window once; on a CPU it sees nothing of
torch's own attention.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from locant import hooks, multiply_adds
from locant.call import Call, materialise
from locant.dispatch import TorchDispatchMode, map_tree, operators, tree_leaves
from locant.kernels.kernel import Output
from locant.multiply_adds import (
    MultiplyAdds,
    aim_window,
    of_operator,
    packet_of,
    published_aim,
    published_aim_swin,
    published_swin,
)
from locant.nn.linears import only_watches
from locant.positions.position import Position
from locant.positions.transformer_xl import TransformerXL

__all__ = [
    "Flops",
    "MultiplyAdds",
    "aim_window",
    "count",
    "published_aim",
    "published_aim_swin",
    "published_swin",
]

COUNTED = (
    "Counted: products with weights, of queries and keys, and of weights and values, and convolutions, in one forward "
    "pass.\nEvery pair in a window counts, as windows are cut; order and padding take none away. What depends on "
    "position\nalone counts once, not per sample. Not counted: softmax, norms, activations, additions, look-ups, "
    "rotations."
)
_SOFTMAX = operators("_softmax", "_safe_softmax", "exp")
_LEFT_ALIGNED = operators("_nested_tensor_from_mask_left_aligned")


@dataclass(frozen=True)
class Flops:
    """What one forward pass costs.

    `modules` maps the name of each module that costs something to its parts, those of its submodules included; "" is
    the whole model. `trainable` and `frozen` are numbers of parameters, a shared one counted once.
    """

    modules: Mapping[str, MultiplyAdds]
    trainable: int
    frozen: int

    @property
    def parts(self) -> MultiplyAdds:
        return self.modules[""]

    @property
    def multiply_adds(self) -> int:
        return self.parts.total

    @property
    def flops(self) -> int:
        """Two per multiply-add."""
        return self.parts.flops

    @property
    def parameters(self) -> int:
        return self.trainable + self.frozen

    def table(self, depth: int = 2) -> str:
        """Multiply-adds by part and by module, down to names of `depth` parts."""
        rows = [["multiply-adds", *(field.name for field in fields(MultiplyAdds)), "total"]]
        for name, parts in self.modules.items():
            if not name or name.count(".") < depth:
                rows.append([name or "the model", *map(_short, (*astuple(parts), parts.total))])
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        right = ["  ".join(cell.rjust(n) for cell, n in zip(row[1:], others, strict=True)) for row in rows]
        return "\n".join(f"{row[0].ljust(first)}  {cells}" for row, cells in zip(rows, right, strict=True))

    def __str__(self) -> str:
        return (
            f"{self.table()}\n\n{self.multiply_adds:,} multiply-adds, {self.flops:,} FLOPs\n"
            f"{self.parameters:,} parameters: {self.trainable:,} trainable, {self.frozen:,} frozen\n{COUNTED}"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def count(model: nn.Module, *inputs: Any, arguments: Mapping[str, Any] | None = None) -> Flops:
    """The multiply-adds of `model(*inputs, **arguments)`, by part and by module, and the model's parameters.

    The model is copied without its numbers and run on the meta device: inputs may be `torch.empty(..., device="meta")`
    and so may the model itself, so that no size is too large. Nothing of the model changes. It is counted in the mode
    that it is in, training or evaluation, with the batch that is given.

    Args:
        model: of `locant.nn`, `locant.models` or plain torch.
        inputs: what its forward takes; of tensors only the shape and dtype matter.
        arguments: the same, by name: `{"mask": Windows((7, 7))}`.

    Raises:
        ValueError: for a model whose forward needs the values of tensors, or makes tensors on a device of its own;
            for products that no formula is known of (decompositions, Fourier transforms, operators of others);
            and whatever the model says of inputs that do not fit.
    """
    with torch.inference_mode(False), torch.enable_grad():  # without gradients torch takes fused ways
        counter = _Watch(_weightless(model))
        given, named = map_tree(_weightless, (list(inputs), dict({} if arguments is None else arguments)))
        with hooks.attending(counter.attend), counter:
            try:
                counter.model(*given, **named)
            except (RuntimeError, NotImplementedError) as error:
                raise ValueError(
                    "count needs a model that runs on the meta device, where tensors have shapes and no values; "
                    f"{counter.where or 'the model'} failed there: {error}. Check the inputs' shapes; in forward, make "
                    "tensors on the device of the input, and read no values of tensors."
                ) from error
    learned = [p.numel() for p in model.parameters() if p.requires_grad]
    return Flops(counter.modules(), sum(learned), sum(p.numel() for p in model.parameters()) - sum(learned))


class _Watch(TorchDispatchMode):
    """Sees every operation of a run, and is handed every attention in place of a kernel.

    A product with a weight is a projection. Of two activations it is one for values if either comes from a softmax,
    and else one for logits: so torch's own attention is parted as well.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._own: dict[str, Counter[str]] = {}
        self._stack: list[str] = []
        self._forced: str | None = None  # the part that all belongs to; "" is none at all
        self._weights = {_storage(x): x for x in (*model.parameters(), *model.buffers())}
        self._shares: dict[int, Tensor] = {}  # of attention; kept, so that no storage is taken for another
        self._outs: dict[Any, Any] = {}
        self._positions = [name for name, module in model.named_modules() if isinstance(module, Position)]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(only_watches(lambda module, inputs, name=name: self._stack.append(name)))
            module.register_forward_hook(only_watches(lambda module, inputs, out: self._leave()))

    @property
    def where(self) -> str:
        """The module that runs."""
        return self._stack[-1] if self._stack else ""

    def _leave(self) -> None:
        self._stack.pop()  # what a hook returns would take the place of the module's output

    def modules(self) -> dict[str, MultiplyAdds]:
        """By module, with what is below it, in the model's order."""
        total: dict[str, Counter[str]] = {"": Counter()}
        for name, parts in self._own.items():
            above = name.split(".") if name else []
            for depth in range(len(above) + 1):
                total.setdefault(".".join(above[:depth]), Counter()).update(parts)
        order = (name for name, _ in self.model.named_modules())
        return {name: MultiplyAdds(**total[name]) for name in order if name in total}

    def attend(self, call: Call, proceed: Callable[[], Output]) -> Output:
        """In place of a kernel: counts an attention, and gives tensors of the right shapes."""
        problem, schemes = call.problem, call.schemes
        with self._all_to(""):
            materialise(call)  # for what it refuses
        with self._all_to("position"):
            for bias in schemes.biases:
                if problem.bias is not None:
                    bias.values(problem.bias)
        for part, number in asdict(multiply_adds.attention(problem)).items():
            self._add(part, number)
        content = schemes.content
        if isinstance(content, TransformerXL):
            weights = content.dim * content.heads * content.head_dim
            self._add("position", multiply_adds.distances(problem, content.clamp) * weights)
        q = call.q
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = q.new_empty(q.shape[:-1], dtype=kind) if problem.lse else None
        return q.new_empty(*q.shape[:-1], problem.value_dim), lse

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        packet = packet_of(func)
        if packet in _LEFT_ALIGNED:  # reads values, to choose nested tensors, which cost the same here
            return False
        out = self._made(func, args, kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        weights = [_storage(x) in self._weights for x in tensors]
        share = any(_storage(x) in self._shares for x in tensors)
        number = of_operator(packet, args, kwargs, out)
        if number is None:
            raise ValueError(
                f"count needs a formula for each product of tensors; there is none for {packet}, which "
                f"{self.where or 'the model'} calls. Register one with torch.utils.flop_counter.register_flop_formula, "
                "or leave that part out of the model."
            )
        if number:
            self._add(self._part(packet, any(weights), share), number)
        if weights and all(weights):  # what is made of weights alone is one
            self._keep(self._weights, out)
        elif packet in _SOFTMAX or (share and not number):
            self._keep(self._shares, out)
        return out

    def _keep(self, kind: dict[int, Tensor], out: Any) -> None:
        kind.update((_storage(x), x) for x in tree_leaves(out) if isinstance(x, Tensor))

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives, remembered: torch takes up to a millisecond for some, and the same layers recur."""
        key = (func, _described((args, *sorted(kwargs.items()))))
        if key in self._outs:
            return map_tree(lambda make: make(), self._outs[key])
        out = func(*args, **kwargs)
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        shared = {_storage(x) for x in given} & {_storage(x) for x in made}  # by a view, or in place
        if not shared and all(x.is_meta for x in (*given, *made)):
            self._outs[key] = map_tree(_maker, out)
        return out

    def _part(self, packet: Any, weight: bool, share: bool) -> str:
        if any(_within(self.where, name) for name in self._positions):
            return "position"
        if "conv" in packet.__name__:
            return "convolution"
        return "projections" if weight else "values" if share else "logits"

    def _add(self, part: str, number: int) -> None:
        part = part if self._forced is None else self._forced
        if part and number:
            self._own.setdefault(self.where, Counter())[part] += number

    @contextmanager
    def _all_to(self, part: str) -> Iterator[None]:
        self._forced = part
        try:
            yield
        finally:
            self._forced = None


def _weightless(x: Any) -> Any:
    """A tensor or a module without numbers, on the meta device; anything else as it is."""
    if isinstance(x, Tensor):
        bare = torch.empty_like(x, device="meta")
        return nn.Parameter(bare, x.requires_grad) if isinstance(x, nn.Parameter) else bare
    if not isinstance(x, nn.Module):
        return x
    return copy.deepcopy(x, {id(own): _weightless(own) for own in (*x.parameters(), *x.buffers())})


def _described(x: Any) -> Any:
    """An argument as a key: numbers of different kinds differ, of tensors the numbers do not."""
    if isinstance(x, Tensor):
        return Tensor, x.shape, x.stride(), x.dtype, x.device.type
    return tuple(_described(y) for y in x) if isinstance(x, list | tuple) else (type(x), x)


def _maker(x: Any) -> Callable[[], Any]:
    if not isinstance(x, Tensor):
        return lambda: x
    return partial(torch.empty_strided, x.shape, x.stride(), dtype=x.dtype, device="meta")


def _storage(x: Tensor) -> int:
    return int(StorageWeakRef(x.untyped_storage()).cdata)


def _within(name: str, above: str) -> bool:
    return not above or name == above or name.startswith(f"{above}.")


def _short(number: int) -> str:
    """Four digits: 4.351 G."""
    power = min(4, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.4g}{('', ' k', ' M', ' G', ' T')[power]}"
