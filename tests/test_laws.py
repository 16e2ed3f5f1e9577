"""Laws x schemes x kernels: each law of tests/laws.py for every scheme that it speaks of."""

from __future__ import annotations

import exactness  # noqa: F401  enters more laws
import pytest
from laws import KERNELS, LAWS

CASES = [pytest.param(law, case, id=f"{law}-{case}") for law, (_, cases) in LAWS.items() for case in cases]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("law", "case"), CASES)
def test_law(law, case, kernel):
    LAWS[law][0](case, kernel)
