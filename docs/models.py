"""Writes models.md, what models cost beside what their papers say: `python docs/models.py [file]`.

Models are made and counted on the meta device: no number of theirs exists, and all of it takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from locant import flops
from locant.models.aim_swin import aim_swin_base
from locant.models.aim_vit import aim_vit_base
from locant.models.convit import convit_base, convit_small, convit_tiny
from locant.models.deit import deit3_small, deit_tiny
from locant.models.detr import detr
from locant.models.mvit_v2 import mvitv2_base, mvitv2_large, mvitv2_small, mvitv2_small_clips, mvitv2_tiny
from locant.models.rules import SAM, SWIN, SWIN_V2, VIT, Record, Rules, ViTRules
from locant.models.sam_encoder import sam_encoder_base, sam_encoder_huge, sam_encoder_large
from locant.models.swin import swin_base, swin_large, swin_small, swin_tiny
from locant.models.vit import vit_base, vit_large, vit_small, vit_tiny
from locant.nn.temporal import TemporalModel
from locant.registry import FAMILIES

PAGE = Path(__file__).with_suffix(".md")


def frozen(make: Callable[[], nn.Module]) -> nn.Module:
    """A model of AIM as it is trained."""
    model = make()
    model.freeze()
    return model


@dataclass(frozen=True)
class Row:
    """A model, what it is given, and what is published: parameters and multiply-adds, as they are printed there."""

    name: str
    make: Callable[[], nn.Module]
    given: tuple[int, ...]
    parameters: str
    multiply_adds: str
    part: str = ""  # the module that the published figures are of

    @property
    def size(self) -> str:
        return " × ".join(map(str, self.given[1:]))


ROWS = (
    Row("Swin-T", swin_tiny, (1, 3, 224, 224), "28 M", "4.5 G"),
    Row("Swin-S", swin_small, (1, 3, 224, 224), "50 M", "8.7 G"),
    Row("Swin-B", swin_base, (1, 3, 224, 224), "88 M", "15.4 G"),
    Row("Swin-L, window 12", lambda: swin_large(img_size=384, window=12), (1, 3, 384, 384), "197 M", "103.9 G"),
    Row("ViT-Ti/16", vit_tiny, (1, 3, 224, 224), "5.7 M", ""),
    Row("ViT-S/16, DeiT-S", vit_small, (1, 3, 224, 224), "22.0 M", "4.6 G"),
    Row("ViT-B/16, DeiT-B", vit_base, (1, 3, 224, 224), "86.6 M", "17.5 G"),
    Row("ViT-L/16", vit_large, (1, 3, 224, 224), "304.4 M", "61.6 G"),
    Row("DeiT-Ti, distilled", lambda: deit_tiny(distilled=True), (1, 3, 224, 224), "", ""),
    Row("DeiT III, small", deit3_small, (1, 3, 224, 224), "22.0 M", "4.6 G"),
    Row("ConViT-Ti", convit_tiny, (1, 3, 224, 224), "6 M", "1 G"),
    Row("ConViT-S", convit_small, (1, 3, 224, 224), "27 M", "5.4 G"),
    Row("ConViT-B", convit_base, (1, 3, 224, 224), "86 M", "17 G"),
    Row("MViTv2-T", mvitv2_tiny, (1, 3, 224, 224), "24 M", "4.7 G"),
    Row("MViTv2-S", mvitv2_small, (1, 3, 224, 224), "35 M", "7.0 G"),
    Row("MViTv2-B", mvitv2_base, (1, 3, 224, 224), "52 M", "10.2 G"),
    Row("MViTv2-L", mvitv2_large, (1, 3, 224, 224), "218 M", "42.1 G"),
    Row("MViTv2-S, clips of 16", mvitv2_small_clips, (1, 3, 16, 224, 224), "34.5 M", "64 G"),
    Row("SAM ViT-B's encoder", sam_encoder_base, (1, 3, 1024, 1024), "", ""),
    Row("SAM ViT-L's encoder", sam_encoder_large, (1, 3, 1024, 1024), "", ""),
    Row("SAM ViT-H's encoder", sam_encoder_huge, (1, 3, 1024, 1024), "", ""),
    Row("DETR, six encoder layers", detr, (1, 2048, 25, 34), "7.9 M", "10 G", "transformer.encoder"),
    Row("DETR, encoder and decoder", detr, (1, 2048, 25, 34), "", "", "transformer"),
    Row("AIM ViT-B/16", lambda: frozen(aim_vit_base), (1, 3, 8, 224, 224), "97 M", "202 G"),
    Row("AIM Swin-B", lambda: frozen(aim_swin_base), (1, 3, 32, 224, 224), "", ""),
    Row("FIERY's temporal model", lambda: TemporalModel(70, 3, (200, 200)).eval(), (1, 3, 70, 200, 200), "98,473", ""),
)  # fmt: skip


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page())


def page() -> str:
    """The page, all of its numbers counted now."""
    return WORDS.format(
        models=models(), swin=swin(), parts=parts(), aim=aim(), example=example(), rules=rules(),
        rules_of_vit=rules_of_vit(), builders=builders(),
    )  # fmt: skip


@cache
def counted(row: Row) -> tuple[flops.MultiplyAdds, int, int]:
    """Multiply-adds, parameters and those that learn, of the part that the row is about."""
    with torch.device("meta"):
        model, x = row.make(), torch.empty(row.given)
    found = flops.count(model, x).modules[row.part]
    parameters = list(model.get_submodule(row.part).parameters())
    return found, *(sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))


def models() -> str:
    lines = [
        "| model | input | parameters | published | of them learn | multiply-adds | published |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        found, parameters, learn = counted(row)
        share = "all" if learn == parameters else f"{learn:,}"
        cells = (row.name, row.size, f"{parameters:,}", row.parameters, share, giga(found.total), row.multiply_adds)
        lines.append("| " + " | ".join(cell or "–" for cell in cells) + " |")
    return "\n".join(lines)


def swin() -> str:
    """The same models by the published rule for borders."""
    makers = (swin_tiny, swin_small, swin_base, partial(swin_large, img_size=384, window=12))
    rows = [r for r in ROWS if r.name.startswith("Swin")]
    pairs = zip(rows, makers, strict=True)
    return ", ".join(giga(counted(replace(r, make=partial(make, border="pad-roll")))[0].total) for r, make in pairs)


def parts() -> str:
    names = [field.name for field in fields(flops.MultiplyAdds)]
    lines = [f"| model | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for row in ROWS:
        found, _, _ = counted(row)
        lines.append(f"| {row.name} | {' | '.join(giga(getattr(found, name)) for name in names)} |")
    return "\n".join(lines)


def aim() -> str:
    with torch.device("meta"):
        model = aim_swin_base(num_classes=0)
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def total(*words: str) -> str:
        return f"{sum(n for name, n in numbers.items() if all(word in name for word in words)):,}"

    every = flops.count(model.eval(), torch.empty(1, 3, 32, 224, 224, device="meta")).parts
    lines = ["| AIM Swin-B | here | published |", "| --- | ---: | ---: |"]
    lines += [
        f"| parameters of the adapters | {total('Adapter')} | 8,762,080 |",
        f"| of the temporal tables | {total('temporal.table')} | 5,828 |",
        f"| of the spatial tables | {total('position.table')} | 63,544 |",
        f"| multiply-adds of logits and values | {every.logits + every.values:,} | {flops.published_aim_swin():,} |",
        f"| multiply-adds in all | {every.total:,} | – |",
    ]
    return "\n".join(lines)


def example() -> str:
    with torch.device("meta"):
        model, x = swin_tiny(), torch.empty(1, 3, 224, 224)
    return flops.count(model, x).table(depth=1)


def rules() -> str:
    """The records by library, Swin v2's where they differ."""
    rows: dict[str, Record] = {"none": Rules(), **{f'`"{name}"`': record for name, record in SWIN.items()}}
    rows |= {f'`"{name}"`, Swin v2': record for name, record in SWIN_V2.items() if record != SWIN[name]}
    return ruled(rows)


