"""What was found, as a table in plain words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from locant.bench.settings import Settings
from locant.measuring.clock import Ratio, Sample, Times
from locant.measuring.exactness import Finding

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1
NAMES = {"forward": "forward", "train": "forward + backward"}


@dataclass(frozen=True)
class Entry:
    """One kernel on the problem. Without samples it is RED, or `why` says why it does not run."""

    kernel: str
    findings: tuple[Finding, ...]
    samples: Sequence[Sample]
    extra: int | None  # bytes
    why: str = ""

    @property
    def red(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.red)


@dataclass(frozen=True)
class Mode:
    """Forward, or forward and backward."""

    mode: str
    plan: str  # the kernel that the plan chose
    entries: tuple[Entry, ...]
    times: Times
    compared: float  # the share of scores that exactness rests on

    @property
    def timed(self) -> tuple[Entry, ...]:
        """Fastest first."""
        return tuple(sorted((e for e in self.entries if e.samples), key=lambda e: self.times.seconds(e.kernel)))

    @property
    def red(self) -> tuple[Entry, ...]:
        return tuple(e for e in self.entries if e.red)

    def ratio(self, kernel: str) -> Ratio | None:
        """Its time over that of the plan's choice; None where the choice has no time."""
        return self.times.ratio(kernel, self.plan) if self.plan in self.times.samples else None

    def verdict(self) -> str:
        """Whether the plan picked the fastest here."""
        what = NAMES[self.mode]
        others = [e.kernel for e in self.timed if e.kernel != self.plan]
        if any(e.kernel == self.plan for e in self.red):
            return f"{what}: the plan's choice, {self.plan}, is RED: it gives wrong results here, and has no speed."
        if not others:
            return f"{what}: the plan's choice, {self.plan}, is the only one that was timed."
        first = others[0]
        ratio = self.times.ratio(first, self.plan)
        if ratio.low > 1:
            longer = f"{ratio.median:.2f} times as long"
            return f"{what}: the plan picked the fastest here, {self.plan}; {first} took {longer}."
        if ratio.high < 1:
            return f"{what}: the plan picked {self.plan}, and {first} was faster here: {ratio.median:.2f} of its time."
        return f"{what}: the plan's choice, {self.plan}, and {first} are about equally fast here."


@dataclass(frozen=True)
class Result:
    """All of a run."""

    settings: Settings
    machine: dict[str, object]
    modes: tuple[Mode, ...]
    best_probe: float
    quiet: float  # share of probes

    @property
    def red(self) -> bool:
        return any(mode.red for mode in self.modes)

    def table(self) -> Table:
        """One line per kernel and mode; ratios first."""
        from rich.table import Table

        table = Table()
        for number, column in enumerate(("kernel", "time (plan = 1)", "ms", "extra memory", "error / limit")):
            table.add_column(column, justify="right" if number else "left")
        for mode in self.modes:
            table.add_row(f"[bold]{NAMES[mode.mode]}[/bold]")
            for entry in (*mode.timed, *mode.red, *(e for e in mode.entries if e.why)):
                table.add_row(*_cells(mode, entry))
            table.add_section()
        return table

    def sentences(self) -> list[str]:
        """Below the table: why kernels are missing, what the plan did, and how quiet the machine was."""
        lines = [f"{e.kernel} did not run: {e.why}." for mode in self.modes for e in mode.entries if e.why]
        lines = list(dict.fromkeys(lines))  # often the same forward and backward
        for mode in self.modes:
            for entry in mode.red:
                wrong = ", ".join(f"{f.what} is off by {f.error:.1e} (at most {f.limit:.1e})" for f in entry.red)
                lines.append(f"{NAMES[mode.mode]}: {entry.kernel} is RED: {wrong}.")
        lines += self.verdicts()
        if any(not ratio.quiet for ratio in self._ratios()):
            lines.append(
                f"* The machine was not quiet ({self.quiet:.0%} of the probes were): read these ratios with care, or "
                "run again with more --seconds."
            )
        return lines

    def verdicts(self) -> list[str]:
        return [mode.verdict() for mode in self.modes]

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return f"<pre>{escape(captured.get() + chr(10).join(self.sentences()))}</pre>"

    def _ratios(self) -> list[Ratio]:
        ratios = [mode.ratio(e.kernel) for mode in self.modes for e in mode.timed if e.kernel != mode.plan]
        return [ratio for ratio in ratios if ratio is not None]

    def json(self) -> str:
        """Everything, with every sample in milliseconds."""
        return json.dumps(
            {
                "format": FORMAT,
                "problem": self.settings.flags(),
                "machine": self.machine,
                "gate": {"best_probe_ms": 1e3 * self.best_probe, "quiet_probes": self.quiet},
                "red": self.red,
                "modes": [_mode(mode) for mode in self.modes],
            },
            indent=2,
        )


def _cells(mode: Mode, entry: Entry) -> tuple[str, ...]:
    if entry.why:
        return entry.kernel, "does not run", "", "", ""
    worst = max(entry.findings, key=lambda f: f.error / max(f.limit, 1e-300))
    error = f"{worst.error / max(worst.limit, 1e-300):.2g}, {worst.what}"
    if entry.red:
        return entry.kernel, "RED", "", "", error
    ratio = mode.ratio(entry.kernel)
    shown = "1" if entry.kernel == mode.plan else "" if ratio is None else str(ratio)
    memory = "not told here" if entry.extra is None else f"{entry.extra / 1e6:.1f} MB"
    return entry.kernel, shown, f"{1e3 * mode.times.seconds(entry.kernel):.3g}", memory, error


def _mode(mode: Mode) -> dict[str, Any]:
    kernels = []
    for entry in mode.entries:
        about: dict[str, Any] = {
            "kernel": entry.kernel, "state": "refused" if entry.why else "red" if entry.red else "timed",
            "why": entry.why or None, "findings": [{**asdict(f), "red": f.red} for f in entry.findings],
            "ratio": None, "ms": None, "samples_ms": [], "quiet_samples": 0, "extra_bytes": entry.extra,
        }  # fmt: skip
        if entry.samples:
            ratio = mode.ratio(entry.kernel)
            about |= {
                "ratio": None if ratio is None else asdict(ratio), "ms": 1e3 * mode.times.seconds(entry.kernel),
                "samples_ms": [1e3 * s.seconds for s in entry.samples],
                "quiet_samples": mode.times.quiet(entry.kernel),
            }  # fmt: skip
        kernels.append(about)
    return {
        "mode": mode.mode, "plan": mode.plan, "fastest": mode.timed[0].kernel if mode.timed else None,
        "compared": mode.compared, "kernels": kernels,
    }  # fmt: skip
