"""The ops: public functions. Each family's folder holds its spec, reference, autograd and kernels' launchers."""

from pykernels.ops._activation import ACTIVATIONS

__all__ = ["ACTIVATIONS"]