def rules_of_vit() -> str:
    """The same of ViT and DeiT, and of Segment Anything's encoder."""
    rows: dict[str, Record] = {"none": ViTRules(), **{f'`"{name}"`': record for name, record in VIT.items()}}
    return ruled(rows | {f'`"{name}"`, SAM': record for name, record in SAM.items()})


def ruled(rows: Mapping[str, Record]) -> str:
    names = [field.name for field in fields(rows["none"])]
    lines = [f"| `like=` | {' | '.join(f'`{name}`' for name in names)} |", "| --- |" + " --- |" * len(names)]
    for name, record in rows.items():
        lines.append(f"| {name} | {' | '.join(shown(getattr(record, field)) for field in names)} |")
    return "\n".join(lines)


def shown(value: object) -> str:
    return "by size" if value is None else ("yes" if value else "no") if isinstance(value, bool) else f"{value}"


def builders() -> str:
    """Every name of the registry, by class."""
    lines = ["| class | built by | module |", "| --- | --- | --- |"]
    for path, family in FAMILIES.items():
        module, _, name = path.rpartition(".")
        made = [f"`{builder}`" for builder in (*family.builders, *([name] if family.plain else []))]
        lines.append(f"| `{name}` | {', '.join(made)} | `locant.{module}` |")
    return "\n".join(lines)


def giga(number: int) -> str:
    return "0" if number == 0 else f"{number / 1e9:.4g} G" if number >= 1e9 else f"{number / 1e6:.4g} M"


