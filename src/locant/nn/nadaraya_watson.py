"""Regression by the mean of what lies near: attention whose scores are a kernel of distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locant.checks import check_type, check_types
from locant.masks import Mask
from locant.nn.scoring import Pooled, allowed_pairs, check_pooling, seen
from locant.softmax import softmax

KERNELS = ("gaussian", "boxcar", "constant", "triangular")


class NadarayaWatson(nn.Module):
    """y_i = Σ_j K(d_ij) v_j / Σ_j K(d_ij),  d_ij = |w| · ‖q_i - k_j‖: regression by the mean of what lies near.

    Q [batch, queries, dim], K [batch, keys, dim], V [batch, keys, value_dim]; numbers x [n] are tokens of one channel,
    x[None, :, None]. Memory: the differences are [batch, queries, keys, dim].

        "gaussian"     exp(-d² / 2)
        "boxcar"       1 where d < 1
        "constant"     1: plain averaging
        "triangular"   max(1 - d, 0)

    All four are softmax_j(log K(d_ij)): a query that has nothing within reach gets 0.

    Where it differs: d2l calls the triangular kernel "epanechikov" (Epanechnikov's is 1 - d²), and divides 0 by 0
    where nothing is within reach. Its text prints the Gaussian without its minus sign and the boxcar with d ≤ 1; its
    code has what is here.
    Source: Nadaraya 1964, Watson 1964; d2l, chapter "Attention Pooling", `NWKernelRegression` and its kernels.

    Args:
        kernel: a name out of the table.
        w: what distances are multiplied with; None learns it, from a start drawn uniformly from 0 to 1 (d2l). 1 / w is
            the width, d2l's sigma.

    Raises:
        ValueError: for an unknown kernel, and a learned w where no gradient can reach it.
    """

    @check_types
    def __init__(self, kernel: str = "gaussian", *, w: float | None = 1.0) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(
                f"NadarayaWatson needs a `kernel` out of {', '.join(map(repr, KERNELS))}; got {kernel!r}. "
                'What d2l calls "epanechikov" is "triangular".'
            )
        if w is None and kernel in ("boxcar", "constant"):
            raise ValueError(
                f"NadarayaWatson learns `w` where the kernel has a slope in it; got w=None with {kernel!r}, which has "
                'none. Give a number, or use "gaussian" or "triangular".'
            )
        self.kernel = kernel
        self.w = nn.Parameter(torch.rand(1)) if w is None else w

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"],
        value: Float[Tensor, "batch keys value_dim"],
        *,
        mask: Mask | None = None,
        exclude_self: bool = False,
        need_weights: bool = False,
    ) -> Pooled:
        """Pool. Returns the output, and with `need_weights` the weights; else None.

        Args:
            query, key, value: see above.
            mask: who may take part.
            exclude_self: leave key i out for query i. In training, where both are the same samples, a sample would
                otherwise predict its own value.

        Raises:
            ValueError: for tensors or a mask that do not fit one another; `exclude_self` between unlike numbers.
        """
        check_pooling("NadarayaWatson", query, key, value, None, query)
        check_type("NadarayaWatson", "exclude_self", exclude_self, bool)
        check_type("NadarayaWatson", "need_weights", need_weights, bool)
        queries, keys = query.shape[1], key.shape[1]
        allowed = allowed_pairs(mask, len(query), queries, keys, query.device)
        if exclude_self:
            if queries != keys:
                raise ValueError(
                    f"exclude_self needs as many queries as keys, the same samples; got {queries} and {keys}. "
                    "Leave it out, or name the pairs by mask=Pairs(...)."
                )
            others = ~torch.eye(keys, dtype=torch.bool, device=query.device)[None]
            allowed = others if allowed is None else allowed & others
        key, value = seen(key, allowed), seen(value, allowed)
        distance = torch.linalg.vector_norm(query[:, :, None] - key[:, None], dim=-1)
        p, _ = softmax(self._log((distance * self.w).abs()), allowed)
        return p @ value, p if need_weights else None

    def _log(self, d: Float[Tensor, "batch queries keys"]) -> Float[Tensor, "batch queries keys"]:
        """log K(d), with -inf beyond its reach."""
        if self.kernel == "gaussian":
            return -(d**2) / 2
        if self.kernel == "constant":
            return torch.zeros_like(d)
        beyond = d >= 1
        inside = torch.log1p(-d.masked_fill(beyond, 0.0)) if self.kernel == "triangular" else torch.zeros_like(d)
        return inside.masked_fill(beyond, -torch.inf)

    def extra_repr(self) -> str:
        return f"{self.kernel!r}" + ("" if isinstance(self.w, Tensor) else f", w={self.w}")
