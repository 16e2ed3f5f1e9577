"""Parity with published code: the peers are fixtures, `timm` and `transformers`, skipped where not installed.

Both import torchvision, whose build from the registry does not load its operators beside a CPU build of torch. What
is imported here needs of them only that two names are declared. That is done when the first test of this folder runs,
and only where torchvision fails in just this way; a healthy one is left alone. Import no peer at the top of a file.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope="session", autouse=True)
def _peers_load() -> None:
    _mend_torchvision()


@pytest.fixture(scope="session")
def timm(_peers_load: None) -> ModuleType:
    """timm, whose layers the goldens were taken from."""
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def transformers(_peers_load: None) -> ModuleType:
    """transformers."""
    return pytest.importorskip("transformers")


@functools.cache  # which also keeps the fragment: its declarations live as long as it does
def _mend_torchvision() -> object:
    try:
        import torchvision
    except ModuleNotFoundError:
        return None  # absent: nothing to mend
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return fragment
