"""Which layouts the checkpoints of a model may have: those of its family's file of names, and Locant's own."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.wording import word
from locant.registry import family

OWN = Layout("locant", (Rule("*", "*"),), table_method="linear", rows_method="linear")


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that a model's checkpoints may have, Locant's own first."""
    found = family(model)
    if found is None:
        return (OWN,)
    data = import_module(f"locant.checkpoints.{found.names}")
    counted = data.layouts_of(model) if hasattr(data, "layouts_of") else ()  # which need to know its sizes
    return (OWN, *data.LAYOUTS, *counted)


def recognised(model: nn.Module, layout: str | Layout | None, asked: str = "layout") -> tuple[Layout, ...]:
    """The layouts that may be meant: all, those of a name, or the one given; `asked` is the option that names it.

    Raises:
        ValueError: for a name that the model's family does not have.
    """
    if isinstance(layout, Layout):
        return (layout,)
    known = layouts(model)
    named = tuple(one for one in known if layout in (None, one.name))
    if not named:
        names = ", ".join(dict.fromkeys(repr(one.name) for one in known))
        needed = f"{word(asked)} needs a name out of {names} for a {type(model).__name__}; got {layout!r}."
        if asked == "to":
            raise ValueError(f"{needed} Name one of them, or leave it out for Locant's own.")
        raise ValueError(f"{needed} Leave it out to have it found, or pass a Layout of your own.")
    return named
