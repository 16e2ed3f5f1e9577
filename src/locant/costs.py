"""How long each part of a kernel's work takes, for comparing kernels (locant.speed).

Written by benchmarks/costs.py, not by hand. In seconds per call, item, FLOP, score, query byte, key byte and copied
byte; by device, kernel, dtype and mode: "forward", "train" (forward and backward), "learned" (and a bias learns).
Measured on Intel(R) Xeon(R) Processor @ 2.50GHz (AVX512), 1 thread, torch 2.13.0+cpu, commit 9db381ffd7, 2026-11-21.
"""

PROCESSOR = "Intel(R) Xeon(R) Processor @ 2.50GHz"  # another one has its own ratios: `locant bench` measures them
SECONDS: dict[tuple[str, str, str, str], tuple[float, ...]] = {
    ("cpu", "native", "bfloat16", "forward"): (0.000535, 5.65e-07, 8.27e-12, 4.64e-10, 7.88e-10, 2.86e-10, 0.0),
    ("cpu", "native", "bfloat16", "learned"): (0.000995, 3.35e-06, 1.57e-11, 4.49e-09, 3.53e-09, 3.71e-24, 0.0),
    ("cpu", "native", "bfloat16", "train"): (0.0015, 2.46e-06, 3.95e-11, 1.22e-09, 1.7e-09, 8.85e-10, 0.0),
    ("cpu", "native", "float16", "forward"): (0.000655, 1.87e-06, 8.27e-12, 3.8e-10, 6.19e-10, 1.41e-09, 0.0),
    ("cpu", "native", "float16", "learned"): (0.00185, 1.14e-05, 7.11e-11, 0.0, 3.14e-09, 3.63e-24, 0.0),
    ("cpu", "native", "float16", "train"): (0.0016, 5.23e-06, 3.55e-11, 1.03e-09, 3.42e-09, 3.58e-09, 0.0),
    ("cpu", "native", "float32", "forward"): (0.00031, 5e-07, 6.62e-12, 4.7e-10, 4.8e-10, 2.03e-10, 0.0),
    ("cpu", "native", "float32", "learned"): (0.000874, 2.43e-06, 2.47e-11, 2.39e-09, 2.28e-09, 1.39e-24, 0.0),
    ("cpu", "native", "float32", "train"): (0.000991, 3.52e-07, 3.12e-11, 8.18e-10, 1.22e-09, 6.56e-10, 0.0),
    ("cpu", "native", "float64", "forward"): (0.000263, 3.36e-07, 1.87e-11, 9.14e-10, 3.47e-10, 1.83e-10, 0.0),
    ("cpu", "native", "float64", "learned"): (0.000983, 0.0, 6.28e-11, 2.66e-09, 2.18e-09, 1.57e-25, 0.0),
    ("cpu", "native", "float64", "train"): (0.000821, 7.32e-06, 9.17e-11, 9.37e-10, 6.03e-10, 6.21e-10, 0.0),
    ("cpu", "sdpa", "bfloat16", "forward"): (0.000914, 4.2e-06, 7.7e-12, 1.94e-09, 1.06e-09, 5.04e-10, 7.66e-10),
    ("cpu", "sdpa", "bfloat16", "learned"): (0.00162, 4.42e-06, 2.01e-11, 5.4e-09, 0.0, 0.0, 3.26e-09),
    ("cpu", "sdpa", "bfloat16", "train"): (0.0011, 0.000121, 6.17e-11, 8e-09, 2.07e-08, 3.41e-09, 3.92e-10),
    ("cpu", "sdpa", "float16", "forward"): (0.00107, 5.96e-06, 8.96e-12, 1.38e-09, 1.5e-09, 4.49e-10, 2.51e-10),
    ("cpu", "sdpa", "float16", "learned"): (0.00212, 2.32e-05, 8.3e-11, 1.79e-08, 0.0, 0.0, 3.13e-10),
    ("cpu", "sdpa", "float16", "train"): (0.00131, 0.0, 1.02e-09, 2.89e-09, 2.86e-08, 5.49e-09, 8.53e-10),
    ("cpu", "sdpa", "float32", "forward"): (0.000674, 9.17e-07, 6.76e-12, 1.17e-09, 7.62e-10, 2.51e-10, 3.13e-10),
    ("cpu", "sdpa", "float32", "learned"): (0.00118, 1.02e-05, 2.41e-11, 1.01e-08, 0.0, 0.0, 1.21e-09),
    ("cpu", "sdpa", "float32", "train"): (0.00083, 0.0, 2.92e-11, 2.1e-09, 1.21e-09, 1.14e-09, 4.11e-10),
    ("cpu", "sdpa", "float64", "forward"): (0.000611, 0.0, 2.22e-11, 3.08e-09, 4.73e-10, 2.01e-10, 5.1e-10),
    ("cpu", "sdpa", "float64", "learned"): (0.00181, 0.0, 4.1e-11, 1.14e-08, 0.0, 0.0, 1.25e-09),
    ("cpu", "sdpa", "float64", "train"): (0.000738, 3.99e-06, 8.41e-11, 5.54e-09, 6.06e-10, 9.1e-10, 9.79e-10),
}
