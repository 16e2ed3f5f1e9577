"""A scheme is one source file, one test case and one page: all else is derived, or written by docs/index.py.

KERPLE (arXiv 2205.09921, equation 5, the logarithmic kernel) is added to a temporary copy of the project.
"""

from __future__ import annotations

import pytest
from extended import Copy

SOURCE = '''"""A bias that falls with the logarithm of the distance, at learned rates."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from locant.grid import Grid
from locant.masks import Structure
from locant.positions.position import Bias, Comparison


@final
class Kerple(Bias):
    """bias[head, i, j] = -r1[head] · log(1 + r2[head] · |i - j|), r1 and r2 learned, both above 0; on sequences.

    Source: Chi et al. (arXiv 2205.09921, equation 5).

    Args:
        heads: one pair of rates each.
    """

    compared = Comparison(
        "kerple", "KERPLE", "a learned logarithm of the distance, the same on both sides",
        build=lambda grid, dim, heads: Kerple(heads), axes=(1,), direction=False,
    )  # fmt: skip

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.rates = nn.Parameter(torch.zeros(heads, 2))

    def at(self, offset: Int[Tensor, "*pairs axes"]) -> Float[Tensor, "heads *pairs"]:
        far = offset[..., 0].abs()
        first, second = self.rates.exp().view(-1, 2, *[1] * far.ndim).unbind(1)
        return -first * torch.log(1 + second * far)

    def check(self, grid: Grid, reach: tuple[int, ...], mask: Structure) -> None:
        if grid.axes != 1:
            raise ValueError(f"Kerple knows distances in a sequence; got {grid}. On images use ALiBi.")

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
'''
CASE = '''"""Kerple: a learned logarithm of the distance."""

from __future__ import annotations

import torch
from torch import Tensor

from locant.positions.kerple import Kerple
from schemes.scheme import HEADS, LINE, Place, Scheme

OF = Kerple
SCHEMES = (Scheme("kerple-1d", LINE, lambda: Kerple(HEADS), blind=True),)


def bias(position: Kerple, head: int, query: Place, key: Place) -> Tensor | float:
    if query is None or key is None:
        return 0.0
    first, second = torch.exp(position.rates[head])
    return -first * torch.log(1 + second * abs(query[0] - key[0]))
'''
PAGE = """# KERPLE

A bias that falls with the logarithm of the distance, at learned rates.

    bias[head, i, j] = −r1[head] · log(1 + r2[head] · |i − j|)

**Source.** Chi et al., [arXiv 2205.09921](https://arxiv.org/abs/2205.09921), equation 5.

```python
import torch
from locant import Causal, Grid, Kerple, attention

q, k, v = torch.randn(3, 1, 4, 10, 8).unbind(0)
out = attention(q, k, v, grid=Grid(10), position=Kerple(4), mask=Causal())
```
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    made = Copy(tmp_path_factory.mktemp("scheme"))
    made.add("src/locant/positions/kerple.py", SOURCE)
    made.add("tests/schemes/kerple.py", CASE)
    made.add("docs/schemes/kerple.md", PAGE)
    made.python("docs/index.py")
    return made


def test_its_name_is_public(copy: Copy) -> None:
    said = copy.python("-c", "import locant; print(locant.Kerple, 'Kerple' in dir(locant))")
    assert said == "<class 'locant.positions.kerple.Kerple'> True\n"


def test_every_law_tries_it_under_every_kernel(copy: Copy) -> None:
    kernels = len(copy.python("-c", "from locant import planner\nfor k in planner.FAMILY: print(k.name)").split())
    passed = copy.tests("tests/test_laws.py", "-k", "kerple")
    assert passed >= 15 * kernels, "a dozen laws hold for any scheme, and one of them tries it under five masks"


def test_it_is_compared(copy: Copy) -> None:
    asked = "compare --task sequences --quick --positions kerple --seeds 1 --epochs 1 --out made --json".split()
    assert '"kerple"' in copy.python("-m", "locant", *asked)
    assert "KERPLE" in (copy.folder / "made" / "report.html").read_text()


def test_the_pages_tell_of_it_and_the_house_stands(copy: Copy) -> None:
    assert "[`Kerple`](kerple.md)" in (copy.folder / "docs" / "schemes" / "README.md").read_text()
    tree = (copy.folder / "docs" / "architecture.md").read_text()
    assert "        kerple.py           Kerple: a bias that falls with the logarithm of the distance" in tree
    assert "| `kerple` | a learned logarithm" in (copy.folder / "docs" / "compare.md").read_text()
    copy.python("tests/house.py")
    told = "kerple or scheme_of_compare or follows_from or every_page_is_linked or links_lead"
    assert copy.tests("tests/test_docs.py", "-k", told) >= 6
    assert copy.tests("tests/test_exports.py", "tests/test_arrows.py") > 100
