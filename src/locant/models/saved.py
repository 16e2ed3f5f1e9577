"""The model that a file describes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def from_file(path: str | Path) -> nn.Module:
    """The model that `locant convert` wrote a .safetensors file for: built as it was wanted, with its weights.

    What the file says of its model is checked against its tensors before any memory is taken for it.

    Args:
        path: a .safetensors file that `convert` wrote, whichever library's names it has.

    Raises:
        ValueError: if the file does not say which model it is of, or does not fit it tensor by tensor.
        OSError: if it cannot be read.
    """
    from locant.checkpoints.converting import build, described
    from locant.checkpoints.loading import prepared

    name, settings = described(path)
    with torch.device("meta"):  # names and shapes alone
        state, _ = prepared(build(name, settings), path)
    model = build(name, settings)
    model.load_state_dict(state)
    return model
