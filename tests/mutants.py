"""Mutants: one small mistake each, made in the library's own source, and the law that must notice it.

A mutant names a function, a piece of its source and what stands there instead. `alive` builds the changed function
and puts it in the place of the real one, wherever that was imported, for as long as the block lasts.
"""

from __future__ import annotations

import __future__

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from locant import attend, forms, grid, masks, planner
from locant.kernels import reference, sdpa
from locant.positions import gate, rotary, slopes, table

assert planner.FAMILY, "imported for its caches"


@dataclass(frozen=True)
class Mutant:
    name: str
    owner: Any  # a module or class
    function: str
    old: str
    new: str
    law: str  # of laws.LAWS

    def __str__(self) -> str:
        return f"{self.name} | {self.law}"


DEFINITION = "attention_is_its_definition"
MUTANTS = (
    # offsets and tables
    Mutant("axes swapped in the table", forms.OffsetValues, "at", "enumerate(sizes)", "reversed(list(enumerate(sizes)))", DEFINITION),
    Mutant("key - query", forms.OffsetValues, "at", "queries.coordinates[..., axis, None] - keys.coordinates[..., None, :, axis]", "keys.coordinates[..., None, :, axis] - queries.coordinates[..., axis, None]", "aim_is_one_call_under_two_windows"),
    Mutant("centre off by one", forms.OffsetValues, "at", "size // 2)", "size // 2 + 1)", DEFINITION),
    Mutant("absolute query instead of offset", forms.OffsetValues, "at", "- keys.coordinates[..., None, :, axis]", "- 0 * keys.coordinates[..., None, :, axis]", "moving_every_token_changes_nothing"),
    Mutant("prefix reads the table", forms.OffsetValues, "at", "return torch.where(placed, bias, 0.0)", "return bias", DEFINITION),
    Mutant("prefix rows swapped", forms.OffsetValues, "at", "(self.both, self.query_prefix, self.key_prefix)", "(self.both, self.key_prefix, self.query_prefix)", DEFINITION),
    Mutant("corner instead of the centre", table.RelativeTable, "values", "size - 1 - needed", "0", "a_cell_attends_as_if_alone"),
    Mutant("prefix rows forgotten", table.RelativeTable, "values", "OffsetValues(centre, self.query_prefix, self.key_prefix, self.both)", "OffsetValues(centre)", DEFINITION),
    Mutant("the first of two biases alone", forms, "add_values", "sum((v.table for v in values[1:]), values[0].table)", "values[0].table", DEFINITION),
    Mutant("slopes off by one", slopes, "slopes", "(i + 1)", "i", DEFINITION),
    Mutant("distance with a sign", slopes.ALiBi, "values", ".abs()", "", "mirrors"),
    Mutant("distance grows the logits", slopes.ALiBi, "values", "-rate", "rate", DEFINITION),
    Mutant("Euclid without the root", slopes.ALiBi, "values", "total.sqrt() if", "total if", DEFINITION),
    # rotations
    Mutant("turned the other way", rotary.Rotary, "_turned", "a * cos - b * sin, a * sin + b * cos", "a * cos + b * sin, b * cos - a * sin", "rotation_by_hand"),
    Mutant("mirror image of a turn", rotary.Rotary, "_turned", "a * sin + b * cos", "a * sin - b * cos", DEFINITION),
    Mutant("pair layouts swapped", rotary.Rotary, "_turned", 'self.layout == "interleaved"', 'self.layout != "interleaved"', DEFINITION),
    Mutant("prefix turned too", rotary.Rotary, "forward", "x[..., grid.prefix :, :]", "x[..., : grid.cells, :]", DEFINITION),
    Mutant("rotation forgets the origin", rotary.Rotary, "_cos_and_sin", "line = grid.along(axis)", "line = range(grid.shape[axis])", "moved_queries_are_elsewhere"),
    Mutant("keys at the queries' places", attend._Request, "inputs", "rotation(k, key_grid)", "rotation(k, grid[: key_grid.shape[0]])", "one_query_against_a_cache_is_the_last_row"),
    # gates
    Mutant("gate without sigmoid", gate.GatedPosition, "values", "torch.sigmoid(self.gate.to(kind))", "self.gate.to(kind)", DEFINITION),
    Mutant("share swapped in the reference", reference, "probabilities", "(1 - share) * p + share * r", "share * p + (1 - share) * r", DEFINITION),
    Mutant("share swapped in sdpa", sdpa, "run", "(1 - share) * out + share *", "share * out + (1 - share) *", DEFINITION),
    Mutant("separable axes swapped", sdpa, "_by_axis", "v.movedim(2 + axis, -2)).movedim(-2, 2 + axis)", "v.movedim(1 - axis + 2 if v.ndim == 5 and v.shape[2] == v.shape[3] else 2 + axis, -2)).movedim(-2, 2 + axis)", "a_square_gate_keeps_its_axes"),
    Mutant("gate's axes swapped", gate.GatedPosition, "values", "direction[:, axis, None, None]", "direction[:, self.axes - 1 - axis, None, None]", DEFINITION),
    Mutant("gate's key - query", gate.GatedPosition, "values", "offset = q[:, None] - k", "offset = k - q[:, None]", DEFINITION),
    Mutant("gate forgets windows", sdpa, "_by_axis", "allowed = allowed & (q[:, None] == k)", "pass", "a_cell_attends_as_if_alone"),
    # masks
    Mutant("causal sees one more", masks.Causal, "pairs", "(k < q)", "(k < q + 1)", "masks_are_their_definition"),
    Mutant("causal misses itself", masks.Causal, "pairs", "torch.ones(", "torch.zeros(", "masks_are_their_definition"),
    Mutant("causal turned round", masks.Causal, "pairs", "(k < q)", "(k > q)", "one_query_against_a_cache_is_the_last_row"),
    Mutant("last axis decides", masks.Causal, "pairs", "reversed(axes)", "axes", "masks_are_their_definition"),
    Mutant("prefix sees the future", masks.Causal, "pairs", "past = past & queries.placed[..., None]", "past = past | ~queries.placed[..., None]", "prefix_tokens_see_all_and_are_seen"),
    Mutant("prefix treated as placed", masks.Windows, "pairs", "(same | ~queries.placed[..., None] | ~keys.placed[..., None, :])", "same", "masks_are_their_definition"),
    Mutant("shift dropped", masks.Windows, "_cell", "coordinates - coordinates.new_tensor(self.shift)", "coordinates", "masks_are_their_definition"),
    Mutant("shift flipped", masks.Windows, "_cell", "coordinates - coordinates", "coordinates + coordinates", "masks_are_their_definition"),
    Mutant("shift dropped in the cells", masks.Windows, "cell_of", "(coordinate - self.shift[axis])", "coordinate", "a_cell_attends_as_if_alone"),
    Mutant("shift flipped in the cells", masks.Windows, "cell_of", "coordinate - self", "coordinate + self", "a_cell_attends_as_if_alone"),
    Mutant("toward zero, not down", masks.Windows, "_cell", '"floor"', '"trunc"', "moving_every_token_changes_nothing"),
    Mutant("Padding inverted", masks.Padding, "pairs", "self.valid[", "(~self.valid)[", "padded_is_truncated"),
    Mutant("lengths off by one", masks.Padding, "from_lengths", "< lengths", "<= lengths", "senses_agree"),
    Mutant("ignore means keep", masks.Padding, "from_key_padding_mask", "cls(~mask)", "cls(mask)", "senses_agree"),
    Mutant("Segments forget the prefix", masks.Segments, "bound", "literal and self._literal[0]", "literal", DEFINITION),
    Mutant("any mask is enough", masks.Every, "pairs", "pairs = pairs & ", "pairs = pairs | ", "masks_are_their_definition"),
    # grids
    Mutant("a slice forgets where it lies", grid.Grid, "__getitem__", "self.origin[0] + start * self.stride[0]", "self.origin[0]", "a_slice_of_queries_gives_its_rows"),
    Mutant("pooled keys lie side by side", grid.Grid, "pooled", "stride=stride", "stride=self.stride", "pooled_keys_lie_at_every_second_place"),
    Mutant("columns first", grid.Grid, "coordinates", "self.shape[axis + 1 :]", "self.shape[:axis]", DEFINITION),
    # kernels
    Mutant("bias is scaled", reference, "probabilities", "logits + inputs.bias.dense(grid, key_grid)", "logits + inputs.scale * inputs.bias.dense(grid, key_grid)", DEFINITION),
    Mutant("bias is scaled in sdpa", sdpa, "_extra", "inputs.bias.at(*first)", "inputs.scale * inputs.bias.at(*first)", DEFINITION),
    Mutant("scale forgotten", sdpa, "_sdpa", "scale=inputs.scale", "scale=None", DEFINITION),
    Mutant("softmax over the queries", reference, "softmax", "e.sum(-1, keepdim=True)", "e.sum(-2, keepdim=True)", "weights_are_shares"),
    Mutant("rows of cells left as they come", sdpa, "_windowed", ".index_select(2, torch.argsort(torch.cat(order)))", "", "a_cell_attends_as_if_alone"),
    Mutant("order put back the wrong way", sdpa, "_windowed", "torch.argsort(torch.cat(order))", "torch.cat(order)", "a_cell_attends_as_if_alone"),
    Mutant("one bias for unequal offsets", sdpa, "_gathered", "queries[q0] - keys[k0] if k1 > k0 else 0", "0", "pooled_keys_lie_at_every_second_place"),
    Mutant("mask of the first cell for all", sdpa, "_windowed", "extra = extra.expand(problem.batch, group.count", "extra = extra[:, :1].expand(problem.batch, group.count", DEFINITION),
    Mutant("prefix keys left out of cells", sdpa._Group, "tokens", "torch.cat([prefix, keys], dim=1)", "torch.cat([prefix[:, :0], keys], dim=1)", "prefix_tokens_see_all_and_are_seen"),
    Mutant("samples and cells mixed up", sdpa, "_gather", ".transpose(1, 2).flatten(0, 1)", ".permute(2, 0, 1, 3, 4).flatten(0, 1)", "samples_do_not_meet"),
    Mutant("key heads in turn, not in groups", sdpa.Inputs, "grouped", "self.k.repeat_interleave(groups, 1), self.v.repeat_interleave(groups, 1)", "self.k.repeat(1, groups, 1, 1), self.v.repeat(1, groups, 1, 1)", "key_heads_serve_neighbouring_queries"),
    Mutant("is_causal without causal", sdpa, "_whole", "causal=True", "causal=False", DEFINITION),
    Mutant("NaN in padded values", attend._Request, "inputs", "k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)", "k, v", "what_padding_hides_does_not_leak"),
    Mutant("empty rows are uniform", reference, "softmax", "torch.where(empty, 1.0, total)", "total", "a_row_that_sees_nothing_is_zero"),
    Mutant("log-sum-exp without its top", reference, "softmax", "top + torch.log(total)", "torch.log(total)", DEFINITION),
    Mutant("finite -100 instead of -inf", reference, "softmax", "masked_fill(~allowed, -torch.inf)", "masked_fill(~allowed, -10.0)", "padded_is_truncated"),
)  # fmt: skip


