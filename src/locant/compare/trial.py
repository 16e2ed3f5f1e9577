"""One trial: one scheme, one seed, one learning rate, trained and tested. The same trial gives the same bits.

AdamW; the rate warms up, stays, and falls (`budget.py`); the weights kept are those that validate best. The order of
examples and how they are varied depend on (seed, epoch) alone, what a model draws (dropout) on (seed, step): a
checkpoint is the weights, the optimiser and a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.compare import budget, checkpoint
from locant.compare.builders import find_builder
from locant.compare.candidate import Candidate
from locant.compare.metric import Metric, find_metric
from locant.compare.optimizer import Learner
from locant.compare.placement import Placement
from locant.compare.schemes import find
from locant.compare.sizes import SIZES
from locant.compare.world import World, autocast
from locant.tasks import augmentation, splits
from locant.tasks.kind import Recipe
from locant.tasks.kinds import KINDS
from locant.tasks.task import Examples, Task

SAVE_EVERY = 50  # steps; a look at validation is saved too
EVALUATED = 256  # examples at once in evaluation
NUMBERS = ("step", "end", "loss", "seen", "curve", "best_step", "best_validation")  # of a trial under way
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What identifies a trial; `start` is how wide what is learned starts, None where that is not chosen."""

    kind: str
    scheme: str
    seed: int
    lr: float
    start: float | None = None

    @property
    def key(self) -> str:
        start = "" if self.start is None else f"-start{self.start:g}"
        return f"{self.kind}-{self.scheme}-seed{self.seed}-lr{self.lr:g}{start}"


def build(job: Job, task: Task, recipe: Recipe) -> Candidate:
    """The model of a trial as it starts, from its seed alone."""
    return build_for(job, task.train.shape, len(task.classes), recipe)


def build_for(job: Job, item: tuple[int, ...], classes: int, recipe: Recipe) -> Candidate:
    """The same, from the shape of an example and the number of classes."""
    (scheme,) = find(job.kind, (job.scheme,))
    kind = KINDS[job.kind]
    torch.manual_seed(job.seed)
    placement = Placement(kind, scheme, item, kind.patch(item, recipe.patch), classes, start=job.start)
    return Candidate.of(find_builder(recipe), placement)


def train(job: Job, task: Task, recipe: Recipe, folder: Path, world: World, tell: Tell) -> dict[str, Any]:
    """Train, test, save `<key>.safetensors`, and return what is said about it. Goes on from where a kill left it."""
    done, part = folder / f"{job.key}.safetensors", folder / f"{job.key}.part.safetensors"
    if done.exists():
        return checkpoint.read(done)[1]
    run = _Run(job, task, recipe, world)
    if part.exists():
        run.restore(*checkpoint.read(part))
    while run.step < run.end:
        if not run.advance():
            break
        looks = run.step % run.every == 0 or run.step == run.end
        if looks:
            run.check()
            tell({"key": job.key, "steps": run.end, **run.curve[-1]})
        if world.leads and (looks or run.step % SAVE_EVERY == 0):
            checkpoint.write(part, *run.saved())
    tensors, about = run.finish()
    if world.leads:
        checkpoint.write(done, tensors, about)
        part.unlink(missing_ok=True)
    world.wait()
    return about


