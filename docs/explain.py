"""The models of explain.md, trained on data that needs no download, and its pictures and numbers.

    python docs/explain.py models FOLDER [NAME ...]     about three minutes of one core each
    python docs/explain.py pictures FOLDER              writes docs/explained/*.svg, prints the numbers of the page

Swin-T and BEiT learn from scikit-learn's two photographs, ConViT and AIM from its digits, T5 from the pages of this
repository. They are small and learn little else: what is asked of them is where they look.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locant import models
from locant.checkpoints.files import write
from locant.tasks.digits import clips, images

ROOT = Path(__file__).parents[1]
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
Batches = Iterator[tuple[Tensor, Tensor]]
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
        steps: int) -> None:  # fmt: skip
    """AdamW, a tenth of the steps rising and then half a cosine."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    start, mean = time.perf_counter(), 0.0
    network.train()
    for step, (x, y) in enumerate(batches):
        done = step / steps
        optimizer.param_groups[0]["lr"] = rate * min(10 * done + 0.01, 0.5 + 0.5 * float(np.cos(np.pi * done)))
        value = loss(x, y)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
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
    print(f"{name}: {100 * right(network, data(20, False), classes):.1f} % right on what it was not trained on")


def save(path: Path, name: str, settings: dict[str, Any], network: nn.Module) -> None:
    """A file that says of which model it is, as `locant convert` writes them."""
    about = {"format": "pt", "model": name, "layout": "locant", "settings": json.dumps(settings)}
    write(path, network.state_dict(), about=about)


@model
def swin(folder: Path) -> None:
    """A small Swin on crops of 112 pixels of the photographs: which way is up?"""
    settings = {"img_size": 112, "dim": 48, "depths": (2, 2, 2), "heads": (3, 6, 12), "window": 7, "num_classes": 4}
    network = models.Swin(**settings)

    def data(steps: int, training: bool) -> Batches:
        part = slice(0, 480) if training else slice(480, 640)
        return crops(112, 16, steps, int(training), part=part, turned=True)

    classified("swin", network, data, 4, 1e-3, 500)
    save(folder / "swin.safetensors", "Swin", settings, network)


@model
def swin_t(folder: Path) -> None:
    """timm's Swin-T on digits of 112 pixels."""
    import timm

    network, task = timm.create_model("swin_tiny_patch4_window7_224", img_size=112), images()

    def data(steps: int, training: bool) -> Batches:
        return digits(task, "train" if training else "test", 112, 16, steps, int(training))

    classified("swin_t", network, data, 10, 5e-4, 100)
    write(folder / "swin_t.safetensors", network.state_dict())


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
def aim(folder: Path) -> None:
    """AIM-ViT on clips of moving digits: which way? Whole, not its adapters alone, for it starts from nothing."""
    settings = {"img_size": 64, "patch": 8, "frames": 8, "dim": 96, "depth": 4, "heads": 4, "num_classes": 8}
    network, task = models.AIMViT(**settings), clips(64, 8)
    network.requires_grad_(True)

    def data(steps: int, training: bool) -> Batches:
        return digits(task, "train" if training else "test", 64, 8, steps, int(training))

    classified("aim", network, data, 8, 1e-3, 400)
    save(folder / "aim.safetensors", "AIMViT", settings, network)


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


if __name__ == "__main__":
    what, folder, *names = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in names or MODELS:
        torch.manual_seed(0)
        MODELS[name](Path(folder))
