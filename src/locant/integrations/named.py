"""Models by name, with random weights or a file's, and an input that fits: what `locant accelerate NAME` takes.

timm:swin_tiny_patch4_window7_224    torchvision:swin_t    hf:FOLDER (a config.json)    locant:swin_tiny
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from locant.checkpoints import contents

LIBRARIES = ("timm", "torchvision", "hf", "locant")


@dataclass(frozen=True)
class Named:
    """A model in evaluation mode, what it is called with, and the same with its library's fused attention, if it has
    a switch for it."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    fused: nn.Module | None = None


def build(
    name: str, *, batch: int = 1, size: int | tuple[int, ...] | None = None, weights: Path | None = None
) -> Named:
    """The model of that name, and random input for it.

    Args:
        name: `LIBRARY:NAME`; of transformers a folder with a config.json.
        batch: of the input.
        size: pixels of a side, or (rows, columns), or (frames, rows, columns); tokens of a text; frames or samples of
            a sound. None: the model's own.
        weights: a file of a state dict; None: random weights.

    Raises:
        ValueError: for a library that is not installed or does not load, a name that it does not have, and a file that
            does not fit.
    """
    library, colon, what = name.partition(":")
    if not colon or library not in LIBRARIES:
        raise ValueError(
            f"NAME needs a library before it, one of {', '.join(f'{x}:' for x in LIBRARIES)}; got {name!r}. For "
            "example timm:swin_tiny_patch4_window7_224."
        )
    torch.manual_seed(0)
    model, shape = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers, "locant": _locant}[library](
        what, size
    )
    if weights is not None:
        _load(model, weights)
    words = len(shape) == 1 and getattr(model, "main_input_name", "input_ids") == "input_ids"
    inputs = torch.randint(0, 1000, (batch, *shape)) if words else torch.randn(batch, *shape)
    model.eval()
    return Named(name, model, (inputs,))


