"""Checkpoints: published weights in, in the names and sizes of a model here, and out again.

    from locant import checkpoints, models

    model = models.swin_tiny(img_size=384, window=12)
    print(checkpoints.load(model, "swin_tiny_patch4_window7_224.pth"))      # a Report
    state = checkpoints.export(model, "timm")

Names are tables of data, one file per family (`names.py` says how they are read), tables and embeddings go from grid to
grid by the named methods of `locant.resizing`, and files are checked before anything is made of them (`files.py`).
"""

from locant.checkpoints.contents import read
from locant.checkpoints.converting import convert
from locant.checkpoints.files import write
from locant.checkpoints.loading import export, load, resize
from locant.checkpoints.names import Layout, Rule
from locant.checkpoints.report import Report, Resized

__all__ = ["Layout", "Report", "Resized", "Rule", "convert", "export", "load", "read", "resize", "write"]
