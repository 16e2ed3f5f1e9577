"""Linear maps and perceptrons on CPUs, by products whose weights are packed.

    linear(x, weight, bias, keep, ...)                      N(act(n(x) weightᵀ + bias)) ∘ gain + residual
    perceptron(x, w1, b1, w2, b2, activation, keep, ...)    N(act(n(x) w1ᵀ + b1) w2ᵀ + b2) ∘ gain + residual

x [..., in], weights [out, in] as torch has them, n and N norms in front and behind, or nothing (around.py). torch's
own `linear` goes to a library that is slow on some processors, and what stands between two products goes through
memory. Here a block of rows is normalised, multiplied, bent and added to without leaving the cache, and a hidden layer
is never formed whole.

The compiled kernels of csrc/linear do it where they were measured to be the fastest, else oneDNN, which torch carries
(compiled.py, onednn.py). `keep` says that a packed copy of the weight is kept
beside it (packed.py). All are torch operators (operators.py), so that a graph holds one node and never a packed weight.
Under export, on other devices, in other dtypes and for small products it is torch's own linear.
"""

from locant.products.around import Norm
from locant.products.operators import ACTIVATIONS, linear, perceptron
from locant.products.packed import forget, kept_bytes

__all__ = ["ACTIVATIONS", "Norm", "forget", "kept_bytes", "linear", "perceptron"]
