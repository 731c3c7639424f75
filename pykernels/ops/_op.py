"""What the package itself has to know about an op: its name, where it runs, and on which dtypes.

`pykernels.ops._spec` has what the tests, the benches and ``check`` also know: samples, tolerance, costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: The dtypes that a backend's kernels take, unless an op has a reason for fewer. The CPU kernels have no float16.
FLOATS: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}

#: The same, and int8 on a CPU: of ops that move elements, or compute on one grid.
FLOATS_AND_INT8: dict[str, tuple[torch.dtype, ...]] = {**FLOATS, "cpu": (*FLOATS["cpu"], torch.int8)}

#: The op families, in the order of every table. Each is a folder of `pykernels.ops`.
FAMILIES = (
    "conv_bn_act",
    "batch_norm_act",
    "lstm",
    "int8_matmul",
    "int8_conv2d",
    "int8_pointwise",
    "int8_lstm",
    "pool2d",
    "squeeze_excite",
    "upsample2d",
    "group_norm_act",
    "layer_norm",
    "shuffle",
    "weight_only_linear",
)


@dataclass(frozen=True)
class Op:
    """One op: its name, its family, and its kernels."""

    name: str
    family: str
    #: Backend -> None if it is built, or the reason why it is not.
    backends: dict[str, str | None]
    #: Backend -> the dtypes of its kernels. Use `takes`, which knows the reference too.
    dtypes: dict[str, tuple[torch.dtype, ...]]

    def takes(self, backend: str) -> tuple[torch.dtype, ...]:
        """The dtypes to run on a backend: those of its kernels; the reference, which takes any, has all of them."""
        if backend == "reference":
            return tuple(dict.fromkeys(dtype for dtypes in self.dtypes.values() for dtype in dtypes))
        return self.dtypes.get(backend, ())

    @property
    def triton(self) -> str:
        """The module that registers the Triton kernels when it is imported."""
        return f"pykernels.ops.{self.family}.triton"
