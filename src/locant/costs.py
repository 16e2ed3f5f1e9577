"""How long each part of a kernel's work takes, for comparing kernels (locant.speed).

Written by benchmarks/costs.py, not by hand. In seconds per call, work item, FLOP, score, byte moved and byte held; by
kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (the same with the gradient of a bias).
Measured on Intel(R) Xeon(R) Processor @ 2.50GHz (AVX512), 1 thread, torch 2.13.0+cpu, commit none, 2026-11-21.
"""

SECONDS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("native", "bfloat16", "forward"): (0.000264, 5.83e-08, 5.53e-12, 5.92e-10, 6.22e-10, 0.0),
    ("native", "bfloat16", "learned"): (0.00123, 0.0, 2.31e-11, 2.06e-09, 2.04e-09, 0.0),
    ("native", "bfloat16", "train"): (0.000842, 0.0, 2.55e-11, 1.03e-09, 1.73e-09, 0.0),
    ("native", "float16", "forward"): (0.000242, 1.45e-07, 9.15e-12, 5.71e-10, 1.06e-09, 0.0),
    ("native", "float16", "learned"): (0.00177, 0.0, 8.12e-11, 0.0, 4.3e-09, 0.0),
    ("native", "float16", "train"): (0.00072, 0.0, 3.26e-11, 2.86e-09, 2.95e-09, 0.0),
    ("native", "float32", "forward"): (0.000264, 0.0, 8.63e-12, 1.83e-10, 3.83e-10, 0.0),
    ("native", "float32", "learned"): (0.0012, 2.21e-07, 1.04e-11, 7.59e-09, 1.6e-09, 0.0),
    ("native", "float32", "train"): (0.000808, 0.0, 3.26e-11, 8.95e-10, 1.37e-09, 0.0),
    ("native", "float64", "forward"): (0.000251, 0.0, 1.39e-11, 8.72e-10, 3.86e-10, 0.0),
    ("native", "float64", "learned"): (0.00094, 0.0, 7.63e-11, 5.47e-10, 1.24e-09, 0.0),
    ("native", "float64", "train"): (0.000731, 0.0, 6.09e-11, 9.48e-10, 1.63e-09, 0.0),
    ("sdpa", "bfloat16", "forward"): (0.000652, 2.23e-06, 6.48e-12, 1.42e-09, 6.83e-10, 2.91e-09),
    ("sdpa", "bfloat16", "learned"): (0.00159, 2.85e-06, 0.0, 0.0, 1.33e-09, 4.36e-09),
    ("sdpa", "bfloat16", "train"): (0.000416, 0.000192, 8.17e-11, 6.25e-09, 3.05e-09, 2.62e-09),
    ("sdpa", "float16", "forward"): (0.000509, 4.19e-06, 1.13e-11, 1.5e-09, 4.53e-10, 4.43e-09),
    ("sdpa", "float16", "learned"): (0.00144, 1.79e-05, 8.72e-12, 0.0, 0.0, 9.85e-09),
    ("sdpa", "float16", "train"): (0.000619, 0.0, 1.06e-09, 1.83e-08, 3.53e-09, 9.88e-09),
    ("sdpa", "float32", "forward"): (0.000582, 2.21e-06, 1.01e-11, 9.56e-10, 2.72e-10, 1.41e-09),
    ("sdpa", "float32", "learned"): (0.000817, 2.9e-05, 1.59e-11, 2.24e-08, 6.77e-11, 1.41e-09),
    ("sdpa", "float32", "train"): (0.000758, 2.3e-07, 3.79e-11, 2.3e-09, 9.92e-10, 1.42e-09),
    ("sdpa", "float64", "forward"): (0.000597, 3.36e-06, 1.76e-11, 3.37e-09, 2.16e-10, 8.42e-10),
    ("sdpa", "float64", "learned"): (0.0013, 6.69e-06, 4.79e-11, 0.0, 5.12e-10, 1.59e-09),
    ("sdpa", "float64", "train"): (0.000719, 1.86e-06, 6.62e-11, 5.69e-09, 8.95e-10, 3.9e-10),
}
