"""Every launch compiles for chips that are not here, and what the assembler made of it stays within its limits.

Registers, spilled bytes, shared memory, instructions for each score and barriers for each tile are what speed on a GPU
rests on, and are counted without one. The limits are what was found when the kernels were written, and 10 % of it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled here")
from locant.gpu import general, launches, learned, windows  # noqa: E402

pytestmark = pytest.mark.plain

FLOATS = "lse delta vector unit dlse norm table partial ready".split()
WHOLE = (
    "query_place key_place base_place pair_place rows columns tiles row_start column_start groups place region tokens "
    "start work"
).split()
STRIDES = [f"{name}{side}" for name in "qkvogwef" for side in "bht"]
KERNELS = {
    "forward": general.forward_kernel, "keys": general.key_gradients_kernel,
    "queries": general.query_gradients_kernel, "table": learned.table_gradients_kernel,
}  # fmt: skip
SHARED = {80: 163 * 1024, 90: 227 * 1024}
# instructions for each score of the inner loop, by pass and channels; found with Triton 3.7.1 on sm_90
INSTRUCTIONS = {
    ("forward", 32): 9.7, ("forward", 64): 10.8, ("forward", 128): 11.7, ("keys", 32): 13.5, ("keys", 64): 14.3,
    ("keys", 128): 16.7, ("queries", 32): 9.6, ("queries", 64): 10.8, ("queries", 128): 12.4, ("table", 32): 11.6,
    ("table", 64): 14.1, ("table", 128): 18.5,
}  # fmt: skip
OF_WINDOWS = {("sm80", False): 16.1, ("sm80", True): 27.3, ("sm90", False): 17.7, ("sm90", True): 25.0}


class Found(NamedTuple):
    registers: int
    spilled: int  # bytes of a thread
    shared: int
    instructions: float  # of the longest loop, for each score
    barriers: int  # of that loop


def kind(name: str, dtype: str) -> str:
    if name in ("dvector", "seed", "ids", "key_ids"):
        return "*i64"
    if name in ("q", "k", "v", "out", "do", "dq", "dk", "dv"):
        return f"*{dtype}"
    if name in FLOATS:
        return "*fp32"
    return "*i32" if name in WHOLE else "fp32" if name in ("scale", "kept", "inverse") else "i32"


def build(function: Any, constants: dict[str, Any], target: Any, dtype: str = "bf16", **options: Any) -> Any:
    from triton.compiler import ASTSource

    names = [p.name for p in function.params]
    fixed = {p.name for p in function.params if p.is_constexpr}
    signature = {n: "constexpr" if n in fixed else kind(n, dtype) for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*" or n in STRIDES}
    source = ASTSource(fn=function, signature=signature, constexprs={n: constants[n] for n in fixed}, attrs=aligned)
    return triton.compile(source, target=target, options=options)


def counted(kernel: Any, scores: float, folder: Path) -> Found:
    """What ptxas said, and the longest loop of the machine code; `scores` of a tile, for each thread."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])

    def told(*command: str) -> str:
        done = subprocess.run([str(tools / command[0]), *command[1:], str(binary)], capture_output=True, text=True)
        return done.stdout + done.stderr

    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told("cuobjdump", "-res-usage")).groups()
    labels: dict[str, int] = {}
    lines: list[str] = []
    for line in told("nvdisasm", "-c").splitlines():
        if label := re.match(r"\.(L_x_\d+):", line.strip()):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(instruction[1].strip())
    loops = []
    for at, line in enumerate(lines):
        jump = re.search(r"BRA.*\(?\.?(L_x_\d+)", line)
        if jump and labels.get(jump[1], at + 1) <= at:
            loops.append(lines[labels[jump[1]] : at + 1])
    longest = max(loops, key=len)
    names = Counter(re.sub(r"^@\S+\s+", "", line).split()[0].partition(".")[0] for line in longest)
    return Found(int(registers), int(stack), kernel.metadata.shared, len(longest) / scores, names["BAR"])


