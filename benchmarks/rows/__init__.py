"""The rows of benchmarks/attention.py, by family."""
