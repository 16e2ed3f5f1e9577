"""FIERY's temporal model: our names are the published ones, inside a checkpoint of the whole system.

A published file is Lightning's: `state_dict` with everything under `model.`, the temporal model being
`model.temporal_model.model.{i}`. The encoder, the distributions and the decoder are not part of our model.
"""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule

LAYOUTS = (
    Layout(
        "official",
        (Rule("model.{}.*", "model.temporal_model.model.{}.*"),),
        elsewhere=("model.[!t]*",),
        prefix="model.temporal_model.",
        top=("state_dict",),
    ),
)
