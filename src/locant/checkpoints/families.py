"""Which layouts the checkpoints of a model may have: those of its family's file of names, and Locant's own."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from locant.checkpoints.names import Layout, Rule
from locant.registry import family

OWN = Layout("locant", (Rule("*", "*"),), table_method="linear", rows_method="linear")


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that a model's checkpoints may have, Locant's own first."""
    found = family(model)
    return (OWN,) if found is None else (OWN, *import_module(f"locant.checkpoints.{found.names}").LAYOUTS)


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