class _Run:
    """A trial under way."""

    def __init__(self, job: Job, task: Task, recipe: Recipe, world: World) -> None:
        kind = KINDS[job.kind]
        own = splits.share(task.train, recipe.share, job.seed)
        self.varied = augmentation.Varied(own, kind, augmentation.ways(recipe, kind, task), job.seed)
        task = replace(task, train=own)
        self.job, self.task, self.recipe, self.world = job, task, recipe, world
        self.candidate = build(job, task, recipe)
        self.model = self.candidate.net.to(world.device)
        self.replica = world.wrap(self.model, unused=recipe.model not in SIZES)
        self.per_epoch = budget.steps_per_pass(recipe, len(task.train))
        self.steps = budget.count_steps(recipe, len(task.train))
        self.learner = Learner(self.model, job.lr, self.steps, recipe.recipe)
        self.metric = find_metric(recipe.metric)
        self.every = budget.steps_between_checks(self.steps)
        self.end = self.steps  # earlier, once validation has come to a plateau
        self.step, self.loss, self.seen, self.order = 0, 0.0, 0, np.empty(0, np.int64)
        self.curve: list[dict[str, Any]] = []
        self.best = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.best_step, self.best_validation = 0, -1.0

    def advance(self) -> bool:
        """One step. False if the loss is no longer finite: the trial ends with its best weights so far."""
        torch.manual_seed(self.job.seed * 1_000_003 + self.step)  # what a model draws: the same after a resume
        epoch, place = divmod(self.step, self.per_epoch)
        if place == 0:
            self.begin(epoch)
        batch = self.order[place * self.recipe.batch : (place + 1) * self.recipe.batch]
        loss = self.world.loss(self.losses(self.world.share(batch)), len(batch))
        self.learner.optimizer.zero_grad()
        loss.backward()
        total = float(self.world.total(loss.detach() / self.world.size))
        if not math.isfinite(total):
            return False
        self.learner.step(budget.rate_factor(self.step, self.steps, self.end))
        self.loss, self.seen = self.loss + total * len(batch), self.seen + len(batch)
        self.step += 1
        return True

    def begin(self, epoch: int) -> None:
        """A pass over the training examples: their order, and how each is varied."""
        self.order = np.random.default_rng([self.job.seed, epoch]).permutation(len(self.task.train))
        self.varied.begin(epoch)

    def losses(self, index: np.ndarray) -> Float[Tensor, " batch"]:
        x, y = load(self.varied, index, self.world.device)
        with self.candidate.blame(), autocast(self.world.device, self.recipe.autocast):
            logits = self.replica(x)
            return nn.functional.cross_entropy(logits, y, reduction="none")

    def check(self) -> None:
        """A look at validation: the best weights are kept, and on a plateau the rate begins to fall."""
        self.world.level(self.model)
        validation = float(self.scores(self.model, self.task.validation).mean())
        passes = round(self.step / self.per_epoch, 2)
        self.curve.append({"step": self.step, "epoch": passes, "loss": self.loss / self.seen, "validation": validation})
        self.loss, self.seen = 0.0, 0
        if validation > self.best_validation:
            self.best_step, self.best_validation = self.step, validation
            self.best = {name: t.clone() for name, t in self.model.state_dict().items()}
        soonest = self.step + budget.steps_of_fall(self.steps)
        if (
            self.recipe.recipe is None  # a schedule of one's own counts on every step
            and soonest < self.end
            and budget.on_plateau([point["validation"] for point in self.curve], self.step, self.steps)
        ):
            self.end = soonest

    def scores(self, model: nn.Module, examples: Examples) -> np.ndarray:
        with autocast(self.world.device, self.recipe.autocast):
            return score(model, examples, self.world, self.metric)

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"best.{n}": t for n, t in self.best.items()}
        moments, learner = self.learner.saved()
        tensors |= {f"optimizer.{name}": t for name, t in moments.items()}
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return tensors, {"fingerprint": self.task.fingerprint, "learner": learner, **numbers}

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name in NUMBERS:
            setattr(self, name, about[name])
        self.model.load_state_dict(_strip_prefix("model.", tensors))
        self.best = _strip_prefix("best.", tensors)
        self.learner.restore(_strip_prefix("optimizer.", tensors), about.get("learner", {}))
        self.begin(self.step // self.per_epoch)

    def stopped(self) -> str | None:
        """Why it ended before its budget, in words."""
        if self.step < self.end:
            return f"the loss was no longer finite after step {self.step}"
        if self.end == self.steps:
            return None
        fall = self.end - budget.steps_of_fall(self.steps)
        at = [point["validation"] for point in self.curve if point["step"] <= fall][-1]
        why = "had no error" if at == 1.0 else f"was no better for {budget.PATIENCE} looks"
        return f"validation {why} at step {fall}, and the rate fell from there"

    def finish(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Test with the best weights, on what was trained for and on what was not."""
        self.model.load_state_dict(self.best)
        right = {"test": self.scores(self.model, self.task.test)}
        shifts: dict[str, Any] = {}
        for shift in self.task.shifts:
            try:
                moved, how = self.candidate.moved_to(shift.examples.shape)
                with moved.blame():
                    right[shift.name] = self.scores(moved.net, shift.examples)
                shifts[shift.name] = {"accuracy": float(right[shift.name].mean()), "how": how, "why_not": None}
            except ValueError as error:
                shifts[shift.name] = {"accuracy": None, "how": None, "why_not": str(error)}
        tensors = {f"model.{name}": t for name, t in self.best.items()}
        tensors |= {f"correct.{name}": _stored(hit) for name, hit in right.items()}
        about = {
            "job": asdict(self.job),
            "fingerprint": self.task.fingerprint,
            "best_step": self.best_step,
            "best_epoch": round(self.best_step / self.per_epoch, 2),
            "steps": self.step,
            "stopped": self.stopped(),
            "validation": max(self.best_validation, 0.0),
            "test": float(right["test"].mean()),
            "weights": digest(self.best),
            "curve": self.curve,
            "shifts": shifts,
            "finite": self.step == self.end,
            "recipe": asdict(self.recipe),
            "item": list(self.task.train.shape),
            "classes": list(self.task.classes),
        }
        return tensors, about


def load(
    examples: Examples, index: np.ndarray, device: str
) -> tuple[Float[Tensor, "batch ..."], Int[Tensor, " batch"]]:
    """Some examples and their labels, on the device."""
    x = torch.from_numpy(np.ascontiguousarray(examples.read(index), dtype=np.float32))
    return x.to(device), torch.from_numpy(np.asarray(examples.labels)[index].astype(np.int64)).to(device)


@torch.no_grad()
def score(model: nn.Module, examples: Examples, world: World, metric: Metric) -> np.ndarray:
    """The score of every example, in order: each process answers its part, each example counts once."""
    model.eval()
    scores = torch.zeros(len(examples), dtype=torch.float64)
    mine = world.share(np.arange(len(examples)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # data sets that draw give every scheme the same
        for start in range(0, len(mine), EVALUATED):
            index = mine[start : start + EVALUATED]
            x, y = load(examples, index, world.device)
            scores[torch.from_numpy(index)] = metric(model(x), y).to("cpu", torch.float64)
    model.train()
    return (world.total(scores.to(world.device)) if world.size > 1 else scores).cpu().numpy()


def _stored(scores: np.ndarray) -> Tensor:
    """Right and wrong in bytes, scores as they are."""
    plain = torch.from_numpy(scores)
    return plain.to(torch.uint8) if bool(((plain == 0) | (plain == 1)).all()) else plain


def digest(state: dict[str, Tensor]) -> str:
    """A hash of weights: equal exactly when every bit is."""
    total = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _strip_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
