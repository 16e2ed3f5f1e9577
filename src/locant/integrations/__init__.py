"""Other libraries' models on Locant's kernels: `locant.accelerate` (model.py), and a file for each library it knows."""
