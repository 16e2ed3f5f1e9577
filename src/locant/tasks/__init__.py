"""Labelled examples in three splits, from scikit-learn's digits or from a user's folder or arrays; numpy, no torch."""
