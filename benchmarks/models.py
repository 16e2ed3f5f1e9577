"""Whole models, accelerated, beside what else one could pick: docs/models-speed.md and the figures behind it.

    python benchmarks/models.py run RESULTS.json [--only swin_tiny] [--threads 2] [--seconds 20]
    python benchmarks/models.py write RESULTS.json ... --to docs/models-speed.md

A cell is a model, a batch, a dtype and a mode. Each runs in a process of its own, which may be killed for the time or
the memory that it takes; the cell then names the limit. A cell is the unit: running again replaces the cells that are
named and keeps the others, and figures of another machine stand in a table of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

LIMIT_SECONDS, LIMIT_BYTES = 900, 12 << 30  # of a cell's process
CONTENDERS = ("as it comes", "fused", "compile", "onnxruntime", "openvino", "locant", "locant compile")


# --- models -----------------------------------------------------------------------------------------------------------


def of_timm(name: str, size: int, **more: Any) -> Callable[[int], Any]:
    def build(batch: int) -> Any:
        import timm

        from locant.integrations.named import Named

        def made(fused: bool) -> torch.nn.Module:
            timm.layers.set_fused_attn(fused, experimental=fused)
            torch.manual_seed(0)
            return timm.create_model(name, img_size=size, **more).eval()

        return Named(name, made(False), (torch.randn(batch, 3, size, size),), made(True))

    return build


def swin3d(batch: int) -> Any:
    from torchvision.models.video import swin3d_t

    from locant.integrations.named import Named

    return Named("swin3d_t", swin3d_t().eval(), (torch.randn(batch, 3, 16, 224, 224),))


def swin_unetr(batch: int) -> Any:
    from monai.networks.nets import SwinUNETR

    from locant.integrations.named import Named

    model = SwinUNETR(in_channels=1, out_channels=2, feature_size=24).eval()
    return Named("SwinUNETR", model, (torch.randn(batch, 1, 96, 96, 96),))


def swin_ir(batch: int) -> Any:
    from spandrel.architectures.SwinIR import SwinIR

    from locant.integrations.named import Named

    model = SwinIR(
        img_size=64, embed_dim=180, depths=(6,) * 6, num_heads=(6,) * 6, window_size=8, mlp_ratio=2, upscale=2,
        upsampler="pixelshuffle",
    )  # fmt: skip
    return Named("SwinIR", model.eval(), (torch.rand(batch, 3, 256, 256),))


def t5_encoder(batch: int) -> Any:
    import transformers

    from locant.integrations.named import Named

    config = transformers.T5Config(
        d_model=768,
        d_ff=3072,
        d_kv=64,
        num_heads=12,
        num_layers=12,
        vocab_size=32128,
        use_cache=False,
        dropout_rate=0.0,
    )
    return Named(
        "t5-base encoder", transformers.T5EncoderModel(config).eval(), (torch.randint(0, 32000, (batch, 512)),)
    )


def donut(batch: int) -> Any:
    import transformers

    from locant.integrations.named import Named

    config = transformers.DonutSwinConfig(
        image_size=(640, 480), embed_dim=128, depths=[2, 2, 14, 2], num_heads=[4, 8, 16, 32], window_size=10
    )
    model = transformers.DonutSwinModel(config).eval()
    return Named("Donut's encoder", model, (torch.randn(batch, 3, 640, 480),))


MODELS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "swin_tiny": ("Swin-T, 224 px (timm)", of_timm("swin_tiny_patch4_window7_224", 224)),
    "swin_base": ("Swin-B, 384 px (timm)", of_timm("swin_base_patch4_window12_384", 384)),
    "swin_v2": ("Swin v2-T, 256 px (timm)", of_timm("swinv2_tiny_window8_256", 256)),
    "beit": ("BEiT-B, 224 px (timm)", of_timm("beit_base_patch16_224", 224)),
    "convit": ("ConViT-S, 224 px (timm)", of_timm("convit_small", 224)),
    "vit_relpos": ("ViT-S with a table, 384 px (timm)", of_timm("vit_relpos_small_patch16_224", 384)),
    "swin3d": ("Video Swin-T, 16 × 224² (torchvision)", swin3d),
    "swin_ir": ("SwinIR ×2, 256 px (spandrel)", swin_ir),
    "swin_unetr": ("SwinUNETR, 96³ (MONAI)", swin_unetr),
    "t5": ("T5-base's encoder, 512 tokens (transformers)", t5_encoder),
    "donut": ("Donut's encoder, 640 × 480 px (transformers)", donut),
}


def cells() -> Iterator[tuple[str, int, str, str]]:
    for name in MODELS:
        for batch in (1, 8):
            for dtype in ("float32", "bfloat16"):
                yield name, batch, dtype, "inference"
        for dtype in ("float32", "bfloat16"):
            yield name, 8, dtype, "training"


# --- running ----------------------------------------------------------------------------------------------------------


def run_cell(cell: list[str], threads: int, seconds: float) -> dict[str, Any]:
    """One cell, in this process."""
    from rows.mend import mend_torchvision

    mend_torchvision()
    from locant.integrations import contest
    from locant.measuring import machine

    name, batch, dtype, mode = cell
    torch.set_num_threads(threads)
    found, report = contest.hold(
        MODELS[name][1](int(batch)), dtype=getattr(torch, dtype), training=mode == "training", seconds=seconds,
        tell=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )  # fmt: skip
    packages = ("timm", "torchvision", "transformers", "monai", "spandrel", "onnxruntime", "openvino")
    return {
        "cell": cell,
        "contest": found.as_dict(),
        "report": report.summary(),
        "machine": {**machine.description(*packages), "kind": processor_kind()},
    }


def processor_kind() -> str:
    """Family and model of the processor, which a name such as "AMD EPYC" leaves open; "" where nobody says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"family {said['cpu family']}, model {said['model']}" if {"cpu family", "model"} <= said.keys() else ""


