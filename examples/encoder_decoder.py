"""An encoder–decoder Transformer learns to reverse sequences of any length up to seven, and writes them token by token.

It is trained on whole sentences, causally, and decodes with a cache: both see the same, so that what it writes is what
it learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locant import Padding
from locant.models.tokens import greedy
from locant.models.transformer import Transformer

PAD, BEGIN, END, SYMBOLS, LONGEST = 0, 1, 2, 8, 7


def sentences(count: int) -> tuple[Tensor, Padding, Tensor]:
    """Symbols, which of them are real, and their reverse between BEGIN and END."""
    lengths = torch.randint(3, LONGEST + 1, (count, 1))
    line = torch.arange(LONGEST)
    source = torch.randint(3, 3 + SYMBOLS, (count, LONGEST)).masked_fill(line >= lengths, PAD)
    backwards = source.gather(1, (lengths - 1 - line).clamp(min=0)).masked_fill(line >= lengths, PAD)
    target = torch.cat([torch.full((count, 1), BEGIN), backwards, torch.full((count, 1), PAD)], dim=1)
    return source, Padding.from_lengths(lengths[:, 0], LONGEST), target.scatter(1, lengths + 1, END)


def main() -> None:
    torch.manual_seed(0)
    model = Transformer(3 + SYMBOLS, 3 + SYMBOLS, dim=32, heads=4, hidden=64, depth=1, dropout=0.0)
    steps = 250
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for step in range(1, steps + 1):
        source, mask, target = sentences(64)
        logits = model(source, target[:, :-1], mask=mask)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    model.eval()
    source, mask, target = sentences(200)
    written = greedy(model, source, begin=BEGIN, end=END, limit=LONGEST + 1, mask=mask)
    wanted = target[:, 1 : 1 + written.shape[1]]
    right = ((written == wanted) | (wanted == PAD)).all(1).float().mean().item()
    print("reads ", source[0][mask.valid[0]].tolist())
    print("writes", written[0][wanted[0] > PAD].tolist())
    print(f"{right:.0%} of new sequences are reversed without a mistake")
    assert right > 0.9

    whole = model(source, target[:, :-1], mask=mask)
    state, furthest = model.start(source, mask=mask), 0.0
    for t in range(target.shape[1] - 1):
        logits, state = model.decode(target[:, t : t + 1], state)
        furthest = max(furthest, float((logits[:, 0] - whole[:, t]).abs().max().detach()))
    print(f"step by step against the whole: {furthest:.1e}")
    assert furthest < 1e-5 * float(whole.abs().max().detach())


if __name__ == "__main__":
    main()
