"""How long each part of a kernel's work takes, for comparing kernels (locant.speed): written by benchmarks/costs.py.

In seconds per call, work item, FLOP, score, byte moved and byte held; by kernel, dtype and mode: "forward", "train"
(forward and backward), "learned" (the same with the gradient of a bias).
Measured on Intel(R) Xeon(R) Processor @ 2.50GHz (AVX512), 1 thread, torch 2.13.0+cpu, commit none, 2026-11-21.
"""

SECONDS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("native", "bfloat16", "forward"): (0.000628, 6.35e-07, 7.2e-12, 4.82e-10, 7.05e-10, 0.0),
    ("native", "bfloat16", "learned"): (0.00188, 1.75e-06, 5.89e-11, 0.0, 1.72e-09, 0.0),
    ("native", "bfloat16", "train"): (0.00171, 7.19e-07, 3.24e-11, 2.55e-10, 2.41e-09, 0.0),
    ("native", "float16", "forward"): (0.000274, 0.0, 9.81e-12, 6.27e-10, 2.02e-09, 0.0),
    ("native", "float16", "learned"): (0.00237, 0.0, 2.13e-11, 1.33e-08, 1.01e-08, 0.0),
    ("native", "float16", "train"): (0.000936, 0.0, 3.5e-11, 2.59e-09, 5.93e-09, 0.0),
    ("native", "float32", "forward"): (0.000664, 0.0, 1.2e-11, 8.55e-10, 5.84e-10, 0.0),
    ("native", "float32", "learned"): (0.00508, 3.75e-06, 4.26e-11, 5.05e-09, 7.75e-10, 0.0),
    ("native", "float32", "train"): (0.002, 1.07e-05, 5.61e-11, 3.16e-09, 2.06e-09, 0.0),
    ("native", "float64", "forward"): (0.000659, 0.0, 2.16e-11, 2.05e-09, 4.83e-10, 0.0),
    ("native", "float64", "learned"): (0.000785, 1.93e-05, 1.31e-10, 1.35e-08, 1.14e-09, 0.0),
    ("native", "float64", "train"): (0.00145, 0.0, 1.01e-10, 2.69e-09, 2.26e-09, 0.0),
    ("sdpa", "bfloat16", "forward"): (0.000985, 6.31e-06, 8.64e-12, 1.49e-09, 7.79e-10, 2.98e-09),
    ("sdpa", "bfloat16", "learned"): (0.00183, 4.74e-06, 0.0, 0.0, 1.43e-09, 6.68e-09),
    ("sdpa", "bfloat16", "train"): (0.000834, 0.000291, 8.65e-11, 9.4e-09, 4.4e-09, 1.78e-09),
    ("sdpa", "float16", "forward"): (0.000777, 6.96e-08, 4.39e-12, 2.81e-09, 1.31e-09, 7.95e-09),
    ("sdpa", "float16", "learned"): (0.00665, 2.17e-05, 0.0, 0.0, 2.39e-09, 1.12e-08),
    ("sdpa", "float16", "train"): (0.000887, 0.0, 1.1e-09, 2.16e-08, 1.05e-08, 2.42e-08),
    ("sdpa", "float32", "forward"): (0.00124, 1.47e-05, 2.06e-11, 2.7e-09, 2.81e-10, 1.64e-09),
    ("sdpa", "float32", "learned"): (0.00539, 2.93e-05, 4.27e-12, 4.21e-08, 0.0, 5.39e-11),
    ("sdpa", "float32", "train"): (0.00149, 3.31e-05, 9.19e-11, 3.98e-09, 9.92e-10, 1.43e-09),
    ("sdpa", "float64", "forward"): (0.00103, 1.44e-06, 2.11e-11, 7.99e-09, 4.21e-10, 1.71e-09),
    ("sdpa", "float64", "learned"): (0.00315, 6.39e-05, 6.29e-11, 0.0, 5.68e-10, 3.45e-09),
    ("sdpa", "float64", "train"): (0.00127, 0.0, 9.7e-11, 1.2e-08, 1.5e-09, 1.11e-09),
}
