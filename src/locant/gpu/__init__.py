"""Attention on GPUs: Triton's kernels, and their launches. Nothing here is imported before the first call on a GPU."""
