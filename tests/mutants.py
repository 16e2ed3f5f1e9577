# ruff: noqa: E501  (a table: one mutant a line, its source as it stands)
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

from locant import attend, forms, grid, layout, masks, operators, problem, separable
from locant.kernels import native, reference, sdpa
from locant.positions import buckets, decomposed, field, gate, rotary, slopes, table, transformer_xl


@dataclass(frozen=True)
class Mutant:
    name: str
    owner: Any  # a module or class
    function: str
    old: str
    new: str
    law: str  # of laws.LAWS; after a slash, a word in the names of the cases that are tried

    def __str__(self) -> str:
        return f"{self.name} | {self.law}"

    @property
    def compiled(self) -> bool:
        """Whether only the compiled kernels run through it."""
        return self.owner in (native, operators, layout, layout.Layout)


TRUTH = "attention_is_its_definition"
DROPOUT = "dropout_drops_the_same_weights_backward"
PACKED = "packed_is_the_same_attention"
SLICE = "a_slice_of_queries_gives_its_rows"
PREFIX = "prefix_tokens_see_all_and_are_seen"
MASKS = "masks_are_their_definition"
ALONE = "a_cell_attends_as_if_alone"
MOVED = "moving_every_token_changes_nothing"
CACHE = "one_query_against_a_cache_is_the_last_row"
POOLED = "pooled_keys_lie_at_every_second_or_third_place"
AT, TERMS, MAKE = forms.OffsetValues, forms.AxialValues, attend._Request

