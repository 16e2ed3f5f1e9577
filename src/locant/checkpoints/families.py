"""Which file of names belongs to which model, and which of its tensors depend on the number of classes."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from torch import nn

from locant.checkpoints.names import Layout, Rule

OWN = Layout("locant", (Rule("*", "*"),), table_method="linear", rows_method="linear")


class Family(NamedTuple):
    """The file with `LAYOUTS`, and patterns of the names that depend on the number of classes."""

    data: str
    head: tuple[str, ...] = ()


FAMILIES = {
    "models.aim_swin.AIMSwin": Family("aim", ("cls_head.*",)),
    "models.aim_vit.AIMViT": Family("aim", ("cls_head.*",)),
    "models.bahdanau.Bahdanau": Family("d2l"),
    "models.bert.BertEmbeddings": Family("bert"),
    "models.convit.ConViT": Family("convit", ("head.*",)),
    "models.detr.DETR": Family("detr", ("class_embed.*",)),
    "models.swin.Swin": Family("swin", ("head.*",)),
    "models.swin_v2.SwinV2": Family("swin_v2", ("head.*",)),
    "models.transformer.Transformer": Family("d2l"),
    "models.transformer_xl.MemTransformerLM": Family("transformer_xl"),
    "nn.multihead.MultiHeadAttention": Family("d2l"),
    "nn.temporal.TemporalModel": Family("fiery"),
}


def family(model: nn.Module) -> Family | None:
    """By the model's class, or one that it is made from."""
    names = (f"{kind.__module__}.{kind.__name__}".removeprefix("locant.") for kind in type(model).__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that a model's checkpoints may have, Locant's own first."""
    found = family(model)
    return (OWN,) if found is None else (OWN, *import_module(f"locant.checkpoints.{found.data}").LAYOUTS)


def recognised(model: nn.Module, layout: str | Layout | None) -> tuple[Layout, ...]:
    """The layouts that may be meant: all, those of a name, or the one given.

    Raises:
        ValueError: for a name that the model's family does not have.
    """
    if isinstance(layout, Layout):
        return (layout,)
    known = layouts(model)
    named = tuple(one for one in known if layout in (None, one.name))
    if not named:
        raise ValueError(
            f"`layout` needs a name out of {', '.join(dict.fromkeys(repr(one.name) for one in known))} for a "
            f"{type(model).__name__}; got {layout!r}. Leave it out to have it found, or pass a Layout of your own."
        )
    return named
