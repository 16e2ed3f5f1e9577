"""A model of one's own in `compare`: what its builder is handed, who forgot to place it, and errors with their line."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from locant import Grid, compare
from locant.attend import attention
from locant.compare import Placement, Refusal, source
from locant.compare.builders import OwnBuilder, check
from locant.compare.candidate import Candidate
from locant.compare.looks import look
from locant.compare.schemes import SCHEMES, find
from locant.masks import Windows
from locant.nn import Attention
from locant.tasks.kinds import KINDS

ITEMS = {"images": ((1, 8, 8), (2, 2)), "clips": ((3, 1, 8, 8), (1, 4, 4)), "sequences": ((8, 4), (1,))}
EVERY = [(kind, s.name) for s in SCHEMES for kind in ITEMS if s.fits(KINDS[kind])]
PURE = [(kind, name) for kind, name in EVERY if name not in ("convit", "aim", "temporal")]


class Own(nn.Module):
    """Pixels as patches of numbers, a class token where asked, attention by `locant.attention`, a head of zeros."""

    def __init__(
        self, position: Placement, prefix: int = 0, module: bool = False, dim: int = 24, heads: int = 2
    ) -> None:
        super().__init__()
        self.patch, self.kind, self.heads = position.patch, position.kind, heads
        self.grid = Grid(*position.grid.shape, prefix=prefix)
        numbers = position.channels * int(np.prod(position.patch))
        self.embed = nn.Linear(numbers, dim)
        self.extra = nn.Parameter(torch.randn(1, prefix, dim)) if prefix else None
        self.tokens = position.tokens(dim, self.grid)
        self.at = nn.ModuleList([position.layer(i, dim, heads, grid=self.grid) for i in range(2)])
        self.qkv = nn.ModuleList([nn.Linear(dim, 3 * dim) for _ in range(2)])
        self.module = nn.ModuleList([Attention(dim, heads) for _ in range(2)]) if module else None
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(dim, position.classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from locant.compare.model import patches

        x = self.embed(patches(KINDS[self.kind], x, self.patch))
        x = x if self.extra is None else torch.cat([self.extra.expand(len(x), -1, -1), x], 1)
        x = self.tokens(x)
        for index, layer in enumerate(self.at):
            for at in layer():
                if self.module is not None:
                    x = x + self.module[index](x, **at)
                    continue
                q, k, v = self.qkv[index](x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
                x = x + attention(q, k, v, **at).transpose(1, 2).flatten(2)
        return self.head(self.drop(x.mean(1)))


def candidate(kind: str, name: str, build=Own, seed: int = 0, **options) -> Candidate:
    item, patch = ITEMS[kind]
    torch.manual_seed(seed)
    placement = Placement(KINDS[kind], find(kind, (name,))[0], item, patch, 5)
    return Candidate.of(lambda position: build(position, **options), placement)


@pytest.mark.parametrize("options", [{}, {"prefix": 1}, {"module": True}], ids=["plain", "class token", "module"])
@pytest.mark.parametrize(("kind", "name"), PURE)
def test_every_scheme_of_position_alone_can_be_placed(kind, name, options) -> None:
    model = candidate(kind, name, **options)
    kept = {n: t.clone() for n, t in model.net.state_dict().items()}
    check(model)
    assert all(torch.equal(t, kept[n]) for n, t in model.net.state_dict().items())  # the check leaves no trace
    picture = look(model)
    cells = model.placement.grid.tokens
    assert all(np.shape(head) == (cells, cells) for layer in picture["layers"] for head in layer["heads"])
    larger = {"images": (1, 12, 12), "clips": (5, 1, 12, 12), "sequences": (12, 4)}[kind]
    moved, _ = model.moved_to(larger)
    assert moved(torch.rand(2, *larger)).shape == (2, 5)
    x = torch.rand(2, *ITEMS[kind][0])
    model.net.eval()
    assert torch.equal(model.moved_to(ITEMS[kind][0])[0](x), model(x))


@pytest.mark.parametrize("kind", ITEMS)
def test_a_seed_gives_every_scheme_the_same_weights_beside_position(kind) -> None:
    starts = []
    for name in (name for own, name in PURE if own == kind):
        model = candidate(kind, name)
        inside = model.names_of_position()
        starts.append({n: t for n, t in model.net.state_dict().items() if n not in inside})
    assert all(torch.equal(t, other[n]) for other in starts[1:] for n, t in starts[0].items())
    assert len({len(start) for start in starts}) == 1
    other = candidate(kind, "none", seed=1).net.state_dict()
    assert not torch.equal(other["embed.weight"], starts[0]["embed.weight"])


def test_a_builder_may_draw_from_any_stream(tmp_path) -> None:
    text = "import random, numpy\nfrom torch import nn\ndef build(position):\n    net = nn.Linear(2, 2)\n"
    path = written(tmp_path, text + "    net.drawn = (random.random(), numpy.random.rand())\n    return net\n")
    make = OwnBuilder(source.reference("model", str(path), "build"))
    nets = [candidate("images", "none", build=make, seed=seed).net for seed in (3, 3, 4)]
    assert nets[0].drawn == nets[1].drawn
    assert len({*nets[0].drawn, *nets[2].drawn}) == 4


def test_a_layer_hands_out_the_keywords_of_attention() -> None:
    model = candidate("clips", "shared")
    time, space = model.blocks()[1](Grid(5, 3, 3))
    assert (time["grid"], time["mask"]) == (Grid(5, 3, 3), Windows((5, 1, 1)))
    assert (space["grid"], space["mask"]) == (Grid(5, 3, 3), Windows((1, 3, 3)))
    assert time["position"] is model.blocks()[1][0]
    (plain,) = candidate("images", "none").blocks()[0]()
    assert plain == {"grid": Grid(4, 4), "position": None, "mask": None}
    (window,) = candidate("images", "swin").blocks()[1]()
    assert window["mask"] == Windows((2, 2), (1, 1))


class Forgets(Own):
    def __init__(self, position: Placement, how: str) -> None:
        super().__init__(position)
        self.how = how
        held = self.at if how != "tokens" else self.tokens
        if how == "unkept":
            held = list(self.at)
            del self.at
            self.at = held
        elif how == "ignored":
            for module in held:
                module.forward = lambda *_, calls=module: [{"grid": self.grid}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "uncalled":
            return self.head(self.embed(x.flatten(1)[:, :4]))
        return super().forward(x)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("unkept", "what position.layer gave is not kept on the model, so it would not learn"),
        ("uncalled", "forward never calls what position.layer gave"),
        ("ignored", "forward never calls what position.layer gave|do not depend on what position.layer gave"),
    ],
)
def test_a_builder_that_forgets_is_told_what_it_forgot(how, why) -> None:
    with pytest.raises(Refusal, match=why):
        check(candidate("images", "relative", build=Forgets, how=how))
    check(candidate("images", "none", build=Forgets, how=how))  # there is nothing to place


def test_one_that_never_asks_or_asks_in_vain_is_told_so() -> None:
    class Asks(nn.Module):
        def __init__(self, position: Placement, layers: bool) -> None:
            super().__init__()
            self.at = position.layer(0, 24, 2) if layers else None
            self.head = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.at is not None:
                self.at()  # and never attends
            return self.head(x.flatten(1))

    with pytest.raises(Refusal, match=r"never asks for position\.layer\. With 'relative' it would train the model of"):
        check(candidate("images", "relative", build=Asks, layers=False))
    with pytest.raises(Refusal, match=r"its answers do not depend on what position\.layer gave"):
        check(candidate("images", "relative", build=Asks, layers=True))
    with pytest.raises(Refusal, match=r"never asks for position\.tokens"):
        check(candidate("images", "learned", build=Asks, layers=True))


def test_a_model_that_answers_with_something_else_is_refused() -> None:
    class Wide(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :3]

    with pytest.raises(Refusal, match=r"needs logits \[batch, 5\] for examples \[2, 1, 8, 8\]; .*\[2, 3\]"):
        check(candidate("images", "none", build=Wide))


def test_weights_that_depend_on_the_size_are_said_by_name() -> None:
    class Fixed(Own):
        def __init__(self, position: Placement) -> None:
            super().__init__(position)
            self.places = nn.Parameter(torch.zeros(position.grid.tokens, 24))

    with pytest.raises(ValueError, match=r"need one shape .*places \[36, 24\] instead of \[16, 24"):
        candidate("images", "none", build=Fixed).moved_to((1, 12, 12))


@pytest.mark.parametrize("call", ["tokens(0)", "tokens(24, (4, 4))", "layer(-1, 24, 2)", "layer(0, 24, 5)"])
def test_what_a_builder_asks_wrongly_is_said(call) -> None:
    placement = Placement(KINDS["images"], find("images", ("none",))[0], (1, 8, 8), (2, 2), 5)
    with pytest.raises(ValueError, match=r"(tokens|layer) needs .*; got "):
        eval(f"placement.{call}", {"placement": placement})


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(position:\n", r"mine\.py, line 1: SyntaxError"),
        ("import nothing_like_it\n", r"mine\.py, line 1, in <module>: ModuleNotFoundError: No module named"),
        ("def make(position): pass\n", r"there is no 'build', but make\. Write --model mine\.py:make"),
        ("def build(position):\n    return 1 / 0\n", r"mine\.py, line 2, in build: ZeroDivisionError"),
        ("def build(position):\n    return position\n", r"returns a torch\.nn\.Module; mine\.py:build returned"),
        (
            "from torch import nn\ndef build(position):\n    position.layer(0, 20, 3)\n",
            r"mine\.py, line 3, in build: ValueError: position\.layer needs the number of a layer",
        ),
    ],
)
def test_what_goes_wrong_in_the_file_is_one_sentence_with_its_line(text, said, tmp_path) -> None:
    placement = Placement(KINDS["images"], find("images", ("none",))[0], (1, 8, 8), (2, 2), 5)
    reference = source.reference("model", str(written(tmp_path, text)), "build")
    with pytest.raises(Refusal, match=said):
        OwnBuilder(reference)(placement)


@pytest.mark.parametrize("name", ["aim", "temporal", "convit"])
def test_whole_designs_are_refused_by_name(name, tmp_path) -> None:
    kind = "images" if name == "convit" else "clips"
    placement = Placement(KINDS[kind], find(kind, (name,))[0], *ITEMS[kind], 5)
    with pytest.raises(Refusal, match=rf"'{name}' is a whole design: .*Leave '{name}' out of --positions"):
        OwnBuilder(source.reference("model", Own, "build"))(placement)


def test_the_hash_is_over_the_file_and_what_it_imports_beside_it(tmp_path) -> None:
    written(tmp_path, "WIDTH = 24\n", "sizes.py")
    path = written(tmp_path, "import json\nimport sizes\ndef build(position): pass\n")
    text = source.reference("model", str(path), "build")
    assert text == f"{path}:build"
    first = source.digest(text)
    written(tmp_path, "WIDTH = 48\n", "sizes.py")
    second = source.digest(text)
    path.write_text(path.read_text() + "\n")
    assert len({first, second, source.digest(text)}) == 3


def test_functions_of_files_are_named_and_others_are_kept_here() -> None:
    assert source.reference("model", Own, "build") == f"{Path(__file__).resolve()}:Own"
    live = source.reference("model", lambda position: Own(position), "build")
    assert source.is_live(live)
    assert callable(source.find("model", live))
    with pytest.raises(Refusal, match="was given from Python as 'gone', which no file holds"):
        source.find("model", "python:model:gone")
    digest = source.digest(live)
    assert source.digest(source.reference("model", lambda position: Own(position), "build")) == digest
    assert source.digest(source.reference("model", lambda position: Own(position, 1), "build")) != digest
    live = source.reference("model", lambda position: Own(position), "build")
    other = source.reference("metric", lambda outputs, labels: labels, "metric")
    assert source.find("metric", other) is not source.find("model", live)  # both are called <lambda>
    with pytest.raises(Refusal, match=r"model= needs a function, or the name of one .*; got"):
        source.reference("model", 3, "build")
    for wrong, said in (
        ("resnet50", "needs small, .*or a builder of your own"),
        ("no.py:build", "there is no 'no.py'"),
    ):
        with pytest.raises(Refusal, match=said):
            compare.run(model=wrong, task="images", quiet=True)


FLAGS = {"task": "images", "positions": ("none", "relative", "learned"), "seeds": 1, "epochs": 2, "share": 0.1,
         "starts": 1, "lr": 0.003, "quiet": True}  # fmt: skip


def test_a_file_and_the_same_function_here_end_with_the_same_weights(tmp_path, monkeypatch) -> None:
    """Workers load the file; a function that no file holds trains in this process. Dropout is drawn alike in both."""
    monkeypatch.setattr("locant.compare.measure.PATIENCE", 0.0)
    monkeypatch.setattr("locant.compare.measure.MOST_TOKENS", 16)
    text = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    path = written(
        tmp_path, text + "from test_compare_builders import Own\ndef build(position):\n    return Own(position)\n"
    )
    there = compare.run(model=f"{path}:build", out=tmp_path / "there", threads=2, **FLAGS)
    torch.set_num_threads(1)

    def build(position):
        return Own(position)

    here = compare.run(model=build, out=tmp_path / "here", **FLAGS)
    source._kept.clear()
    with pytest.raises(Refusal, match="which no file holds"):
        compare.run(resume=tmp_path / "here", quiet=True)
    again = compare.run(resume=tmp_path / "here", model=build, quiet=True)
    assert again.data["tasks"] == here.data["tasks"]
    weights = [[t["weights"] for s in r.data["tasks"][0]["schemes"] for t in s["trials"]] for r in (there, here)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 3
    model = there.data["tasks"][0]["model"]
    assert (model["name"], model["tokens"]) == ("mine.py:build", 16)
    saved = next((there.folder / "trials").glob("images-learned-*.safetensors"))
    net, about = compare.load(saved)
    assert type(net).__name__ == "Own"
    again, _ = compare.load(saved, model=Own)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    path.write_text(path.read_text() + "# changed\n")
    with pytest.raises(Refusal, match=r"mine\.py:build as it was when"):
        compare.run(resume=tmp_path / "there", quiet=True)
    assert about["recipe"]["model"] == f"{path}:build"


def test_a_script_that_runs_when_it_is_imported_is_told_so(tmp_path) -> None:
    """Its workers import it: without a guard they would start runs of their own."""
    path = written(tmp_path, f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from locant import compare
        from test_compare_builders import FLAGS, Own

        def build(position):
            return Own(position)

        compare.run(model=build, out={str(tmp_path / "run")!r}, **FLAGS)
    """)  # fmt: skip
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert 'Put the call under if __name__ == "__main__":' in done.stderr


def test_two_processes_train_a_model_of_ones_own(tmp_path) -> None:
    """One of its parameters plays no part, which DistributedDataParallel must be told."""
    path = written(tmp_path, f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch
        from test_compare_builders import Own

        def build(position):
            net = Own(position)
            net.spare = torch.nn.Parameter(torch.zeros(3))
            return net
    """)  # fmt: skip
    flags = "--task images --positions none,relative --seeds 1 --steps 4 --share 0.1 --starts 1 --lr 0.003 -q".split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "locant", "compare", *flags, "--model", str(path), "--out", str(tmp_path / "run")]
    for _ in range(2):  # the port that torchrun finds free may be taken by others before its processes bind it
        done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("report.html")
