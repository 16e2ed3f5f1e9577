"""How long each part of a kernel's work takes, for comparing kernels (locant.speed).

Written by benchmarks/costs.py, not by hand. In seconds per call, item, FLOP, score, query byte, key byte and copied
byte; by kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (the same, and a bias learns).
Measured on Intel(R) Xeon(R) Processor @ 2.50GHz (AVX512), 1 thread, torch 2.13.0+cpu, commit none, 2026-11-21.
"""

SECONDS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("native", "bfloat16", "forward"): (0.000273, 0.0, 5.63e-12, 5.96e-10, 9.35e-10, 5.29e-10, 0.0),
    ("native", "bfloat16", "learned"): (0.0012, 0.0, 2.33e-11, 2.03e-09, 4.17e-09, 3.76e-24, 0.0),
    ("native", "bfloat16", "train"): (0.000951, 0.0, 2.94e-11, 9.42e-10, 1.82e-09, 1.45e-09, 0.0),
    ("native", "float16", "forward"): (0.000276, 4.76e-07, 7.26e-12, 6.71e-10, 1.09e-09, 1.11e-09, 0.0),
    ("native", "float16", "learned"): (0.00167, 4.92e-07, 2.1e-11, 2.96e-09, 7.62e-09, 5.63e-24, 0.0),
    ("native", "float16", "train"): (0.000889, 1.04e-06, 3.93e-11, 1.18e-09, 2e-09, 2.93e-09, 0.0),
    ("native", "float32", "forward"): (0.000353, 0.0, 6.48e-12, 4.72e-10, 1.96e-10, 5.08e-10, 0.0),
    ("native", "float32", "learned"): (0.000999, 0.0, 1.93e-11, 4.61e-09, 3.08e-09, 7.02e-25, 0.0),
    ("native", "float32", "train"): (0.00109, 0.0, 3.24e-11, 4.26e-10, 4.94e-10, 1.45e-09, 0.0),
    ("native", "float64", "forward"): (0.00025, 0.0, 1.73e-11, 9.82e-10, 6.07e-11, 6.14e-10, 0.0),
    ("native", "float64", "learned"): (0.00118, 0.0, 8.64e-11, 0.0, 2.37e-09, 0.0, 0.0),
    ("native", "float64", "train"): (0.000761, 0.0, 9.29e-11, 5.42e-10, 1.69e-09, 1.62e-09, 0.0),
    ("sdpa", "bfloat16", "forward"): (0.000683, 8.98e-07, 8.06e-12, 1.37e-09, 1.32e-09, 5.8e-10, 7.25e-10),
    ("sdpa", "bfloat16", "learned"): (0.00174, 3.08e-06, 4.09e-11, 6.05e-09, 0.0, 0.0, 2.06e-09),
    ("sdpa", "bfloat16", "train"): (0.000503, 0.000131, 4.86e-11, 6.11e-09, 2.69e-08, 3.59e-09, 1.9e-10),
    ("sdpa", "float16", "forward"): (0.000594, 2.49e-06, 6.52e-12, 1.64e-09, 1.86e-09, 4.46e-10, 2.7e-10),
    ("sdpa", "float16", "learned"): (0.00203, 6.02e-06, 2.02e-11, 1.37e-08, 0.0, 0.0, 1.86e-09),
    ("sdpa", "float16", "train"): (0.000755, 0.0, 9e-10, 1.24e-08, 6.92e-09, 4.51e-09, 0.0),
    ("sdpa", "float32", "forward"): (0.00074, 0.0, 7.05e-12, 1.16e-09, 6.01e-10, 1.99e-10, 3.25e-10),
    ("sdpa", "float32", "learned"): (0.00162, 0.0, 3.34e-11, 3.6e-09, 0.0, 0.0, 1.6e-09),
    ("sdpa", "float32", "train"): (0.000972, 6.28e-07, 2.91e-11, 2.08e-09, 1.07e-09, 9.13e-10, 5.29e-10),
    ("sdpa", "float64", "forward"): (0.000581, 0.0, 1.79e-11, 3.52e-09, 7.37e-10, 2.02e-10, 3e-10),
    ("sdpa", "float64", "learned"): (0.00175, 5.49e-06, 1.25e-10, 7.24e-09, 0.0, 0.0, 8.03e-10),
    ("sdpa", "float64", "train"): (0.000719, 0.0, 7.01e-11, 6.92e-09, 1.72e-09, 9.32e-10, 1.04e-09),
}
