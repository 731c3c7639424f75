"""Where the ops of the int8_matmul family run."""

import torch

from pykernels.ops._op import FLOATS, Op

_EVERYWHERE: dict[str, str | None] = {"cpu": None, "cuda": None, "triton": None}

#: The plain sums. float32 is what counts for the choice of a backend; there is no floating tensor.
INT8_MATMUL = Op("int8_matmul", "int8_matmul", _EVERYWHERE, dict.fromkeys(FLOATS, (torch.float32,)))
#: The product with scales, bias and activation; `int8_linear` too.
INT8_MATMUL_SCALED = Op("int8_matmul_scaled", "int8_matmul", _EVERYWHERE, FLOATS)
QUANTIZE_INT8 = Op("quantize_int8", "int8_matmul", _EVERYWHERE, FLOATS)
