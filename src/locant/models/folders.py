"""Models in folders, as the Hugging Face Hub keeps them: settings as JSON, weights as safetensors."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from locant.atomic import write_bytes
from locant.checks import check_type, check_types

Kept = TypeVar("Kept", bound="InFolders")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class InFolders:
    """A module that remembers the arguments that it was built with, so that a folder can say them.

    Methods and files are those of huggingface_hub's `PyTorchModelHubMixin`; a class with that before ours reads
    the same folders. It is no base here, as huggingface_hub is needed for the network alone.
    """

    settings: dict[str, Any]

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        own = inspect.signature(cls.__init__)  # else that of __new__ would stand for the class
        cls.__signature__ = own.replace(parameters=[*own.parameters.values()][1:])  # type: ignore[attr-defined]

    def __new__(cls: type[Kept], *args: Any, **settings: Any) -> Kept:
        self = super().__new__(cls)
        try:
            settings = inspect.signature(cls.__init__).bind_partial(self, *args, **settings).arguments
        except TypeError:  # the constructor says what is wrong with them
            settings = {}
        self.__dict__["settings"] = {name: value for name, value in settings.items() if value is not self}
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, which is made if it is not there.

        Raises:
            ValueError: for a model with settings that JSON cannot say.
            OSError: if the folder cannot be written.
        """
        from safetensors.torch import save  # here: models need no files

        check_type("save_pretrained", "folder", folder, str | Path)
        assert isinstance(self, nn.Module)
        config = {"model": type(self).__name__, **self.settings}
        try:
            text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError):
            odd = [name for name, value in self.settings.items() if not _is_plain(value)]
            raise ValueError(
                f"save_pretrained needs settings of numbers, words and tuples of them; got {type(self).__name__} with "
                f"others for {', '.join(odd)}. Name a position by its word, or use torch.save(model.state_dict(), ...)."
            ) from None
        tensors = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_bytes(Path(folder) / WEIGHTS, save({n: x.contiguous() for n, x in tensors.items()}, {"format": "pt"}))
        write_bytes(Path(folder) / CONFIG, text.encode())

    @classmethod
    def from_pretrained(cls: type[Kept], folder: str | Path, **changed: Any) -> Kept:
        """The model of a folder that `save_pretrained` wrote, in eval mode; or of a name on the Hub (owner/name).

        Args:
            folder: a folder; what is none is looked up by huggingface_hub, if that is installed.
            changed: settings that replace those of the folder.

        Raises:
            ValueError: for a folder that is not there, does not say a model of this class, or does not fit it.
        """
        from safetensors.torch import load_file

        path = Path(folder) if Path(folder).is_dir() else _fetch(str(folder))
        settings = _read(path / CONFIG, cls.__name__)
        model = cls(**{**settings, **changed})
        assert isinstance(model, nn.Module)
        try:
            model.load_state_dict(load_file(path / WEIGHTS))
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{cls.__name__} needs {WEIGHTS} with its own tensors; got {str(path)!r}: {error}. "
                "For other sizes load it as it is, and use model.resized(...)."
            ) from None
        return model.eval()

    @check_types
    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> None:
        """`save_pretrained` to a repository of the Hub, which is made if it is not there; needs huggingface_hub."""
        import tempfile

        hub = _hub(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
            hub.upload_folder(repo_id=repo_id, folder_path=folder, token=token)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"a folder, or huggingface_hub to look up a name on the Hub, was needed; got {name!r}, which is no folder, "
            "and no huggingface_hub. Run pip install huggingface_hub, or give the folder."
        ) from None
    return huggingface_hub


def _fetch(name: str) -> Path:
    """The folder of a name on the Hub."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"a folder with {CONFIG} and {WEIGHTS}, or a name on the Hub (owner/name), was needed; got {name!r}, which "
            "is neither. Write one with model.save_pretrained(folder)."
        )
    return Path(_hub(name).snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))


def _read(path: Path, model: str) -> dict[str, Any]:
    """The settings that a folder says a model has."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        config = None
    of = config.pop("model", None) if isinstance(config, dict) else None
    if not isinstance(config, dict) or of != model:
        raise ValueError(
            f"{model}.from_pretrained needs a {CONFIG} that save_pretrained wrote for a {model}; got {str(path)!r} "
            f"for {of!r}. Call it on the class that the file names."
        )
    return {name: _tuples(value) for name, value in config.items()}


def _tuples(value: Any) -> Any:
    """JSON has lists alone."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