@contextlib.contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    """The library with this mistake in it."""
    real = inspect.getattr_static(mutant.owner, mutant.function)
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(mutant.owner, mutant.function))))
    assert source.count(mutant.old) == 1, f"the source of {mutant.function} has changed: rewrite the mutant"
    function = real.__func__ if isinstance(real, classmethod) else real
    names: dict[str, Any] = {}
    code = compile(source.replace(mutant.old, mutant.new), "<mutant>", "exec", __future__.annotations.compiler_flag)
    exec(code, inspect.unwrap(function).__globals__, names)
    fake = names[mutant.function]
    holders = [m for n, m in sys.modules.items() if n.startswith("locant.") and vars(m).get(mutant.function) is real]
    holders = holders if inspect.ismodule(mutant.owner) else [mutant.owner]
    before = [(holder, name, value) for holder in holders for name, value in [(mutant.function, real)]]
    try:
        for holder, name, _ in before:
            setattr(holder, name, fake)
        with _caches_around(real, fake):
            yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
        _forget()


@contextlib.contextmanager
def _caches_around(real: Any, fake: Any) -> Iterator[None]:
    """A cache holds the function that it was built on: for a while one without a memory stands in its place."""
    modules = [m for n, m in list(sys.modules.items()) if n.startswith("locant.")]
    found = [(m, n, v) for m in modules for n, v in vars(m).items() if getattr(v, "__wrapped__", None) is real]
    found = [(m, n, v) for m, n, v in found if hasattr(v, "cache_clear")]
    _forget()
    for module, name, _ in found:
        setattr(module, name, fake)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("locant."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