WORDS = """\
# What models cost

Written by [models.py](models.py) from the models themselves, beside what their papers say.

{models}

Papers write "FLOPs" and count multiply-adds; in FLOPs all of it is twice as much.

- **Swin**: published code computes whole windows at the border of shifted layers, and masks them. So does
  `border="pad-roll"`: {swin}.
- **ViT, DeiT**: the figures are those of DeiT III's paper; ViT's own has 86 M and 307 M, DeiT's 5 M, 22 M and 86 M.
- **ConViT**'s paper does not say what it counts. Its figures, rounded, lie between ours and ours without the two
  products of attention (see the next table).
- **DETR**: with six encoder layers instead of none, the paper's model has 7.9 M parameters and 10 G more, the mean over
  pictures of many sizes; here the feature map is that of 800 × 1088 pixels. The backbone is not part of it.
- **AIM ViT-B**: published are 606 G for three views of 8 frames, and 11 M parameters that learn.
- **FIERY** publishes no multiply-adds of this part; the parameters are those of its code.

## Rules by library

The same weights give other numbers by other rules, on maps that windows do not divide or that are as small as one.
`swin_tiny(like="timm")` builds a model by a library's rules, `model.follow("timm")` gives them to one that is built
(before its weights are loaded); what is named besides goes before. `checkpoints.load` says where a model and its file
differ.

{rules}

`border`, `small`: as `locant.nn.WindowAttention` takes them. `patch_border`: as `PatchEmbedding` takes it. `fixed`:
windows and shifts are chosen once, by the maps of `img_size`, and stay what they are on other pictures. `drop_path`:
what the library's builders have; by size it is 0.2, 0.3, 0.5 and 0.2 from tiny to large. Where a library refuses a
size, the rules are those of its other code: Swin's classifier is built for one size, its detector is not. ConViT
differs in nothing: its patches divide the picture, and its drop path is 0 by default everywhere.

A ViT, a DeiT or Segment Anything's encoder is on one grid from the first block to the last, and has fewer of them:

{rules_of_vit}

`norm_eps`: of every norm. Position embeddings of another size come to the model by each library's own method: timm's
bicubic with antialiasing, bicubic for the others.

timm's layer decay finds the depth of every parameter by `model.group_matcher()` (Swin, Swin v2, ViT, DeiT, ConViT).

## Another position

A published model has one position. Another one takes its place by `position=`: a word of `locant compare --positions`,
a function of (grid, dim, heads), or None. What embeds is added to the tokens, once; all else acts in every layer, each
layer with its own. Swin and Swin v2 take one for all stages or a tuple with one for each, "published" among the words:
`swin_tiny(position=("published", "published", "rotary", None))`; what embeds stands on the tokens that a stage begins
with.

```python
import torch
from locant import Learned, RelativeTable
from locant.models import vit_tiny

turned = vit_tiny(img_size=64, num_classes=10, position="rotary")
both = vit_tiny(
    img_size=64,
    num_classes=10,
    registers=4,
    position=lambda grid, dim, heads: (Learned(grid, dim), RelativeTable(grid, heads)),
)
print(both.grid, both(torch.randn(2, 3, 64, 64)).shape)
```

```text
Grid(4, 4, prefix=5) torch.Size([2, 10])
```

## By name

{builders}

## By part

{parts}

Position costs little: tables are read, and a gate's map is counted once for a batch. Windows are counted as they are
cut: in shifted layers they are smaller at the border.

## AIM's own count

AIM's code counts q kᵀ and A v alone, in whole windows, and nothing else of its blocks. `published_aim` and
`published_aim_swin` repeat it, `aim_window` is the right figure for one window.

{aim}

```python
from locant.flops import aim_window, published_aim

print(published_aim(128, 4, N=49, T=16), published_aim(128, 4, N=49, T=16, temporal=True))
print(aim_window(128, N=49, T=16).total, aim_window(128, N=49, T=16, temporal=True).total)
```

```text
9834496 3211264
61214720 54591488
```

## Your own model

`count` takes any model made of `locant.nn`, `locant.models` and torch's own layers, and runs it on tensors without
numbers: every size takes about as long. `print(count(...))` shows more modules, the totals, the parameters, and what is
counted.

```python
import torch
from locant.flops import count
from locant.models.swin import swin_tiny

with torch.device("meta"):
    model = swin_tiny()
found = count(model, torch.empty(1, 3, 224, 224, device="meta"))
print(found.table(depth=1))
```

```text
{example}
```

What each part is, in multiply-adds:

- **projections**: products with a weight: qkv, output projections, perceptrons, heads.
- **logits** and **values**: heads · channels for each pair of a query and a key in one window. Order and padding take
  no pair away.
- **position**: of a gate (axes + 1) · heads per pair, once for the batch; of a perceptron of biases its layers, once
  per offset; of Transformer-XL W_r once per distance, and q · R per pair; of Shaw's vectors and decomposed tables q · R
  per query and offset of each axis.
- **convolution**: outputs · kernel volume · input channels.

Not counted are softmax, norms, activations, additions (tables, embeddings), rotations, look-ups, pooling and
interpolation.

The count is that of the mathematics, the same whichever kernel runs. `torch.utils.flop_counter.FlopCounterMode` counts
what a kernel does; the compiled operators are registered with it. Of torch's own attention it sees nothing on a CPU.
"""


if __name__ == "__main__":
    main()