MUTANTS = (
    # offsets and tables
    Mutant("axes swapped in the table", AT, "at", "enumerate(sizes)", "reversed(list(enumerate(sizes)))", f"{TRUTH}/table-2d"),
    Mutant("key - query", AT, "at", "queries.coordinates[..., axis, None] - keys.coordinates[..., None, :, axis]", "keys.coordinates[..., None, :, axis] - queries.coordinates[..., axis, None]", "aim_is_one_call_under_two_windows"),
    Mutant("centre off by one", AT, "at", "size // 2)", "size // 2 + 1)", f"{TRUTH}/table-1d"),
    Mutant("query's place instead of the offset", AT, "at", "- keys.coordinates[..., None, :, axis]", "- 0 * keys.coordinates[..., None, :, axis]", MOVED),
    Mutant("prefix reads the table", AT, "at", "return torch.where(placed, bias, 0.0)", "return bias", f"{TRUTH}/under-prefix"),
    Mutant("prefix rows swapped", AT, "at", "(self.both, self.query_prefix, self.key_prefix)", "(self.both, self.key_prefix, self.query_prefix)", f"{TRUTH}/table-2d-prefix"),
    Mutant("corner of the table, not its centre", table.RelativeTable, "values", "size - 1 - needed", "0", ALONE),
    Mutant("prefix rows forgotten", table.RelativeTable, "values", "OffsetValues(centre, self.query_prefix, self.key_prefix, self.both)", "OffsetValues(centre)", f"{TRUTH}/table-2d-prefix"),
    Mutant("the first of two biases alone", forms, "add_values", "sum((v.table for v in values[1:]), values[0].table)", "values[0].table", f"{TRUTH}/table+alibi"),
    Mutant("slopes off by one", slopes, "slopes", "(i + 1)", "i", f"{TRUTH}/alibi-1d"),
    Mutant("distance with a sign", slopes.ALiBi, "values", ".abs()", "", "mirrors/alibi"),
    Mutant("distance grows the logits", slopes.ALiBi, "values", "-rate", "rate", f"{TRUTH}/alibi-1d"),
    Mutant("Euclid without the root", slopes.ALiBi, "values", "total.sqrt() if", "total if", f"{TRUTH}/euclidean"),
    Mutant("T5's sides swapped", buckets.T5Buckets, "bucket", "(offsets < 0)", "(offsets > 0)", f"{TRUTH}/t5-1d"),
    Mutant("continuous bias without a sign", field.LogCPB, "values", "offset.sign() *", "", "mirrors/cpb"),
    # content
    Mutant("terms of key - query", TERMS, "at", "queries.coordinates[..., axis, None] - own[:, None]", "own[:, None] - queries.coordinates[..., axis, None]", f"{TRUTH}/xl-1d"),
    Mutant("terms of another axis", TERMS, "at", "enumerate(self.terms)", "enumerate(reversed(self.terms))", f"{TRUTH}/decomposed-3d"),
    Mutant("terms of the first query for all", TERMS, "at", "line[:, :, queries.index]", "line[:, :, 0 * queries.index]", f"{TRUTH}/xl-1d"),
    Mutant("prefix has terms", TERMS, "at", "torch.where(queries.placed[..., None], line[:, :, queries.index], 0.0)", "line[:, :, queries.index]", f"{TRUTH}/decomposed-2d-prefix"),
    Mutant("terms spread over the box the wrong way", TERMS, "at", "n if a == axis else 1", "n if len(box) - 1 - a == axis else 1", "decomposed_on_a_square_keeps_its_axes"),
    Mutant("terms of the first cell for all", sdpa, "_extra", "inputs.content.at(queries, keys, box)", "inputs.content.at(*(Tokens(*(t[:1] for t in x)) for x in (queries, keys)), box)", f"{ALONE}/decomposed"),
    Mutant("q + u meets distances", MAKE, "inputs", "terms, q = content.values(problem.content, q, scale), content.queries(q)", "q = content.queries(q); terms = content.values(problem.content, q, scale)", f"{TRUTH}/xl-1d"),
    Mutant("distances not scaled", transformer_xl.TransformerXL, "values", "scale * ((q", "1.0 * ((q", f"{TRUTH}/xl-1d"),
    Mutant("u in v's place", transformer_xl.TransformerXL, "values", "self.biases()[1]", "self.biases()[0]", f"{TRUTH}/xl-1d"),
    Mutant("clamp forgotten", transformer_xl.TransformerXL, "values", "near = r if self.clamp is None else min(r, self.clamp)", "near = r", f"{TRUTH}/xl-1d"),
    Mutant("decomposed terms scaled", decomposed.Decomposed, "values", "terms.append(q @", "terms.append(scale * q @", f"{TRUTH}/decomposed-3d"),
    Mutant("content turned by rotation", MAKE, "inputs", "content.values(problem.content, q, scale), content", "content.values(problem.content, next((p(q, grid) for p in positions if isinstance(p, Rotation)), q), scale), content", f"{MOVED}/shaw"),
    # rotations
    Mutant("turned the other way", rotary.Rotary, "_cos_and_sin", "angles.sin()", "-angles.sin()", "rotation_by_hand"),
    Mutant("mirror image of a turn", rotary.Rotary, "_turned", "a * sin + b * cos", "a * sin - b * cos", f"{TRUTH}/rotary-1d-halves"),
    Mutant("pair layouts swapped", rotary.Rotary, "_turned", '"interleaved" and', '"halves" and', f"{TRUTH}/rotary-1d-halves"),
    Mutant("prefix turned, cells not", rotary.Rotary, "forward", "x[..., grid.prefix :, :]", "x[..., : grid.cells, :]", f"{TRUTH}/rotary-2d-prefix"),
    Mutant("rotation forgets the origin", rotary.Rotary, "_cos_and_sin", "line = grid.along(axis)", "line = range(grid.shape[axis])", "moved_queries_are_elsewhere"),
    Mutant("keys turned from 0", MAKE, "inputs", "rotation(k, key_grid)", "rotation(k, Grid(*key_grid.shape, prefix=key_grid.prefix))", "moved_queries_are_elsewhere"),
    # gates
    Mutant("gate without sigmoid", gate.GatedPosition, "values", "torch.sigmoid(self.gate.to(kind))", "self.gate.to(kind)", f"{TRUTH}/gate-1d"),
    Mutant("share swapped in the reference", reference, "probabilities", "(1 - share) * p + share * r", "share * p + (1 - share) * r", f"{TRUTH}/gate-1d"),
    Mutant("share swapped axis by axis", separable, "mixed", "(1 - share) * out + share *", "share * out + (1 - share) *", f"{TRUTH}/gate-2d"),
    Mutant("axes of values swapped", separable, "by_axis", "v.movedim(2 + axis, -2)).movedim(-2, 2 + axis)", "v.movedim(1 + problem.grid.axes - axis, -2)).movedim(-2, 1 + problem.grid.axes - axis)", "a_square_gate_keeps_its_axes"),
    Mutant("gate's axes swapped", gate.GatedPosition, "values", "direction[:, axis, None, None]", "direction[:, self.axes - 1 - axis, None, None]", f"{TRUTH}/gate-2d"),
    Mutant("gate's key - query", gate.GatedPosition, "values", "offset = q[:, None] - k", "offset = k - q[:, None]", f"{TRUTH}/gate-1d"),
    Mutant("gate forgets windows", separable, "by_axis", "allowed = allowed & (q[:, None] == k)", "pass", f"{ALONE}/gate"),
    Mutant("gate factorises under masks", separable, "refuses", "if beyond is not None:", "if False:", f"{TRUTH}/gate-2d-twice"),
    Mutant("gate's weights dropped by halves", separable, "refuses", "if problem.dropout:", "if False:", f"{DROPOUT}/gate"),
    # masks
    Mutant("causal sees one more", masks.Causal, "pairs", "(k < q)", "(k < q + 1)", MASKS),
    Mutant("causal misses itself", masks.Causal, "pairs", "torch.ones(", "torch.zeros(", MASKS),
    Mutant("causal turned round", masks.Causal, "pairs", "(k < q)", "(k > q)", CACHE),
    Mutant("last axis decides", masks.Causal, "pairs", "reversed(axes)", "axes", MASKS),
    Mutant("prefix sees the future", masks.Causal, "pairs", "past = past & queries.placed[..., None]", "past = past | ~queries.placed[..., None]", PREFIX),
    Mutant("prefix treated as placed", masks.Windows, "pairs", "(same | ~queries.placed[..., None] | ~keys.placed[..., None, :])", "same", MASKS),
    Mutant("shift dropped", masks.Windows, "_cell", "coordinates - coordinates.new_tensor(self.shift)", "coordinates", MASKS),
    Mutant("shift flipped", masks.Windows, "_cell", "coordinates - coordinates", "coordinates + coordinates", MASKS),
    Mutant("shift dropped in the cells", masks.Windows, "cell_of", "(coordinate - self.shift[axis])", "coordinate", ALONE),
    Mutant("shift flipped in the cells", masks.Windows, "cell_of", "coordinate - self", "coordinate + self", ALONE),
    Mutant("toward zero, not down", masks.Windows, "_cell", '"floor"', '"trunc"', MASKS),
    Mutant("Padding inverted", masks.Padding, "pairs", "self.valid[", "(~self.valid)[", "padded_is_truncated"),
    Mutant("lengths off by one", masks.Padding, "from_lengths", "< lengths", "<= lengths", "senses_agree"),
    Mutant("ignore means keep", masks.Padding, "from_key_padding_mask", "cls(~mask)", "cls(mask)", "senses_agree"),
    Mutant("Segments forget the prefix", masks.Segments, "bound", "literal and self._literal[0]", "literal", f"{TRUTH}/table-2d-prefix"),
    Mutant("any mask is enough", masks.Every, "pairs", "pairs = pairs & ", "pairs = pairs | ", MASKS),
    # grids
    Mutant("a slice forgets where it lies", grid.Grid, "__getitem__", "self.origin[0] + start * self.stride[0]", "self.origin[0]", SLICE),
    Mutant("pooled keys lie side by side", grid.Grid, "pooled", "stride=stride", "stride=self.stride", POOLED),
    Mutant("columns first", grid.Grid, "coordinates", "self.shape[axis + 1 :]", "self.shape[:axis]", f"{TRUTH}/table-2d"),
    # kernels
    Mutant("bias is scaled", reference, "probabilities", "logits + inputs.bias.dense(grid, key_grid)", "logits + inputs.scale * inputs.bias.dense(grid, key_grid)", f"{TRUTH}/table-1d"),
    Mutant("bias is scaled in sdpa", sdpa, "_extra", "inputs.bias.at(*first)", "inputs.scale * inputs.bias.at(*first)", f"{TRUTH}/table-1d"),
    Mutant("scale forgotten", sdpa, "_sdpa", "scale=inputs.scale", "scale=None", f"{TRUTH}/none"),
    Mutant("softmax over the queries", reference, "softmax", "e.sum(-1, keepdim=True)", "e.sum(-2, keepdim=True).transpose(-1, -2)", "weights_are_shares"),
    Mutant("rows of cells left as they come", sdpa, "_windowed", ".index_select(2, torch.argsort(torch.cat(order)))", "", ALONE),
    Mutant("order put back the wrong way", sdpa, "_windowed", "torch.argsort(torch.cat(order))", "torch.cat(order)", ALONE),
    Mutant("one bias for unequal offsets", sdpa, "_gathered", "queries[q0] - keys[k0] if k1 > k0 else 0", "0", POOLED),
    Mutant("mask of the first cell for all", sdpa, "_windowed", "extra = extra.expand(problem.batch, group.count", "extra = extra[:, :1].expand(problem.batch, group.count", f"{TRUTH}/none-cells"),
    Mutant("prefix keys left out of cells", sdpa._Group, "tokens", "torch.cat([prefix, keys], dim=1)", "torch.cat([prefix[:, :0], keys], dim=1)", PREFIX),
    Mutant("samples and cells mixed up", sdpa, "_gather", ".transpose(1, 2).flatten(0, 1)", ".permute(2, 0, 1, 3, 4).flatten(0, 1)", "samples_do_not_meet"),
    Mutant("key heads in turn, not in groups", problem.Inputs, "grouped", "k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)", "k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)", "key_heads_serve_neighbouring_queries"),
    Mutant("is_causal without causal", sdpa, "_whole", "causal=True", "causal=False", CACHE),
    Mutant("NaN in padded values", problem.Inputs, "grouped", "k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)", "k, v", "what_padding_hides_does_not_leak"),
    Mutant("empty rows are uniform", reference, "softmax", "torch.where(empty, 1.0, total)", "total", "a_row_that_sees_nothing_is_zero"),
    Mutant("log-sum-exp without its top", reference, "softmax", "top + torch.log(total)", "torch.log(total)", f"{TRUTH}/none"),
    Mutant("finite -10 instead of -inf", reference, "softmax", "masked_fill(~allowed, -torch.inf)", "masked_fill(~allowed, -10.0)", "padded_is_truncated"),
    # what the compiled kernels are told
    Mutant("key - query in places", layout, "_places", "(line - start) * step", "(start - line) * step", f"{TRUTH}/table-1d"),
    Mutant("columns before rows in places", layout, "layout", "needed[axis + 1 :]", "needed[:axis]", f"{TRUTH}/table-2d-shifted"),
    Mutant("middle of the table off by one", layout, "layout", "+ middle)", "+ middle + 1)", f"{TRUTH}/table-1d"),
    Mutant("middle of the table forgotten", layout, "layout", "+ middle)", "+ 0 * middle)", f"{TRUTH}/table-1d"),
    Mutant("first of two orders alone", layout, "layout", "for order in causal]", "for order in causal[:1]]", f"{TRUTH}/none-twice"),
    Mutant("a slice forgets its place in a layout", layout, "_read", "origin=o", "origin=(0,) * axes", f"{SLICE}/none"),
    Mutant("pooled keys side by side in a layout", layout, "_read", "stride=s", "stride=(1,) * axes", f"{POOLED}/none"),
    Mutant("shift dropped in a layout", layout, "_read", "Windows(take(axes), take(axes))", "Windows(take(axes), (take(axes), (0,) * axes)[1])", f"{ALONE}/none"),
    Mutant("prefix queries in no cell", layout, "_lists", "if grid.prefix:", "if False:", PREFIX),
    Mutant("prefix keys in no cell", layout, "_lists", "np.concatenate([prefix, keys])", "keys", PREFIX),
    Mutant("cells alike, whatever their offsets", layout, "_kind", "grid.along(axis)[q0] - key_grid.along(axis)[k0] if k1 > k0 else 0", "0", POOLED),
    Mutant("keys belong to one cell each", layout.Layout, "shared", "len(self.key) != self.keys or", "len(self.key) < 0 or self.cells == 0 and", f"{TRUTH}/table-2d-prefix-windows"),
    Mutant("earlier is later", layout, "_ranks", "q * size + queries[axis] - low, k * size + keys[axis] - low", "q * size - queries[axis] - low, k * size - keys[axis] - low", CACHE),
    Mutant("last axis decides in ranks", layout, "_ranks", "for axis in range(grid.axes) if", "for axis in reversed(range(grid.axes)) if", f"{TRUTH}/table-2d-prefix-causal"),
    Mutant("prefix sees the future in ranks", layout, "_ranks", "q[: grid.prefix] = k[: key_grid.prefix] = FIRST", "q[: grid.prefix], k[: key_grid.prefix] = -FIRST, FIRST", PREFIX),
    Mutant("prefix rows swapped in native", native, "_bias", "(bias.query_prefix, bias.key_prefix, bias.both)", "(bias.key_prefix, bias.query_prefix, bias.both)", f"{TRUTH}/table-2d-prefix"),
    Mutant("scale forgotten in native", native, "run", "inputs.scale, inputs.dropout", "1.0, inputs.dropout", f"{TRUTH}/none"),
    Mutant("padding inverted in native", native, "_masks", "valid = member.valid if", "valid = ~member.valid if", "padded_is_truncated"),
    Mutant("last of two paddings alone", native, "_masks", "valid & member.valid", "member.valid", f"{TRUTH}/none-twice"),
    Mutant("the prefix has a segment", native, "_masks", "member.free(problem.grid, problem.key_grid)", "(0, 0)", f"{TRUTH}/table-2d-prefix-samples"),
    Mutant("segments of queries and keys swapped", native, "_masks", "member.ids, member.key_ids", "member.key_ids, member.ids", f"{TRUTH}/table-2d-prefix-samples"),
    # what the operators do with it
    Mutant("a table as it lies in memory", operators, "_bias", "table.detach().to(kind).contiguous()", "table.detach().to(kind)", CACHE),
    Mutant("rows of a bias in another order", operators, "_bias", "for row in learned.unbind(0)", "for row in reversed(learned.unbind(0))", f"{TRUTH}/table-2d-prefix"),
    Mutant("masks of the first sample for all", operators, "_masks", "0 if held is None or held.shape[0] == 1 else held.stride(0)", "0", f"{TRUTH}/none-cells"),
    Mutant("parts of a projection swapped", operators, "_unpacked", "q, k, v =", "k, q, v =", PACKED),
    Mutant("scale forgotten backward", operators, "_backward", "scale, dropout, 0 if", "1.0, dropout, 0 if", f"{TRUTH}/none"),
    Mutant("log-sum-exp without a gradient", operators, "_backward", "_address(dlse), _address(dtable)", "0, _address(dtable)", f"{TRUTH}/none"),
    Mutant("gradients of prefix rows swapped", operators, "_backward", "for row in drows.unbind(0)", "for row in reversed(drows.unbind(0))", f"{TRUTH}/table-2d-prefix"),
    Mutant("a table learns if its prefix rows do", operators, "_differentiate", "[leading : leading + 2]", "[leading + 1 : leading + 2]", f"{TRUTH}/table-1d"),
    Mutant("another dropout backward", operators, "_backward", "int(seed.item())", "1 + int(seed.item())", DROPOUT),
    Mutant("no dropout backward", operators, "_backward", "scale, dropout, 0 if", "scale, 0.0, 0 if", DROPOUT),
)  # fmt: skip


