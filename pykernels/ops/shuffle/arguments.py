"""The arguments of the shuffles. This module checks them, names the wrong one, and makes a `ShuffleCall`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pykernels.ops._arguments import check_floating_or_int8, check_int, check_tensor, fail

#: The names of the ops, at the places of their codes: ShuffleKind of csrc/include/pykernels/shuffle.h.
KINDS = ("channel_shuffle", "pixel_shuffle", "pixel_unshuffle")
CHANNELS, UP, DOWN = range(3)
#: The most groups, or the largest square of a factor, that the kernels take.
MOST_STREAMS = 64


class ShuffleCall(NamedTuple):
    """What the kernels take besides tensors; as int64 numbers it is what ``shuffle_out`` takes."""

    kind: int
    #: groups or factor
    k: int

    def is_ours(self) -> bool:
        """Whether the kernels take so many groups, or a factor so large."""
        return (self.k if self.kind == CHANNELS else self.k * self.k) <= MOST_STREAMS

    def result(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for an image of ``shape``."""
        n, c, h, w = shape
        k = self.k
        return (n, c, h, w) if self.kind == CHANNELS else (
            (n, c // (k * k), h * k, w * k) if self.kind == UP else (n, c * k * k, h // k, w // k)
        )  # fmt: skip


def check_call(x: Tensor, call: ShuffleCall, argument: str) -> None:
    """Raises an error if the arguments do not go together; ``argument`` is the name of ``call.k``."""
    op, k = KINDS[call.kind], call.k
    check_tensor(op, "x", x)
    check_int(op, argument, k, 1)
    check_floating_or_int8(op, "x", x)
    if x.dim() != 4:
        fail(ValueError, op, "x", "(N, C, H, W)", f"shape {tuple(x.shape)}")
    divisor = 1 if call.kind == DOWN else k if call.kind == CHANNELS else k * k
    if x.shape[1] % divisor:
        such = "a divisor of" if call.kind == CHANNELS else "a number whose square divides"
        fail(ValueError, op, argument, f"{such} the {x.shape[1]} channels", k)
    if call.kind == DOWN and (x.shape[2] % k or x.shape[3] % k):
        fail(ValueError, op, argument, f"a divisor of H and W, {x.shape[2]} and {x.shape[3]}", k)