def in_a_process(cell: tuple[str, int, str, str], threads: int, seconds: float) -> dict[str, Any]:
    words = [sys.executable, __file__, "cell", *map(str, cell), "--threads", str(threads), "--seconds", str(seconds)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))

    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_SECONDS, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return {"cell": list(map(str, cell)), "limit": f"more than {LIMIT_SECONDS} s for the cell"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    memory = "MemoryError" in done.stderr or "not enough memory" in done.stderr or done.returncode == -9
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return {"cell": list(map(str, cell)), "limit": f"more than {LIMIT_BYTES >> 30} GiB" if memory else last[:160]}


def key(result: dict[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, result["cell"]))


def run(path: Path, only: str, threads: int, seconds: float) -> None:
    kept = {key(r): r for r in json.loads(path.read_text())} if path.exists() else {}
    for cell in cells():
        if only and only not in "-".join(map(str, cell)):
            continue
        print(*cell, file=sys.stderr, flush=True)
        result = in_a_process(cell, threads, seconds)
        kept[key(result)] = result
        path.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
        print(result.get("limit") or "done", file=sys.stderr, flush=True)


# --- the page ---------------------------------------------------------------------------------------------------------

HEAD = """# Whole models

Written by `python benchmarks/models.py write`; not edited by hand.

Each figure is how many times as long as `locant.accelerate` a contender takes: the median of ratios over rounds, in
which all contenders of a row are timed in turn, in one process. A star marks a row whose machine was not quiet.
Everybody was compared with float64 first; who was wrong has no time. "fused" is the library's own switch for torch's
attention, OpenVINO's precision is that of the row. A dash is a contender that there is not; words are the reason.
"memory" is what a call takes at its peak beyond what there was before it, as it comes and accelerated; "first call"
counts conversion, compiling and packing.
"""


def page(paths: list[Path]) -> str:
    """The page of these results, a table per machine and mode."""
    results = [r for path in paths for r in json.loads(path.read_text())]
    machines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        about = result.get("machine")
        where = about_machine(about) if about else next(iter(machines), "this machine")
        machines.setdefault(where, []).append(result)
    parts = [HEAD]
    for where, rows in machines.items():
        parts.append(f"\n## {where}\n")
        for mode in ("inference", "training"):
            parts.append(f"\n### {mode.capitalize()}\n\n" + table([r for r in rows if r["cell"][3] == mode]))
    return "".join(parts)


def about_machine(about: dict[str, Any]) -> str:
    kind = f" ({about['kind']})" if about.get("kind") else ""
    return f"{about['processor']}{kind}, {about['threads']} threads, torch {about['torch']}"


def table(results: list[dict[str, Any]]) -> str:
    others = [c for c in CONTENDERS if c != "locant"]
    heads = ["model", "batch", "dtype", *others, "Locant, ms", "largest error", "memory, MiB", "first call, s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    order = {key: place for place, key in enumerate(cells())}
    for result in sorted(results, key=lambda r: order[r["cell"][0], int(r["cell"][1]), *r["cell"][2:]]):
        name, batch, dtype, _ = result["cell"]
        start = [MODELS[name][0], batch, dtype]
        if "limit" in result:
            lines.append("| " + " | ".join([*start, result["limit"], *[""] * (len(heads) - 4)]) + " |")
            continue
        rows = {row["name"]: row for row in result["contest"]["contenders"]}
        lines.append("| " + " | ".join([*start, *figures(rows)]) + " |")
    return "\n".join(lines) + "\n"


def figures(rows: dict[str, dict[str, Any]]) -> list[str]:
    cells = [ratio(rows.get(name)) for name in CONTENDERS if name != "locant"]
    ours = rows.get("locant") or {}
    if ours.get("seconds") is None:
        return [*cells, ours.get("why", ""), "", "", ""]
    before = rows.get("as it comes") or {}
    memory = " → ".join(f"{(row.get('bytes') or 0) / 2**20:.0f}" for row in (before, ours))
    first = ", ".join(f"{name} {rows[name]['first']:.0f}" for name in rows if rows[name].get("first", None) is not None)
    return [*cells, f"{1e3 * ours['seconds']:.1f}", f"{ours['error']:.0e}", memory, first]


def ratio(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["ratio"] is None:
        return textwrap.shorten(row["why"].removeprefix("ValueError: "), 80, placeholder=" …").replace("|", "/")
    star = "" if row["ratio"]["quiet"] else " *"
    return f"{row['ratio']['median']:.2f} ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f}){star}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cell", "write"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--to", type=Path)
    given = parser.parse_args()
    if given.what == "cell":
        print(json.dumps(run_cell(given.words, given.threads, given.seconds)))
    elif given.what == "run":
        run(Path(given.words[0]), given.only, given.threads, given.seconds)
    else:
        text = page([Path(word) for word in given.words])
        given.to.write_text(text) if given.to else print(text)


if __name__ == "__main__":
    main()
