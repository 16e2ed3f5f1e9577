"""What position does in a model: from weights alone, and with an input. `locant explain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from locant.explain import heads, rules
from locant.explain.data import Data, Embedded, Input, Layer
from locant.explain.embeddings import embedded, embeddings_of, waves_of
from locant.explain.explanation import Explanation
from locant.explain.inputs import Taken, choose_queries, take
from locant.explain.levelled import has_places, without_places
from locant.explain.opening import Opened, open_
from locant.explain.recording import Recorder, Seen, Where
from locant.explain.resizings import resizings_of
from locant.explain.rollout import roll_out
from locant.grid import Grid
from locant.integrations.model import accelerate
from locant.integrations.replacing import is_replaced
from locant.integrations.transformers_interface import interface_attention

# what schemes of other libraries' modules are called, by their classes in locant.integrations
WORDS = {
    "BorrowedTable": "relative table", "BorrowedBuckets": "buckets of offsets", "BorrowedSlopes": "ALiBi",
    "BorrowedGate": "gated position", "BorrowedDecomposed": "decomposed vectors",
    "BorrowedVectors": "vectors of offsets",
}  # fmt: skip

ADDED = {
    "embed": "Vectors of places are added to the tokens. By content is what a second run gives, with their mean in "
    "every place; position is what the places change, through all layers before.",
    "rotate": "Places turn q and k before attention. By content is what a second run gives, with nothing turned; "
    "position is what the places change, through all layers before.",
}
BEFORE = {"embed": "embeddings added to the tokens", "rotate": "rotary, before attention"}
UNTOLD = "What places do to q and k before attention is in both, and not told from content."


def run(
    model_or_scheme: str | Path | nn.Module,
    input: Any = None,
    *,
    weights: str | Path | None = None,
    queries: Sequence[Where] | None = None,
    size: int | tuple[int, ...] | None = None,
    before: Any = None,
) -> Explanation:
    """What position does, layer by layer and head by head.

    Args:
        model_or_scheme: a module; a scheme; or a name: timm:NAME, torchvision:NAME, locant:NAME, hf:FOLDER,
            relative:14x14 (any scheme of `locant compare` on a grid), the folder of a comparison, a file that
            `locant convert` wrote.
        input: None is from weights alone; a picture, a film (a video, a folder of frames, an array), an array as the
            model takes it, or a line of text where a tokenizer is at hand.
        weights: a file of weights for a name.
        queries: places of the input as fractions of its axes, (row, column); () is the class token. None is a lattice
            of places, or every word.
        size: pixels of a side that a named model is built for.
        before: the state dict, or a file, that the weights were resized from: tables are compared.

    Raises:
        ValueError: for names, files, inputs and weights that do not fit, and for compiled models.
    """
    # 1 what is explained
    path = None if weights is None else Path(weights)
    given = (input,) if isinstance(model_or_scheme, nn.Module) and isinstance(input, torch.Tensor) else ()
    opened = open_(model_or_scheme, weights=path, size=size, inputs=given)
    notes = [opened.weights]
    # 2 what it attends with, and how on this input
    seen, shown = list(opened.layers), None
    unread: list[tuple[str, str]] = []
    if opened.model is not None:
        seen, shown, unread = _look(opened, opened.model, input, queries, notes)
    elif input is not None:
        raise ValueError(
            "an input needs a model that takes it; a scheme alone came. Leave the input out, or name a model."
        )
    # 3 in numbers and words
    layers = [_layer(index, one) for index, one in enumerate(seen)]
    layers += [_unread(len(layers) + index, name, why) for index, (name, why) in enumerate(unread)]
    resized = () if before is None or opened.model is None else tuple(resizings_of(opened.model, before))
    found = rules.find(layers, resized, shown)
    data = Data(
        opened.title, tuple(notes), tuple(found), tuple(layers), tuple(_embeddings(opened, seen)), resized, shown
    )
    return Explanation(data)


def _look(
    opened: Opened, model: nn.Module, given: Any, queries: Sequence[Where] | None, notes: list[str]
) -> tuple[list[Seen], Input | None, list[tuple[str, str]]]:
    """Every attention of the model, the input as shown, and what could not be read, with the reason."""
    training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, training)
        model.eval()
        # 1 the attention that Locant knows runs through it; what already does stays
        report = None
        if not any(is_replaced(module) for module in model.modules()):
            report = stack.enter_context(accelerate(model, pack=False))
        unread = (
            [] if report is None else [(r.path, r.why) for r in report.rows if r.kind == "attention" and not r.kernel]
        )
        # 2 once for nothing but what it attends with
        taken = None if given is None else take(given, opened)
        inputs = opened.inputs if taken is None else taken.inputs
        if not inputs:
            raise ValueError("a module needs an input to run on; none came. Pass input=, a tensor with a batch of 1.")
        first = _record(model, inputs, Recorder(model, (), _places(model), idle=True))
        asked = not first and stack.enter_context(interface_attention(model))
        if asked:
            first = _record(model, inputs, Recorder(model, (), _places(model), idle=True))
        if taken is None or not first:
            notes += [] if first else ["No attention was reached that Locant knows."]
            seen, shown = first, None
        else:  # 3 again with the queries
            seen, shown = _with_input(model, taken, first, queries, inputs, notes)
        for one in seen if asked and not has_places(model) else ():
            one.said += [] if one.added or tuple(one.schemes) else [UNTOLD]
        return _with_names(seen), shown, unread


def _with_input(
    model: nn.Module,
    taken: Taken,
    first: list[Seen],
    queries: Sequence[Where] | None,
    inputs: tuple[torch.Tensor, ...],
    notes: list[str],
) -> tuple[list[Seen], Input]:
    grid = max((one.grid for one in first), key=lambda g: g.axes)
    classes = all(one.grid.prefix for one in first)
    wheres, labels = choose_queries(taken, grid.axes, classes, queries)
    # 1 without places, where layers attend that know of none: what they make of content
    plain = any(not any(one.schemes) for one in first)
    alike, level = None, without_places(model, first[0].grid) if plain else None
    if plain and level is None and has_places(model):
        notes.append(
            "Vectors of places are added to the tokens; the model can't be copied, so they are not told from content."
        )
    if level is not None:
        alike = Recorder(level, wheres, _places(model), without="embed" if has_places(model) else "rotate")
        _record(level, inputs, alike)
    # 2 as it is
    recorder = Recorder(model, wheres, _places(model), rollout=True, alike=alike)
    seen = _record(model, inputs, recorder)
    notes += [ADDED[how] for how in ADDED if any(one.added == how for one in seen)]
    rollout = roll_out(seen, wheres, recorder.pairs)
    return seen, taken.shown(wheres, labels, rollout)


def _record(model: nn.Module, inputs: tuple[torch.Tensor, ...], recorder: Recorder) -> list[Seen]:
    with torch.no_grad(), recorder.recording():
        model(*inputs)
    return recorder.seen


def _places(model: nn.Module) -> tuple[tuple[int, ...], int] | None:
    """The grid of a picture's tokens, and how many come before it, where the model says so."""
    parts: Any = model
    sizes = getattr(getattr(parts, "patch_embed", None), "grid_size", None)
    if isinstance(sizes, tuple):
        return sizes, int(getattr(parts, "num_prefix_tokens", 1))
    config = getattr(parts, "config", None)
    side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if isinstance(side, int) and isinstance(patch, int):
        return (side // patch,) * 2, 1 + int(getattr(config, "num_register_tokens", 0) or 0)
    return None


def _with_names(seen: list[Seen]) -> list[Seen]:
    """A module that attends twice has two layers."""
    counts: Counter[str] = Counter()
    for one in seen:
        counts[one.name] += 1
        if counts[one.name] > 1:
            one.name = f"{one.name} ({counts[one.name]})"
    return seen


def _layer(index: int, seen: Seen) -> Layer:
    schemes = tuple(seen.schemes)
    names = [BEFORE[seen.added]] if seen.added else []
    names += [WORDS.get(type(p).__name__, type(p).__name__) for p in schemes]
    scheme = ", ".join(names) or "no position in attention"
    entrance = seen.added or " + ".join(dict.fromkeys(p.entrance for p in schemes))
    said = list(seen.said)
    try:
        found = heads.heads_of(seen, seen.measures)
        waves = heads.waves_of(seen)
    except (ValueError, RuntimeError, NotImplementedError) as error:  # a scheme of the user's own
        found, waves = (), None
        said.append(f"Its scheme could not be read ({str(error).splitlines()[0]}).")
    return Layer(
        index, seen.name, scheme, entrance, seen.grid.shape, heads.sight_of(seen), found, waves, tuple(seen.rows),
        " ".join(said),
    )  # fmt: skip


def _unread(index: int, name: str, why: str) -> Layer:
    return Layer(index, name, "not known", "", (), None, (), None, (), f"{why[:1].upper()}{why[1:]}.")


def _embeddings(opened: Opened, seen: list[Seen]) -> list[Embedded]:
    if opened.model is None:
        return [embedded(type(p).__name__, p(grid).detach(), grid, waves_of(p, grid)) for p, grid in opened.embeddings]
    return list(embeddings_of(opened.model, seen[0].grid if seen else Grid(1)))