@contextlib.contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    """The library with this mistake in it."""
    real = inspect.getattr_static(mutant.owner, mutant.function)
    if inspect.ismodule(mutant.owner):
        holders = [
            m for n, m in sys.modules.items() if n.startswith("locant.") and vars(m).get(mutant.function) is real
        ]
    else:
        holders = [mutant.owner]
    caches = _caches()
    places = [(holder, mutant.function) for holder in holders]
    places += [(module, name) for module, name, cache in caches if cache.__wrapped__ is real]  # they hold the real one
    before = [(holder, name, inspect.getattr_static(holder, name)) for holder, name in places]
    fake = changed(mutant, real)
    try:
        for holder, name, _ in before:
            setattr(holder, name, fake)
        for _, _, cache in caches:
            cache.cache_clear()
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
        for _, _, cache in caches:
            cache.cache_clear()


def changed(mutant: Mutant, real: Any) -> Any:
    """The function with the mistake, built from its source in its own module."""
    real = real.__func__ if isinstance(real, classmethod) else real.fget if isinstance(real, property) else real
    function = inspect.unwrap(real)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutant.old) == 1, f"the source of {mutant.function} has changed: rewrite the mutant"
    names: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    exec(compile(source.replace(mutant.old, mutant.new), "<mutant>", "exec", flags), function.__globals__, names)
    return names[mutant.function]


def _caches() -> list[tuple[Any, str, Any]]:
    """Every cache of the library, and where it hangs."""
    modules = [module for name, module in sys.modules.items() if name.startswith("locant.")]
    return [(m, name, value) for m in modules for name, value in list(vars(m).items()) if hasattr(value, "cache_clear")]
