"""How long each part of a kernel's work takes, for comparing kernels (locant.speed).

Written by benchmarks/costs.py, not by hand. In seconds per call, item, FLOP, score, query byte, key byte and copied
byte; by kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (the same, and a bias learns).
Measured on Intel(R) Xeon(R) Processor @ 2.50GHz (AVX512), 1 thread, torch 2.13.0+cpu, commit d1d2e54097, 2026-11-21.
"""

SECONDS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("native", "bfloat16", "forward"): (0.000301, 5.22e-08, 6.06e-12, 6.23e-10, 9.48e-10, 3.16e-10, 0.0),
    ("native", "bfloat16", "learned"): (0.00131, 0.0, 2.48e-11, 2.07e-09, 3.49e-09, 2.49e-24, 0.0),
    ("native", "bfloat16", "train"): (0.000936, 0.0, 2.92e-11, 1.37e-09, 1.81e-09, 1.01e-09, 0.0),
    ("native", "float16", "forward"): (0.00031, 0.0, 6.68e-12, 6.27e-10, 1.51e-09, 9.36e-10, 0.0),
    ("native", "float16", "learned"): (0.0012, 0.0, 5.71e-11, 0.0, 6.59e-09, 8.27e-25, 0.0),
    ("native", "float16", "train"): (0.000949, 0.0, 3.23e-11, 1.13e-09, 4.93e-09, 2.54e-09, 0.0),
    ("native", "float32", "forward"): (0.000343, 0.0, 6.51e-12, 5.01e-10, 1.96e-10, 4.94e-10, 0.0),
    ("native", "float32", "learned"): (0.00112, 0.0, 2.95e-11, 1.49e-09, 2.31e-09, 3.73e-24, 0.0),
    ("native", "float32", "train"): (0.000935, 0.0, 3.24e-11, 7.53e-10, 1.07e-09, 1.17e-09, 0.0),
    ("native", "float64", "forward"): (0.000271, 0.0, 1.55e-11, 1.11e-09, 1.08e-10, 4.59e-10, 0.0),
    ("native", "float64", "learned"): (0.00137, 0.0, 8.33e-11, 1.63e-09, 1.96e-09, 1.23e-25, 0.0),
    ("native", "float64", "train"): (0.000857, 0.0, 7.16e-11, 1.23e-09, 1.31e-09, 1.27e-09, 0.0),
    ("sdpa", "bfloat16", "forward"): (0.000665, 1.23e-06, 6.36e-12, 1.59e-09, 1.36e-09, 6.52e-10, 7.46e-10),
    ("sdpa", "bfloat16", "learned"): (0.00192, 4.23e-06, 3.56e-11, 7.6e-09, 0.0, 0.0, 2.11e-09),
    ("sdpa", "bfloat16", "train"): (0.000638, 7.26e-05, 5.77e-11, 6.26e-09, 1.92e-08, 4.09e-09, 0.0),
    ("sdpa", "float16", "forward"): (0.000674, 0.0, 4.41e-12, 1.6e-09, 3.06e-09, 4.57e-10, 2.06e-10),
    ("sdpa", "float16", "learned"): (0.00197, 5.07e-06, 9.35e-11, 8.31e-09, 9.14e-10, 3.78e-24, 1.51e-09),
    ("sdpa", "float16", "train"): (0.000855, 0.0, 9.21e-10, 8.53e-09, 9.5e-09, 4.43e-09, 0.0),
    ("sdpa", "float32", "forward"): (0.000655, 9.59e-08, 6.49e-12, 1.31e-09, 7.49e-10, 2.19e-10, 3.2e-10),
    ("sdpa", "float32", "learned"): (0.0018, 5.44e-07, 3.45e-11, 4.08e-09, 0.0, 0.0, 1.21e-09),
    ("sdpa", "float32", "train"): (0.000822, 2.9e-07, 2.8e-11, 2.46e-09, 1.26e-09, 1.01e-09, 6.73e-10),
    ("sdpa", "float64", "forward"): (0.000644, 0.0, 1.66e-11, 3.67e-09, 5.07e-10, 2e-10, 3.69e-10),
    ("sdpa", "float64", "learned"): (0.00139, 1.56e-05, 3.8e-11, 3.53e-08, 0.0, 0.0, 5e-10),
    ("sdpa", "float64", "train"): (0.000784, 0.0, 6.6e-11, 5.65e-09, 1.31e-09, 8.94e-10, 8.07e-10),
}
