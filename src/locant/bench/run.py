"""From settings to a result: exactness, then time, then memory, of the plan's choice and of all others that can run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from locant import planner
from locant.bench.result import Entry, Mode, Result
from locant.bench.settings import CHECKS, Settings, Sides, resolve
from locant.kernels import reference
from locant.measuring import machine, memory
from locant.measuring.clock import Gate, Times, call_and_wait, limit_threads, product, time_in_turn
from locant.measuring.exactness import Truth
from locant.measuring.workload import Workload

HELD = 1_000_000_000  # bytes: over this the dense definition is not timed


def run(
    *,
    grid: Sides,
    heads: int | None = None,
    head_dim: int | None = None,
    batch: int | None = None,
    position: str | None = None,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    queries: int | None = None,
    prefix: int | None = None,
    window: Sides | None = None,
    shift: Sides | None = None,
    mask: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    train: bool | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    tell: Callable[[str], object] | None = None,
) -> Result:
    """Measure one attention problem with every kernel that can run it, the plan's choice among them.

    Args:
        grid: where the keys are: 196, "14x14", (8, 14, 14); the queries are the same tokens, or the last `queries`
            along the first axis.
        heads, head_dim, batch, kv_heads, value_dim, prefix: sizes; by default 8 heads of 64, batch 1.
        position: "none", "relative", "alibi", "rotary" or "gated".
        window, shift, mask: who may attend; mask is "none" or "causal".
        dtype: "float32", "float64", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", "mps": where all of it runs; a call is timed until the device has done it.
        train: True for forward and backward alone, False for forward alone, None for both.
        threads: of torch; default as it is set.
        seconds: for each of the two.
        tell: is called with a sentence on what is going on.

    Raises:
        ValueError: what does not fit together, in the words of `locant.attention`.
    """
    arguments = locals()
    given = {name: arguments[name] for name in CHECKS}
    chosen = resolve(given)
    say = tell or (lambda sentence: None)
    with limit_threads(chosen.threads):
        work = chosen.workload()
        gate = Gate(product(chosen.device))
        gate.calibrate()
        modes = tuple(_measure_mode(mode, work, chosen, gate, say) for mode in chosen.modes)
        about = machine.description() | {"device": machine.device_name(chosen.device)}
        return Result(chosen, about, modes, gate.best, gate.quiet_probes / gate.probes)


def _measure_mode(mode: str, work: Workload, chosen: Settings, gate: Gate, say: Callable[[str], object]) -> Mode:
    train = mode == "train"
    plan = work.plan(train=train)
    refused = {k.name: why for k in planner.FAMILY if (why := _refusal(k, work, train)) is not None}
    say(f"{mode}: comparing with the definition in float64")
    truth = Truth(work, train=train)
    findings = {k.name: tuple(truth.check(k.name)) for k in planner.FAMILY if k.name not in refused}
    right = [name for name, errors in findings.items() if not any(f.red for f in errors)]
    say(f"{mode}: timing {', '.join(right)} in turn, {chosen.seconds:g} seconds")
    run_it = work.gradients if train else work.forward
    calls = {name: call_and_wait(partial(run_it, name), chosen.device) for name in right}
    times = time_in_turn(calls, chosen.seconds, gate) if calls else Times({}, gate)
    extra = {name: memory.extra(call, chosen.device) for name, call in calls.items()}
    entries = [
        Entry(name, errors, times.samples.get(name, ()), extra.get(name)) for name, errors in findings.items()
    ] + [Entry(name, (), (), None, why) for name, why in refused.items()]  # fmt: skip
    return Mode(mode, plan.kernel, tuple(entries), times, truth.compared / max(1, work.pairs))


def _refusal(kernel: Any, work: Workload, train: bool) -> str | None:
    problem = work.plan(train=train).problem
    why: str | None = kernel.refuses(problem)
    if why is None and kernel is reference and (1 + train) * kernel.work(problem).held > HELD:
        why = f"it would hold {(1 + train) * kernel.work(problem).held / 1e9:.1f} GB of scores; it is not timed"
    return why
