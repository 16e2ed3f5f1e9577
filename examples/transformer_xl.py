"""Transformer-XL says again what it read one segment ago: with its memory it learns to, without it it can't.

The second segment is blanks alone; wanted at each blank is the token that stood one segment's length before it. A
distance is all that says which one it was, and it reaches into the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from locant.models.transformer_xl import MemTransformerLM

WORDS, LENGTH, BATCH, STEPS = 8, 6, 32, 100
BLANK = 0


def segments() -> tuple[Tensor, Tensor]:
    first = torch.randint(1, WORDS, (BATCH, LENGTH))
    return first, torch.full_like(first, BLANK)


def trained(mem_len: int) -> MemTransformerLM:
    torch.manual_seed(0)
    model = MemTransformerLM(WORDS, 32, 1, 2, 64, mem_len=mem_len, init_std=0.2)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        first, blanks = segments()
        _, memory = model(first)
        logits, _ = model(blanks, memory)
        loss = cross_entropy(logits.flatten(0, 1), first.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def remembered(model: MemTransformerLM) -> float:
    first, blanks = segments()
    _, memory = model(first)
    assert all(not hidden.requires_grad for hidden in memory)  # a segment does not train the one before it
    logits, _ = model(blanks, memory)
    return float((logits.argmax(-1) == first).float().mean())


def main() -> None:
    reader, forgetful = trained(LENGTH), trained(0)
    with_it, without = remembered(reader), remembered(forgetful)
    print(f"with a memory of {LENGTH} it says {with_it:.0%} of the segment again, without {without:.0%}")
    assert with_it > 0.95
    assert without < 0.3  # one word in seven is luck

    # the same segments, one after the other, are one long sequence
    first, blanks = segments()
    with torch.no_grad():
        _, memory = reader(first)
        parted, _ = reader(blanks, memory)
        whole, _ = reader(torch.cat([first, blanks], dim=1))
    apart = float((parted - whole[:, LENGTH:]).abs().max())
    print(f"largest difference to one long sequence: {apart:.1e}")
    assert apart < 1e-4


if __name__ == "__main__":
    main()