def library(name: str) -> ModuleType:
    """The library, imported. Raises ValueError with what to do where that fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ValueError(
            f"this needs {name}, and {missing} is not installed. Install it: pip install {missing.partition('.')[0]}."
        ) from None
    except (RuntimeError, ImportError, OSError) as error:  # torchvision's operators of another torch
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"this needs {name}, which does not load beside torch {torch.__version__} ({reason}). Install the builds "
            "of torch and torchvision that belong together."
        ) from None


def _sides(size: int | tuple[int, ...] | None, own: tuple[int, ...]) -> tuple[int, ...]:
    if size is None:
        return own
    return (size,) * len(own) if isinstance(size, int) else tuple(size)


def _timm(name: str, size: int | tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    timm = library("timm")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {name!r}. It has {', '.join(near) or 'others'}: timm.list_models().")
    own = timm.get_pretrained_cfg(name)
    channels, *sides = own.input_size if own is not None else (3, 224, 224)
    wanted = _sides(size, tuple(sides))
    try:
        model = timm.create_model(name, **({"img_size": wanted} if size is not None else {}))
    except TypeError:  # made of convolutions as well: any size
        model = timm.create_model(name)
    return model, (channels, *wanted)


def _torchvision(name: str, size: int | tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    models = library("torchvision.models")
    if name not in models.list_models():
        near = [other for other in models.list_models() if name[:4] in other][:5]
        raise ValueError(f"torchvision has no model {name!r}. It has {', '.join(near) or 'others'}: list_models().")
    video = "3d" in name or name.startswith(("mvit", "r3d", "s3d"))
    own = (16, 224, 224) if video else (224, 224)
    sides = _sides(size, own) if not video or isinstance(size, tuple | None) else (16, size, size)
    return models.get_model(name), (3, *sides)


def _transformers(folder: str, size: int | tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    transformers = library("transformers")
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"hf: needs a folder with a config.json on this disk; {folder!r} has none. Download it first: nothing is "
            "fetched here."
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    there = any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("*.bin"))
    # an encoder that was saved alone (T5EncoderModel) says so; AutoModel would build a decoder to it, of random numbers
    saved = (getattr(config, "architectures", None) or [""])[0]
    alone: Any = getattr(transformers, saved, None) if saved.endswith("EncoderModel") else None
    auto: Any = transformers.AutoModel if alone is None else alone
    built: Any = auto.from_config if alone is None else auto
    model = auto.from_pretrained(folder, local_files_only=True) if there else built(config)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        model = model.get_encoder()
    image, given = getattr(config, "image_size", None), getattr(model, "main_input_name", "")
    if image is None and given == "input_values":
        return model, _sides(size, (160_000,))[:1]  # ten seconds
    if image is None and given == "input_features":
        bands: Any = getattr(config, "feature_projection_input_dim", None) or getattr(config, "num_mel_bins", 80)
        return model, (*_sides(size, (1_000,))[:1], bands)
    if image is None:
        return model, _sides(size, (512,))[:1]
    own = tuple(image) if isinstance(image, list | tuple) else (image, image)
    return model, (getattr(config, "num_channels", 3), *_sides(size, own))


def _locant(name: str, size: int | tuple[int, ...] | None) -> tuple[nn.Module, tuple[int, ...]]:
    from locant import models

    builder = getattr(models, name, None)
    if builder is None or name not in models.__all__:
        near = get_close_matches(name, models.__all__, 3) or models.__all__[:8]
        raise ValueError(f"locant has no model {name!r}. It has {', '.join(near)}, ...: docs/models.md.")
    if "img_size" not in inspect.signature(builder).parameters:
        raise ValueError(
            f"locant:{name} takes no picture or clip by itself, and no input can be made up for it. Name one that "
            "does, such as locant:swin_tiny, or use Python."
        )
    own = inspect.signature(builder).parameters["img_size"].default
    default = (own, own) if isinstance(own, int) else own
    model = builder(img_size=_sides(size, default or (224, 224))[-2:])
    return model, example_of(model)


def example_of(model: nn.Module, size: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of one picture or clip that a model of locant is made for; `size` is for those that take any.

    Raises:
        ValueError: for a model of any size without one, and of another size than its own.
    """
    takes, settings = inspect.signature(type(model)).parameters, getattr(model, "settings", {})
    sides: Any = getattr(model, "img_size", None)
    if sides is None and "img_size" in takes:
        sides = settings.get("img_size", takes["img_size"].default)
    any_size = sides is None and "in_chans" in takes
    sides = size if any_size else sides
    if sides is None:
        raise ValueError(
            f"{type(model).__name__} does not say for which pictures it is. "
            f"{'Name their size with --size, or use' if any_size else 'Use'} it in Python, on an input of your own."
        )
    rows = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if size is not None and _sides(size, rows) != rows:
        raise ValueError(
            f"{type(model).__name__} is made for pictures of {rows[0]} × {rows[1]}; --size says {size}. Leave it out, "
            "or bring the model to that size first: locant convert."
        )
    frames: int | None = getattr(model, "frames", None)
    return settings.get("in_chans", 3), *([] if frames is None else [frames]), *rows


def _load(model: nn.Module, path: Path) -> None:
    own = model.state_dict()
    found = contents.read(path)
    missing, extra = [x for x in own if x not in found], [x for x in found if x not in own]
    wrong = [x for x in own if x in found and own[x].shape != found[x].shape]
    if not (missing or extra or wrong):
        model.load_state_dict(found)
        return
    counts = {"missing": missing, "not in the model": extra, "of another shape": wrong}
    said = ", ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in counts.items() if names)
    if wrong and not (missing or extra):
        raise ValueError(
            f"--weights needs a file that fits the model; {path.name} has {said}. Name the size that it was trained at "
            "with --size, or bring it to this one first: locant convert."
        )
    raise ValueError(
        f"--weights needs a file that fits the model; {path.name} has {said}. Name the model that it belongs to, or "
        "bring it to this one's names first: locant convert."
    )
