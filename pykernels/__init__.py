"""pykernels: fused kernels for PyTorch. Keep your ``nn.Module``, get the speed of a serving engine.

>>> import pykernels as pk
>>> fast = pk.optimize(model)          # same numbers, fused ops inside
>>> print(fast.report())
"""

import sys

if getattr(sys, "argv", [])[:1] == ["-m"]:  # `python -m pykernels --help` doesn't wait for torch
    import pykernels_cli

    pykernels_cli.answer_before_torch()

from pykernels import models, nn, ops
from pykernels.ops._dispatch import backend
from pykernels.optimize import Optimized, Report, optimize
from pykernels.quantize import Quantized, quantize

__version__ = "0.1.0"
__all__ = [
    "Optimized", "Quantized", "Report", "__version__", "backend", "models", "nn", "ops", "optimize", "quantize",
]  # fmt: skip
