# ruff: noqa: E501  (a table: one mutant a line)
"""Mutants: one small mistake each, made in the library's own functions, and the law that must notice it.

A mutant names a function, a piece of its syntax and what stands there instead (mutation.py says how both are written).
`alive` puts the changed function in the place of the real one for as long as the block lasts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from mutation import function, replaced

# what only the compiled kernels run through
COMPILED = {"locant.kernels.native", "locant.layout", "locant.operands", "locant.operators", "locant.operate"}


@dataclass(frozen=True)
class Mutant:
    name: str
    where: str  # as much of a function's full name as is clear
    old: str
    new: str
    law: str  # of laws.LAWS; after a slash, a word in the names of the cases that are tried

    def __str__(self) -> str:
        return f"{self.name} | {self.law}"

    @property
    def compiled(self) -> bool:
        """Whether only the compiled kernels run through it."""
        return function(self.where).module in COMPILED


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

MUTANTS = (
    # offsets and tables
    Mutant("axes swapped in the table", "OffsetValues.at", "enumerate(_a)", "reversed(list(enumerate(_a)))", f"{TRUTH}/table-2d"),
    Mutant("key - query", "tokens.offset", "_a - _b", "_b - _a", "aim_is_one_call_under_two_windows"),
    Mutant("centre off by one", "OffsetValues.at", "_a // 2", "_a // 2 + 1", f"{TRUTH}/table-1d"),
    Mutant("query's place instead of the offset", "OffsetValues.at", "offset(_a, _b)", "offset(_a, 0 * _b)", MOVED),
    Mutant("prefix reads the table", "OffsetValues.at", "torch.where(_a, _b, 0.0)", "_b", f"{TRUTH}/under-prefix"),
    Mutant("prefix rows swapped", "OffsetValues.at", "(self.both, self.query_prefix, self.key_prefix)", "(self.both, self.key_prefix, self.query_prefix)", f"{TRUTH}/table-2d-prefix"),
    Mutant("corner of the table, not its centre", "RelativeTable.within", "_a - 1 - _b", "0", ALONE),
    Mutant("prefix rows forgotten", "Bias.values", "OffsetValues(_a, ...)", "OffsetValues(_a)", f"{TRUTH}/table-2d-prefix"),
    Mutant("the first of two biases alone", "forms.add_values", "sum(_a, values[0].table)", "values[0].table", f"{TRUTH}/table+alibi"),
    Mutant("slopes off by one", "slopes.slopes", "_a + 1", "_a", f"{TRUTH}/alibi-1d"),
    Mutant("distance with a sign", "ALiBi.at", "_a.abs()", "_a", "mirrors/alibi"),
    Mutant("distance grows the logits", "ALiBi.at", "-_a * _b", "_a * _b", f"{TRUTH}/alibi-1d"),
    Mutant("Euclid without the root", "ALiBi.at", "_a.sqrt()", "_a", f"{TRUTH}/euclidean"),
    Mutant("T5's sides swapped", "T5Buckets.bucket", "_a < 0", "_a > 0", f"{TRUTH}/t5-1d"),
    Mutant("continuous bias without a sign", "LogCPB.at", "_a.sign() * _b", "_b", "mirrors/cpb"),
    # content
    Mutant("terms of key - query", "AxialTerms.at", "offset(_a, _b)", "-offset(_a, _b)", f"{TRUTH}/xl-1d"),
    Mutant("terms of another axis", "AxialTerms.at", "zip(self.lines, self.ranges, strict=_a)", "zip(self.lines[::-1], self.ranges[::-1], strict=_a)", f"{TRUTH}/decomposed-3d"),
    Mutant("terms of the first query for all", "AxialTerms.at", "_a[:, :, queries.index]", "_a[:, :, 0 * queries.index]", f"{TRUTH}/xl-1d"),
    Mutant("prefix has terms", "AxialTerms.at", "torch.where(_a, _b, 0.0)", "_b", f"{TRUTH}/decomposed-2d-prefix"),
    Mutant("terms spread over the box the wrong way", "AxialTerms.at", "n if a == axis else 1", "n if len(box) - 1 - a == axis else 1", "decomposed_on_a_square_keeps_its_axes"),
    Mutant("terms of the first cell for all", "sdpa._extra", "_a.at(queries, keys, box)", "_a.at(*(Tokens(*(t[:1] for t in x)) for x in (queries, keys)), box)", f"{ALONE}/decomposed"),
    Mutant("q + u meets distances", "materialise", "_t, _q = _v, _u.queries(_q)", "_q = _u.queries(_q); _t = _v", f"{TRUTH}/xl-1d"),
    Mutant("distances not scaled", "TransformerXL.values", "AxialValues(..., factor=scale)", "AxialValues(..., factor=1.0)", f"{TRUTH}/xl-1d"),
    Mutant("u in v's place", "TransformerXL.values", "self.biases()[1]", "self.biases()[0]", f"{TRUTH}/xl-1d"),
    Mutant("clamp forgotten", "TransformerXL.ranges", "_r if self.clamp is None else _a", "_r", f"{TRUTH}/xl-1d"),
    Mutant("decomposed terms scaled", "Decomposed.values", "AxialValues(q, ...)", "AxialValues(scale * q, ...)", f"{TRUTH}/decomposed-3d"),
    Mutant("content turned by rotation", "materialise", "_c.values(_f, q, _s)", "_c.values(_f, q if schemes.rotation is None else schemes.rotation(q, grid), _s)", f"{MOVED}/shaw"),
    # rotations
    Mutant("turned the other way", "Rotary._cos_and_sin", "_a.sin()", "-_a.sin()", "rotation_by_hand"),
    Mutant("mirror image of a turn", "Rotary._turned", "a * sin + b * cos", "a * sin - b * cos", f"{TRUTH}/rotary-1d-halves"),
    Mutant("pair layouts swapped", "Rotary._turned", 'self.layout == "interleaved" and _a', 'self.layout == "halves" and _a', f"{TRUTH}/rotary-1d-halves"),
    Mutant("prefix turned, cells not", "Rotary.turn", "x[..., grid.prefix :, :]", "x[..., : grid.cells, :]", f"{TRUTH}/rotary-2d-prefix"),
    Mutant("rotation forgets the origin", "Rotary._cos_and_sin", "grid.line(_a, _b, _c)", "Grid(*grid.shape).line(_a, _b, _c)", "moved_queries_are_elsewhere"),
    Mutant("keys turned from 0", "materialise", "_r(k, key_grid)", "_r(k, Grid(*key_grid.shape, prefix=key_grid.prefix))", "moved_queries_are_elsewhere"),
    # gates
    Mutant("gate without sigmoid", "GatedPosition.values", "torch.sigmoid(_a)", "_a", f"{TRUTH}/gate-1d"),
    Mutant("share swapped in the reference", "reference.probabilities", "(1 - share) * _a + share * _b", "share * _a + (1 - share) * _b", f"{TRUTH}/gate-1d"),
    Mutant("share swapped axis by axis", "separable.mixed", "(1 - share) * _a + share * _b", "share * _a + (1 - share) * _b", f"{TRUTH}/gate-2d"),
    Mutant("axes of values swapped", "separable.by_axis", "(_p @ v.movedim(2 + axis, -2)).movedim(-2, 2 + axis)", "(_p @ v.movedim(1 + problem.grid.axes - axis, -2)).movedim(-2, 1 + problem.grid.axes - axis)", "a_square_gate_keeps_its_axes"),
    Mutant("gate's axes swapped", "GatedPosition.values", "direction[:, axis, None, None]", "direction[:, self.axes - 1 - axis, None, None]", f"{TRUTH}/gate-2d"),
    Mutant("gate's key - query", "GatedPosition.values", "q[:, None] - k", "k - q[:, None]", f"{TRUTH}/gate-1d"),
    Mutant("gate forgets windows", "separable.by_axis", "allowed & _a", "allowed", f"{ALONE}/gate"),
    Mutant("gate factorises under masks", "separable.refuses", "beyond is not None", "False", f"{TRUTH}/gate-2d-twice"),
    Mutant("gate's weights dropped by halves", "separable.refuses", "if problem.dropout: return _a", "pass", f"{DROPOUT}/gate"),
    # masks
    Mutant("causal sees one more", "Causal.pairs", "k < q", "k < q + 1", MASKS),
    Mutant("causal misses itself", "Causal.pairs", "torch.ones(..., dtype=_a, device=_b)", "torch.zeros(..., dtype=_a, device=_b)", MASKS),
    Mutant("causal turned round", "Causal.pairs", "k < q", "k > q", CACHE),
    Mutant("last axis decides", "Causal.pairs", "reversed(_a)", "_a", MASKS),
    Mutant("prefix sees the future", "Causal.pairs", "past & queries.placed[_a]", "past | ~queries.placed[_a]", PREFIX),
    Mutant("prefix treated as placed", "Windows.pairs", "_a | ~queries.placed[_b] | ~keys.placed[_c]", "_a", MASKS),
    Mutant("shift dropped", "Windows._cell", "_a - _b", "_a", MASKS),
    Mutant("shift flipped", "Windows._cell", "_a - _b", "_a + _b", MASKS),
    Mutant("shift dropped in the cells", "Windows.cell_of", "_a - _b", "_a", ALONE),
    Mutant("shift flipped in the cells", "Windows.cell_of", "_a - _b", "_a + _b", ALONE),
    Mutant("toward zero, not down", "Windows._cell", '"floor"', '"trunc"', MASKS),
    Mutant("Padding inverted", "Padding.pairs", "self.valid[_a]", "(~self.valid)[_a]", "padded_is_truncated"),
    Mutant("lengths off by one", "Padding.from_lengths", "read_lengths(_a, lengths, tokens, _b)", "read_lengths(_a, (lengths + 1).clamp(max=tokens), tokens, _b)", "senses_agree"),
    Mutant("ignore means keep", "Padding.from_key_padding_mask", "cls(~_a)", "cls(_a)", "senses_agree"),
    Mutant("Segments forget the prefix", "Segments.bound", "own and self._literal[0]", "own", f"{TRUTH}/table-2d-prefix"),
    Mutant("any mask is enough", "Every.pairs", "pairs & _a", "pairs | _a", MASKS),
    # grids
    Mutant("a slice forgets where it lies", "Grid.__getitem__", "self.origin[0] + _a", "self.origin[0]", SLICE),
    Mutant("pooled keys lie side by side", "Grid.pooled", "stride=stride", "stride=self.stride", POOLED),
    Mutant("columns first", "Grid.coordinates", "self.shape[axis + 1 :]", "self.shape[:axis]", f"{TRUTH}/table-2d"),
    # kernels
    Mutant("bias is scaled", "reference.probabilities", "inputs.bias.dense(...)", "inputs.scale * inputs.bias.dense(...)", f"{TRUTH}/table-1d"),
    Mutant("bias is scaled in sdpa", "sdpa._extra", "inputs.bias.at(*first)", "inputs.scale * inputs.bias.at(*first)", f"{TRUTH}/table-1d"),
    Mutant("scale forgotten", "sdpa._sdpa", "scale=_a", "scale=None", f"{TRUTH}/none"),
    Mutant("softmax over the queries", "softmax.softmax", "e.sum(-1, keepdim=True)", "e.sum(-2, keepdim=True).transpose(-1, -2)", "weights_are_shares"),
    Mutant("rows of cells left as they come", "sdpa._windowed", "_a.index_select(2, torch.argsort(_b))", "_a", ALONE),
    Mutant("order put back the wrong way", "sdpa._windowed", "torch.argsort(_a)", "_a", ALONE),
    Mutant("one bias for unequal offsets", "sdpa._groups", "offsets_kind(...)", "offsets_kind(...)[:2]", POOLED),
    Mutant("mask of the first cell for all", "sdpa._by_cell", "_a.expand(problem.batch, cells, ...)", "_a[:, :1].expand(problem.batch, cells, ...)", f"{TRUTH}/none-cells"),
    Mutant("prefix keys left out of cells", "sdpa._Group.tokens", "torch.cat([_a, _b], dim=1)", "torch.cat([_a[:, :0], _b], dim=1)", PREFIX),
    Mutant("samples and cells mixed up", "sdpa._gather", "_a.transpose(1, 2).flatten(0, 1)", "_a.permute(2, 0, 1, 3, 4).flatten(0, 1)", "samples_do_not_meet"),
    Mutant("key heads in turn, not in groups", "Inputs.grouped", "(k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))", "(k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1))", "key_heads_serve_neighbouring_queries"),
    Mutant("is_causal without causal", "sdpa._whole", "causal=True", "causal=False", CACHE),
    Mutant("NaN in padded values", "Inputs.grouped", "k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)", "pass", "what_padding_hides_does_not_leak"),
    Mutant("empty rows are uniform", "softmax.softmax", "torch.where(empty, 1.0, total)", "total", "a_row_that_sees_nothing_is_zero"),
    Mutant("log-sum-exp without its top", "softmax.softmax", "top + _a", "_a", f"{TRUTH}/none"),
    Mutant("finite -10 instead of -inf", "softmax.softmax", "_a.masked_fill(_b, -torch.inf)", "_a.masked_fill(_b, -10.0)", "padded_is_truncated"),
    # what the compiled kernels are told
    Mutant("key - query in places", "layout._places", "line - start", "start - line", f"{TRUTH}/table-1d"),
    Mutant("columns before rows in places", "layout.layout", "needed[axis + 1 :]", "needed[:axis]", f"{TRUTH}/table-2d-shifted"),
    Mutant("middle of the table off by one", "layout.layout", "_a + middle", "_a + middle + 1", f"{TRUTH}/table-1d"),
    Mutant("middle of the table forgotten", "layout.layout", "_a + middle", "_a", f"{TRUTH}/table-1d"),
    Mutant("first of two orders alone", "layout.layout", "[_a for order in causal]", "[_a for order in causal[:1]]", f"{TRUTH}/none-twice"),
    Mutant("a slice forgets its place in a layout", "layout.read", "origin=_a", "origin=(0,) * axes", f"{SLICE}/none"),
    Mutant("pooled keys side by side in a layout", "layout.read", "stride=_a", "stride=(1,) * axes", f"{POOLED}/none"),
    Mutant("shift dropped in a layout", "layout.read", "Windows(_a, _b)", "Windows(_a, (_b, (0,) * axes)[1])", f"{ALONE}/none"),
    Mutant("prefix queries in no cell", "layout._lists", "if grid.prefix: _a", "pass", PREFIX),
    Mutant("prefix keys in no cell", "layout._lists", "np.concatenate([prefix, keys])", "keys", PREFIX),
    Mutant("cells alike, whatever their offsets", "cells.offsets_kind", "_a - _b if _c else 0", "0", POOLED),
    Mutant("keys belong to one cell each", "layout._shares_keys", "entries != key_grid.tokens or _a", "entries < 0 or count == 0 and _a", f"{TRUTH}/table-2d-prefix-windows"),
    Mutant("earlier is later", "layout._ranks", "q, k = _a + queries[axis] - low, _b + keys[axis] - low", "q, k = _a - queries[axis] - low, _b - keys[axis] - low", CACHE),
    Mutant("last axis decides in ranks", "layout._ranks", "range(grid.axes)", "reversed(range(grid.axes))", f"{TRUTH}/table-2d-prefix-causal"),
    Mutant("prefix sees the future in ranks", "layout._ranks", "q[_a] = k[_b] = FIRST", "q[_a], k[_b] = -FIRST, FIRST", PREFIX),
    Mutant("prefix rows swapped in native", "operate._bias", "(bias.query_prefix, bias.key_prefix, bias.both)", "(bias.key_prefix, bias.query_prefix, bias.both)", f"{TRUTH}/table-2d-prefix"),
    Mutant("scale forgotten in native", "operate.operate", "(..., inputs.scale, _c, inputs.dropout, _a)", "(..., 1.0, _c, inputs.dropout, _a)", f"{TRUTH}/none"),
    Mutant("what meets vectors is q in native", "operate._content", "None if queries is _a else queries", "None", f"{TRUTH}/xl-1d"),
    Mutant("content not scaled in native", "operate._content", "_n, vectors, numbers, factor", "_n, vectors, numbers, 1.0", f"{TRUTH}/shaw-1d"),
    Mutant("axes of vectors in another order", "operate._joined", "torch.cat(lines, 1)", "torch.cat(lines[::-1], 1)", f"{TRUTH}/decomposed-3d"),
    Mutant("vectors of key - query in native", "layout._axes", "(line - start).astype(_a)", "(start - line).astype(_a)", f"{TRUTH}/xl-1d"),
    Mutant("columns before rows in native's vectors", "layout._axes", "zip(_a, _b, key_grid.origin, ranges, strict=True)", "zip(_a[::-1], _b[::-1], key_grid.origin, ranges, strict=True)", f"{TRUTH}/decomposed-3d"),
    Mutant("content not scaled backward", "operators._backward", "operands.forward(..., content_scale, dropout, seed)", "operands.forward(..., 1.0, dropout, seed)", f"{TRUTH}/xl-1d"),
    Mutant("vectors learn if numbers do", "operators._differentiate", "needs[3:]", "needs[4:]", f"{TRUTH}/xl-1d"),
    Mutant("an order hides the query itself from its vectors", "call._seen", "max(low, 0)", "max(low, 1)", f"{TRUTH}/xl-1d"),
    Mutant("padding inverted in native", "operate._masks", "member.valid if _a else _b", "~member.valid if _a else _b", "padded_is_truncated"),
    Mutant("last of two paddings alone", "operate._masks", "valid & member.valid", "member.valid", f"{TRUTH}/none-twice"),
    Mutant("the prefix has a segment", "operate._masks", "member.free(...)", "(0, 0)", f"{TRUTH}/table-2d-prefix-samples"),
    Mutant("segments of queries and keys swapped", "operate._masks", "(member.ids, member.key_ids, _a)", "(member.key_ids, member.ids, _a)", f"{TRUTH}/table-2d-prefix-samples"),
    # what the operators do with it
    Mutant("a table as it lies in memory", "operands.forward", "x.detach().to(lse.dtype).contiguous()", "x.detach().to(lse.dtype)", CACHE),
    Mutant("rows of a bias in another order", "operands.forward", "(table, prefix_bias, ...)", "(table, prefix_bias if prefix_bias is None else prefix_bias.flip(0), ...)", f"{TRUTH}/table-2d-prefix"),
    Mutant("masks of the first sample for all", "operands.per_sample", "0 if x.shape[0] == 1 else _a", "0", f"{TRUTH}/none-cells"),
    Mutant("parts of a projection swapped", "operators._unpacked", "q, k, v = _a", "k, q, v = _a", PACKED),
    Mutant("scale forgotten backward", "operators._backward", "operands.forward(..., scale, content_scale, dropout, seed)", "operands.forward(..., 1.0, content_scale, dropout, seed)", f"{TRUTH}/none"),
    Mutant("log-sum-exp without a gradient", "operators._backward", "operands.address(dlse)", "0", f"{TRUTH}/none"),
    Mutant("gradients of prefix rows swapped", "operators._backward", "return dtable, drows, dcontent, dvectors, dnumbers", "return dtable, drows.flip(0), dcontent, dvectors, dnumbers", f"{TRUTH}/table-2d-prefix"),
    Mutant("a table learns if its prefix rows do", "operators._differentiate", "needs[:2]", "needs[1:2]", f"{TRUTH}/table-1d"),
    Mutant("another dropout backward", "operators._backward", "operands.forward(..., seed)", "operands.forward(..., None if seed is None else seed + 1)", DROPOUT),
    Mutant("no dropout backward", "operators._backward", "operands.forward(..., dropout, seed)", "operands.forward(..., 0.0, seed)", DROPOUT),
)  # fmt: skip


def alive(mutant: Mutant) -> AbstractContextManager[None]:
    """The library with this mistake in it."""
    return replaced(function(mutant.where), mutant.old, mutant.new)
