"""One file per way to execute; what each must offer stands in `kernels/kernel.py`."""
