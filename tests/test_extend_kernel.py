"""A kernel is one file and its name in planner.FAMILY, imported there: a throw-away one, in a copy of the project."""

from __future__ import annotations

import pytest
from extended import Copy

SOURCE = '''"""One head after the other, dense: exact, for a head never meets another."""

from __future__ import annotations

import torch

from locant import separable
from locant.kernels.kernel import Output, Work
from locant.problem import Inputs, Problem

name = "heads"


def refuses(problem: Problem) -> str | None:
    if problem.content is not None:
        return "this kernel reads one bias for all samples, and content brings each query terms of its own"
    return separable.refuses(problem)


def work(problem: Problem) -> Work:
    scores = problem.batch * problem.heads * problem.queries * problem.keys
    flops = 2 * scores * (problem.head_dim + problem.value_dim)
    held = scores // max(1, problem.heads) * problem.width
    return Work(flops, problem.stream + 2 * held, held, ("forms the scores of one head at a time",))


def run(problem: Problem, inputs: Inputs) -> Output:
    k, v = inputs.grouped()
    allowed = None if inputs.mask is None else inputs.mask.allowed(problem.grid, problem.key_grid, inputs.q.device)
    bias = None if inputs.bias is None else inputs.bias.dense(problem.grid, problem.key_grid).to(inputs.q.dtype)
    outs, sums = [], []
    for head in range(problem.heads):
        logits = inputs.scale * (inputs.q[:, head] @ k[:, head].mT)
        if bias is not None:
            logits = logits + bias[head]
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, head if allowed.shape[1] > 1 else 0], -torch.inf)
        top = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        weights = torch.exp(logits - top)
        total = weights.sum(-1, keepdim=True)
        empty = total == 0
        sums.append(torch.where(empty, -torch.inf, top + torch.log(torch.where(empty, 1.0, total))).squeeze(-1))
        p = weights / torch.where(empty, 1.0, total)
        outs.append(torch.nn.functional.dropout(p, inputs.dropout) @ v[:, head])
    out = separable.mixed(problem, inputs.gate, torch.stack(outs, 1), v)
    return out, torch.stack(sums, 1) if problem.lse else None
'''
LINE = "FAMILY: tuple[Kernel, ...] = (triton, native, sdpa, flex, reference)"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    made = Copy(tmp_path_factory.mktemp("kernel"))
    made.add("src/locant/kernels/heads.py", SOURCE)
    made.replace("src/locant/planner.py", LINE, LINE.replace("(triton,", "(heads, triton,"))
    made.replace(
        "src/locant/planner.py",
        "import flex, native, reference, sdpa, triton",
        "import flex, heads, native, reference, sdpa, triton",
    )
    made.python("docs/index.py")
    return made


def test_it_runs_when_asked_for_and_is_not_chosen_before_it_was_measured(copy: Copy) -> None:
    said = copy.python(
        "-c",
        "import torch; from locant import attention, plan\n"
        "q, k, v = torch.randn(3, 1, 2, 6, 4, dtype=torch.float64).unbind(0)\n"
        "print((attention(q, k, v, kernel='heads') - attention(q, k, v)).abs().max().item() < 1e-12)\n"
        "print(plan(q, k, v).kernel != 'heads', dict(plan(q, k, v).passed_over)['heads'])",
    )
    assert said == "True\nTrue exact as well, and never measured on cpu: it runs when asked for by name\n"


def test_laws_and_exactness_try_it(copy: Copy) -> None:
    """Laws x schemes, values and gradients in every dtype: nothing knows it by name."""
    assert copy.tests("tests/test_laws.py", "tests/test_kernels.py", "-k", "heads and table-2d-prefix") > 50


def test_what_is_said_of_plans_holds_beside_it(copy: Copy) -> None:
    assert copy.tests("tests/test_plan.py", "-k", "falls_back and (table or gate or cpb) or refused or words") > 100


def test_the_house_stands(copy: Copy) -> None:
    tree = (copy.folder / "docs" / "architecture.md").read_text()
    assert "        heads.py            One head after the other, dense" in tree
    copy.python("tests/house.py")
    assert copy.tests("tests/test_arrows.py") > 100
