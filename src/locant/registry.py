"""Every model by its names: where its class stands, by which names it is built, whose checkpoints it reads.

A line here is all that `locant convert` and `checkpoints.load` know of a model, and the names of `locant.models` are
these. Nothing is imported before it is asked for: a file can be refused without a model, and without what models need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import nn


@dataclass(frozen=True)
class Family:
    """The models of one class.

    Args:
        names: the file of `locant.checkpoints` with its `LAYOUTS`.
        builders: functions beside the class, one per published model.
        head: patterns of the names of tensors that depend on the number of classes.
        spare: rows of these beside the classes.
        plain: whether the class is built of plain settings (numbers, words), and not of other modules.
    """

    names: str
    builders: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    spare: int = 0
    plain: bool = True


FAMILIES = {
    "models.aim_swin.AIMSwin": Family("aim", ("aim_swin_base",), head=("cls_head.*",)),
    "models.aim_vit.AIMViT": Family("aim", ("aim_vit_base", "aim_vit_large"), head=("cls_head.*",)),
    "models.bahdanau.Bahdanau": Family("d2l"),
    "models.bert.BertEmbeddings": Family("bert"),
    "models.convit.ConViT": Family("convit", ("convit_tiny", "convit_small", "convit_base"), head=("head.*",)),
    "models.deit.DeiT": Family(
        "vit", ("deit_tiny", "deit_small", "deit_base", "deit3_small", "deit3_base"), head=("head.*", "head_dist.*")
    ),
    "models.detr.DETR": Family("detr", ("detr",), head=("class_embed.*",), spare=1, plain=False),  # no object
    "models.mvit_v2.MViTv2": Family(
        "mvit_v2",
        ("mvitv2_tiny", "mvitv2_small", "mvitv2_small_clips", "mvitv2_base", "mvitv2_large", "mvitv2_huge"),
        head=("head.*",),
    ),
    "models.sam_encoder.SAMEncoder": Family("sam", ("sam_encoder_base", "sam_encoder_large", "sam_encoder_huge")),
    "models.swin.Swin": Family("swin", ("swin_tiny", "swin_small", "swin_base", "swin_large"), head=("head.*",)),
    "models.swin_v2.SwinV2": Family(
        "swin_v2", ("swinv2_tiny", "swinv2_small", "swinv2_base", "swinv2_large"), head=("head.*",)
    ),
    "models.transformer.Transformer": Family("d2l"),
    "models.transformer_xl.MemTransformerLM": Family(
        "transformer_xl", ("transformer_xl_enwik8_base", "transformer_xl_enwik8_large", "transformer_xl_wt103_base")
    ),
    "models.vit.ViT": Family("vit", ("vit_tiny", "vit_small", "vit_base", "vit_large"), head=("head.*",)),
    "nn.multihead.MultiHeadAttention": Family("d2l"),
    "nn.temporal.TemporalModel": Family("fiery"),
}  # fmt: skip


def _module(path: str) -> str:
    return path.rpartition(".")[0]


def _class(path: str) -> str:
    return path.rpartition(".")[2]


CLASSES = {_class(path): _module(path) for path in FAMILIES}
"""The module of each class."""

BUILDERS = {
    name: _module(path)
    for path, family in FAMILIES.items()
    for name in (*family.builders, *([_class(path)] if family.plain else []))
}
"""The module of each name that a model is built by: published models, and classes with all settings of one's own."""


def builder(name: str, asked: str = "`model`") -> Callable[..., nn.Module]:
    """What builds the model of a name: a function, or the class; `asked` is what an error calls the option.

    Raises:
        ValueError: for a name that is not in `BUILDERS`.
    """
    if name not in BUILDERS:
        raise ValueError(
            f"{asked} needs a name out of {', '.join(sorted(BUILDERS))}; got {name!r}. "
            "Load other models in Python: locant.checkpoints.load(model, file)."
        )
    found: Callable[..., nn.Module] = getattr(import_module(f"locant.{BUILDERS[name]}"), name)
    return found


def family(model: nn.Module) -> Family | None:
    """By the model's class, or one that it is made from."""
    names = (f"{kind.__module__}.{kind.__name__}".removeprefix("locant.") for kind in type(model).__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), None)
