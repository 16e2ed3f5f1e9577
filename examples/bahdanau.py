"""Bahdanau's model learns to reverse a sequence, and its attention shows how: it runs along the anti-diagonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locant import Padding
from locant.models.bahdanau import Bahdanau
from locant.models.tokens import greedy

PAD, BEGIN, END, SYMBOLS, LONGEST = 0, 1, 2, 8, 6


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
    model = Bahdanau(3 + SYMBOLS, 3 + SYMBOLS, embed=16, hidden=48, layers=1)
    steps = 150
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    for step in range(1, steps + 1):
        source, mask, target = sentences(64)
        logits, _ = model(source, target[:, :-1], mask=mask)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    model.eval()
    source, mask, target = sentences(200)
    written = greedy(model, source, begin=BEGIN, end=END, limit=LONGEST + 1, mask=mask)
    wanted = target[:, 1 : 1 + written.shape[1]]
    right = ((written == wanted) | (wanted == PAD)).all(1).float().mean().item()
    print(f"{right:.0%} of new sequences are reversed without a mistake")
    assert right > 0.9

    _, weights = model(source, target[:, :-1], mask=mask, need_weights=True)
    full = mask.valid.all(1)
    mean = weights[full, :LONGEST].mean(0).detach()
    print("where it looks (columns) as it writes token 1, 2, ... (rows):")
    for row in mean:
        print("  " + " ".join(f"{p:.2f}" if p >= 0.005 else " .  " for p in row.tolist()))
    # a recurrent state knows its neighbour as well, so that one place beside is no mistake
    looked = (mean * torch.arange(LONGEST)).sum(1)
    assert bool((looked.diff() < 0).all()), "it goes backwards"
    assert float(mean.flip(1).diagonal().mean()) > 0.4  # 0.17 would be no preference


if __name__ == "__main__":
    main()