def constants(launch: launches.Launch, channels: int, how: str = "pair", **changed: Any) -> dict[str, Any]:
    return {
        "GROUP": 1, "D": channels, "DV": channels, "BD": channels, "BDV": channels, "BM": launch.queries,
        "BN": launch.keys, "PLAIN": how == "pair", "PADDED": False, "CUT": False, "DROP": False, "HOW": how,
        "PREC": "ieee", "RAW": False, "ASM": True, **changed,
    }  # fmt: skip


def target(chip: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(chip[2:]), 32) if chip.startswith("sm") else GPUTarget("hip", chip, 64)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(("chip", "kernel", "channels"), launches.LAUNCHES)
def test_launches(chip, kernel, channels, tmp_path):
    one = launches.LAUNCHES[chip, kernel, channels]
    made = build(
        KERNELS[kernel], constants(one, channels), target(chip), num_warps=one.warps, num_stages=one.stages
    )  # fmt: skip
    found = counted(made, one.queries * one.keys / (32 * one.warps), tmp_path)
    print(chip, kernel, channels, found)
    assert found.registers <= 255
    assert found.shared <= SHARED[int(chip[2:])]
    assert found.spilled <= (64 if channels == 128 else 0)
    assert found.barriers <= (5 if (chip, channels) == ("sm80", 128) else 2)
    if chip == "sm90":
        assert found.instructions <= 1.1 * INSTRUCTIONS[kernel, channels]


@pytest.mark.parametrize(("size", "chip"), [(7, "sm90"), (8, "sm90"), (7, "sm80")])
@pytest.mark.parametrize("backward", [False, True])
def test_windows(size, chip, backward, tmp_path):
    """Both kernels hold a window in registers: no spilled bytes to speak of."""
    names = {
        "D": 32, "DV": 32, "BD": 32, "BDV": 32, "BW": 64, "BIAS": True, "LSE": False, "TABLE": True, "PREC": "ieee",
        "RAW": False,
    }  # fmt: skip
    function = windows.backward_kernel if backward else windows.forward_kernel
    warps, stages = launches.WINDOWS
    found = counted(build(function, names, target(chip), num_warps=warps, num_stages=stages), 64 * 64 / 128, tmp_path)
    print(size, chip, backward, found)
    assert found.spilled <= (24 if chip == "sm80" else 0)
    assert found.registers <= 255
    assert found.instructions <= 1.1 * OF_WINDOWS[chip, backward]


@pytest.mark.parametrize("kernel", KERNELS)
def test_lists_padding_segments_and_dropout_compile(kernel):
    """What a GPU meets besides: single biases through lists, under every mask; and without a bias; in float16."""
    one = launches.LAUNCHES["sm90", kernel, 64]
    options = {"num_warps": one.warps, "num_stages": one.stages}
    build(KERNELS[kernel], constants(one, 64, "single", PADDED=True, CUT=True, DROP=True), target("sm90"), **options)
    build(KERNELS[kernel], constants(one, 64, "none", PLAIN=True, GROUP=4), target("sm90"), "fp16", **options)


@pytest.mark.parametrize("kernel", KERNELS)
def test_amd(kernel):
    """No PTX there: plain loads."""
    one = launches.Launch(64, 64, 4, 2)
    build(KERNELS[kernel], constants(one, 64, ASM=False), target("gfx942"), num_warps=4, num_stages=2)


@pytest.mark.parametrize(
    ("chip", "channels", "row"),
    [("sm90", 32, ("sm90", 32)), ("sm90", 33, ("sm90", 64)), ("sm100", 128, ("sm90", 128)), ("sm86", 8, ("sm80", 32))],
)
def test_newer_chips_take_the_newest_row(chip, channels, row):
    assert launches.launch(chip, "keys", channels) is launches.LAUNCHES[row[0], "keys", row[1]]
    assert launches.launch("", "keys", channels) == launches.INTERPRETED
