"""timm imports torchvision, whose operators may not load beside a CPU build of torch: declare the two that it names."""

from __future__ import annotations

import sys

import torch

_DECLARED: list[torch.library.Library] = []  # a fragment lives as long as its object


def mend_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            _DECLARED[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
