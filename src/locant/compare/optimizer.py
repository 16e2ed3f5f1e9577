"""What a trial learns with: AdamW and the rates of `budget.py`, or an optimiser and a schedule of the user's own.

    def recipe(model, lr, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)     # or the optimizer alone

It is called once per trial, with each rate of `--lr` in turn. The schedule steps once after each step of the
optimiser. Its trials take every step of the budget, since a schedule may count on them, and no gradient is clipped.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from locant.checks import description
from locant.compare import source
from locant.tasks.task import Refusal

CLIP = 1.0  # the largest norm of a gradient


class Learner:
    """The optimiser of one trial and its schedule.

    Args:
        model: what learns.
        lr: the peak rate.
        steps: the budget of the trial.
        own: the reference of a recipe of the user's (`source`); None is AdamW.
    """

    def __init__(self, model: nn.Module, lr: float, steps: int, own: str | None) -> None:
        self.model, self.lr, self.own = model, lr, own
        self.schedule: Any = None
        self.optimizer: torch.optim.Optimizer
        if own is None:
            self.optimizer = torch.optim.AdamW(_parameter_groups(model), lr=lr, betas=(0.9, 0.98), fused=True)
            return
        recipe = source.find("recipe", own)
        self.name, self.file = source.name_of(own), source.file_of(recipe)
        made = source.call(recipe, "--recipe needs a function that works on (model, lr, steps)", model, lr, steps)
        both = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(both[0], torch.optim.Optimizer) or not (both[1] is None or hasattr(both[1], "step")):
            raise Refusal(
                f"--recipe needs a function that returns an optimizer, or an optimizer and a schedule; {self.name} "
                f"returned {description(made)}. End it with return optimizer, schedule."
            )
        self.optimizer, self.schedule = both

    def step(self, factor: float) -> None:
        """One step; `factor` is the share of the peak rate, which a schedule of one's own replaces."""
        if self.own is None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=True)
            self.optimizer.step()
            return
        with source.blame(self.file, "--recipe needs an optimizer and a schedule that step without arguments"):
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, and the numbers beside them."""
        whole = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, state in whole["state"].items():
            for name, value in state.items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
        if self.own is None:
            return tensors, {}
        groups = [
            {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items()} for group in whole["param_groups"]
        ]
        schedule = None if self.schedule is None else self.schedule.state_dict()
        about = {"numbers": numbers, "groups": groups, "schedule": schedule}
        try:
            return tensors, json.loads(json.dumps(about))
        except (TypeError, ValueError) as error:
            raise Refusal(
                f"--recipe needs an optimizer and a schedule whose state is tensors and numbers, to go on from; "
                f"that of {self.name} is not: {error}. Take another."
            ) from None

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Back to what `saved` gave."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*tensors.items(), *about.get("numbers", {}).items()):
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        whole = self.optimizer.state_dict()
        groups = about.get("groups", whole["param_groups"])
        if state or about:
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.schedule is not None:
            self.schedule.load_state_dict(about["schedule"])


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on biases, norms and whatever says where tokens are."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": 0.05},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
