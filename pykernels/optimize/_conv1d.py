"""Convolutions of sequences as fused steps: each is a convolution of an image of height 1, in the same memory.

The fuser finds and fuses them as they are, for tensors of (N, C, L). Then `as_images` puts steps around them that
change the rank, so that `_layout` settles formats for images only.
"""

from __future__ import annotations

from typing import Any

import torch

from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act.arguments import for_height_1, geometry
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs, layout_of, strides_in, values_in
from pykernels.optimize._patterns import CONV

#: The dimension that an image has and a sequence has not.
_HEIGHT = 2


class FusedConv1d(FusedConv):
    """The constants of a fused convolution of sequences; its weight is (K, C / groups, S)."""

    name = "conv1d"
    rank = 3

    def filters(self, weight: Any) -> Any:
        """(K, C / groups, 1, S), in the same memory."""
        return weight.detach().unsqueeze(_HEIGHT)

    def filter_shape(self) -> tuple[int, ...]:
        """(K, C / groups, 1, S)."""
        k, c, s = self.weight.shape
        return k, c, 1, s


def conv1d_of(step: Step) -> tuple[FusedConv1d, Value] | None:
    """A convolution of sequences on the CPU that our kernels take, and its input."""
    y = step.outputs
    if step.kind != "call" or not is_torchs(step.function, "conv1d") or not isinstance(y, Value):
        return None
    given = bound(step, CONV)
    x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if not isinstance(x, Value) or not isinstance(weight, Value) or len(x.shape) != 3 or len(weight.shape) != 3:
        return None
    if y.stride != strides_in("contiguous", y.shape) or weight.shape[0] == 0 or x.dtype is not weight.dtype:
        return None
    numbers = {"stride": 1, "padding": 0, "dilation": 1}
    options = {k: for_height_1(given.get(k, n), 0 if k == "padding" else 1) for k, n in numbers.items()}
    options["groups"] = given.get("groups", 1)
    if list(values_in(list(options.values()))) or x.device.type != "cpu":
        return None
    if x.dtype not in CONV_BN_ACT.takes("cpu") or not _dispatch.has_native(CONV_BN_ACT, x.device):
        return None
    try:
        geometry((1, weight.shape[2]), **options)
    except (ValueError, TypeError):
        return None
    return FusedConv1d(weight, bias, options), x


def as_images(graph: Graph) -> None:
    """Runs the fused convolutions of sequences on images of height 1, and turns their results into sequences again."""
    steps: list[Step] = []
    images: dict[Value, Value] = {}
    index = graph.next_index()

    def image_of(v: Value) -> Value:
        nonlocal index
        if v not in images:
            images[v] = _image(v, index)
            index += 1
        return images[v]

    def image_in(v: Any, where: str) -> Any:
        if not isinstance(v, Value):
            return v
        if v not in images:
            steps.append(Step(torch.unsqueeze, (v, _HEIGHT), {}, image_of(v), (), "view", where))
        return images[v]

    for step in graph.steps:
        if not isinstance(step.function, FusedConv) or step.function.rank != 3:
            steps.append(step)
            continue
        y = step.outputs
        step.args = tuple(image_in(v, step.where) for v in step.args)
        step.outputs, step.function.rank = image_of(y), 4
        steps += [step, Step(torch.squeeze, (step.outputs, _HEIGHT), {}, y, (), "view", step.where)]
    read = {v for s in steps for v in s.reads()} | set(values_in(graph.result))
    graph.steps = [s for s in steps if s.function is not torch.squeeze or s.kind != "view" or s.outputs in read]


def _image(v: Value, index: int) -> Value:
    """(N, C, 1, L), in the memory of ``v`` of (N, C, L)."""
    made = v.like(index)
    made.kind, made.tensor = "step", None
    (n, c, length), stride = v.shape, v.stride or strides_in("contiguous", v.shape)
    made.shape, made.stride = (n, c, 1, length), (*stride[:2], length * stride[2], stride[2])
    made.layout = layout_of(torch.empty_strided(made.shape, made.stride, device="meta"))
    return made
