"""What the recorder has to know about torch's functions, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pykernels.nn.conv import ConvBNAct
from pykernels.optimize._graph import Step, Value, values_in

#: Of what they say nothing depends but dtype, device and rank, which a program is for.
_METADATA = frozenset(
    ["dtype", "device", "ndim", "is_cuda", "is_cpu", "is_quantized", "is_sparse", "is_sparse_csr", "is_mkldnn",
    "is_meta", "is_mps", "is_xpu", "is_xla", "is_ipu", "is_vulkan", "is_maia", "is_mtia", "is_nested", "layout",
    "requires_grad", "itemsize", "dim", "ndimension", "is_floating_point", "is_complex", "get_device",
    "element_size", "is_signed", "is_conj", "is_neg"]
)  # fmt: skip
SIZES = frozenset(
    ("shape", "size", "numel", "nelement", "stride", "is_contiguous", "storage_offset", "__len__", "nbytes")
)
_REFUSED = frozenset(
    ["data", "__set__", "__delete__", "is_leaf", "grad_fn", "grad", "_version", "data_ptr", "untyped_storage",
    "storage", "set_", "resize_", "resize_as_", "requires_grad_", "register_hook", "backward", "retain_grad",
    "share_memory_", "pin_memory", "is_inference", "type", "__setstate__", "__deepcopy__", "__reduce_ex__",
    "as_subclass", "swap_tensors", "rename_", "names", "result_type", "can_cast", "is_shared", "is_pinned",
    "numpy", "tolist", "item", "unsqueeze_", "squeeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "as_strided_"]
)  # fmt: skip
#: May return their own argument, whatever its strides: then there is no step.
PASSES = frozenset(
    ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_",
    "feature_dropout", "to", "float", "half", "double", "bfloat16", "long", "int", "bool", "cpu", "cuda",
    "type_as", "identity"]
)  # fmt: skip
#: The same where the strides are right for it.
PASSES_BY_LAYOUT = frozenset(("contiguous", "reshape", "flatten", "expand_as", "reshape_as", "view_as", "squeeze"))
#: Sizes of their results depend on values, or may.
_DYNAMIC = frozenset(
    ["nonzero", "masked_select", "unique", "unique_consecutive", "argwhere", "repeat_interleave", "bincount",
    "histc", "combinations", "one_hot", "_pack_padded_sequence", "_pad_packed_sequence", "masked_scatter", "nms"]
)  # fmt: skip
#: Of `torch.ops.quantized_decomposed`, which write down that a tensor is rounded.
ROUNDINGS = (
    "quantize_per_tensor.default", "quantize_per_tensor.tensor", "quantize_per_channel.default",
    "dequantize_per_tensor.default", "dequantize_per_tensor.tensor", "dequantize_per_channel.default",
    "choose_qparams.tensor",
)  # fmt: skip
#: Sizes of their results don't depend on the values of their integer arguments.
_STATIC = frozenset(
    ["embedding", "embedding_bag", "to", "float", "long", "int", "bool", "double", "half", "type", "type_as",
    "flatten", "unsqueeze", "squeeze", "transpose", "permute", "masked_fill", "masked_fill_",
    "gather", "index_select", "cat", "stack", "expand_as", "softmax", "__add__", "__sub__", "__mul__",
    "__truediv__", "__floordiv__", "__radd__", "__rsub__", "__rmul__", "__eq__", "__ne__", "__lt__", "__le__",
    "__gt__", "__ge__", "__invert__", "__and__", "__or__", "__xor__", "__neg__", "__iadd__", "__isub__",
    "__imul__", "add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and",
    "logical_or", "clamp", "sum", "mean", "max", "min", "argmax", "argmin", "any", "all", "cumsum", "t",
    "contiguous", "clone", "detach", "unbind", "ones_like", "zeros_like", "full_like",
    "scaled_dot_product_attention", "triu", "tril", "scatter", "scatter_", "scatter_add", "take_along_dim",
    "cross_entropy", "nll_loss", "abs", "neg", "flip", "roll", "maximum", "minimum", "masked_fill",
    "where", "T", "mT", "movedim", "fake_quantize", "dequantize_rows", *ROUNDINGS]
)  # fmt: skip
#: Sizes of their results depend on the values of the tensors among their arguments, but for the first.
_SIZED = frozenset(
    ["view", "reshape", "expand", "broadcast_to", "chunk", "split", "split_with_sizes", "tensor_split", "pad", "narrow",
    "unflatten", "unfold", "as_strided", "repeat", "tile", "interpolate", "upsample"]
)  # fmt: skip
#: The same of all of them.
_MAKERS = frozenset(
    ["arange", "range", "linspace", "logspace", "zeros", "ones", "full", "empty", "rand", "randn", "randint", "eye"]
)
#: How many results they have depends on sizes.
PARTS = frozenset(
    ("chunk", "split", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split", "hsplit", "vsplit", "dsplit")
)
#: Make images of one pixel of images of any size.
TO_ONE_PIXEL = frozenset(
    ["adaptive_avg_pool2d", "adaptive_max_pool2d", "fn", "boolean_dispatch", "mean", "sum", "amax", "amin", "max",
    "min", "std", "var", "var_mean", "std_mean", "norm"]
)  # fmt: skip
#: The same for the same arguments, and nothing else happens.
PURE = frozenset(
    ["add", "sub", "mul", "div", "true_divide", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow",
    "reciprocal", "sigmoid", "tanh", "relu", "softplus", "clamp", "clamp_min", "clamp_max", "reshape", "view",
    "permute", "transpose", "t", "T", "mT", "unsqueeze", "squeeze", "flatten", "expand", "expand_as", "sum",
    "mean", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "matrix_norm", "norm_except_dim",
    "_weight_norm", "matmul", "mm", "mv", "dot", "bmm", "cat", "stack", "pad", "to", "float", "double", "half",
    "bfloat16", "flip", "rot90", "roll", "maximum", "minimum", "softmax", "where", "eq", "ne", "lt", "le", "gt",
    "ge", "detach", "contiguous", "chunk", "split", "unbind", "narrow", "select", "__getitem__", "__add__",
    "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__rdiv__",
    "__neg__", "__pow__", "__matmul__", "max", "min", "amax", "amin", "size", "normalize", "silu", "gelu",
    "hardswish", "conv2d", "fake_quantize", "dequantize_rows", *ROUNDINGS]
)  # fmt: skip
_WRITES_FIRST = frozenset(("__setitem__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__idiv__"))
#: Functions that write where they are called with ``inplace=True``, and where that stands among their arguments.
WITH_FLAG = {
    "relu": 1, "relu6": 1, "silu": 1, "hardswish": 1, "hardsigmoid": 1, "mish": 1, "hardtanh": 3, "leaky_relu": 2,
    "elu": 2, "celu": 2, "selu": 1,
}  # fmt: skip
#: Those that always write to their first argument, element by element.
WRITES_ELEMENTS = frozenset(
    ["sigmoid_", "relu_", "tanh_", "add_", "mul_", "sub_", "div_", "__iadd__", "__imul__", "__isub__", "hardtanh_",
    "clamp_", "neg_", "abs_", "sqrt_", "square_", "exp_"]
)  # fmt: skip
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def name_of(func: Any) -> str:
    """The name of a torch function; of a getter that of its attribute."""
    name = str(getattr(func, "__name__", type(func).__name__))
    if name in ("__get__", "_get"):
        owner = getattr(func, "__self__", None)
        return str(getattr(owner, "__name__", name))
    return name


def rounding_of(func: Any) -> str:
    """Which of `ROUNDINGS` it is; "" of others."""
    name = str(getattr(func, "__name__", ""))
    return name if getattr(func, "namespace", "") == "quantized_decomposed" and name in ROUNDINGS else ""


def is_metadata(func: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Does it say what a tensor is like, and nothing of its values?"""
    return name in _METADATA or name in SIZES


#: Take an offset in the memory of a tensor, if not that of the tensor.
STRIDED = frozenset(("as_strided", "as_strided_copy", "as_strided_scatter"))


def is_refused(name: str) -> bool:
    """Is it of no use, or no meaning, in a program?"""
    return name in _REFUSED


@functools.cache
def _parameters(func: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return ()


def inplace(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Is its ``inplace`` argument true?"""
    if "inplace" in kwargs:
        return kwargs["inplace"] is not False
    names = _parameters(func)
    return "inplace" in names and len(args) > names.index("inplace") and args[names.index("inplace")] is not False


def _drops(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does a dropout with these arguments drop anything?"""
    return bool(args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True)))


def written_by_name(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[Value]:
    """What a function writes to by the rules of torch's names: tensors of inference mode count no versions."""
    if name.removesuffix("_").endswith(("dropout", "dropout1d", "dropout2d", "dropout3d")) and not _drops(args, kwargs):
        return set()
    written = set(values_in(kwargs.get("out")))
    by_name = (name.endswith("_") and not name.endswith("__")) or name in _WRITES_FIRST
    by_name = by_name or (name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__"))
    if by_name or inplace(func, args, kwargs):
        written |= set(values_in(args[0] if args else kwargs.get("input")))
    if name in ("embedding", "embedding_bag"):  # with max_norm, rows that are too long are scaled in place
        given = {**dict(zip(_parameters(func), args, strict=False)), **kwargs}
        written |= set(values_in(given.get("weight"))) if given.get("max_norm") is not None else set()
    return written


def depends_on_values(name: str, step: Step) -> bool:
    """May the sizes of its results depend on the values of its arguments?"""
    if name in _DYNAMIC:
        return True
    if name in _MAKERS:
        return any(True for _ in step.reads())
    if name in _SIZED:
        first = step.args[0] if step.args else step.kwargs.get("input")
        return any(v is not first for v in step.reads())
    if name == "where" and len(step.args) + len(step.kwargs) < 3:
        return True
    if name in ("__getitem__", "__setitem__"):
        index = step.args[1] if len(step.args) > 1 else None
        if isinstance(index, slice) or (isinstance(index, tuple) and any(isinstance(i, slice) for i in index)):
            parts = index if isinstance(index, tuple) else (index,)
            if any(True for s in parts if isinstance(s, slice) for _ in values_in(s)):
                return True
        return any(v.dtype in (torch.bool, torch.uint8) for v in values_in(index))
    return name not in _STATIC and any(v.dtype in _INTEGERS for v in step.reads())


def runs_ours(module: nn.Module) -> bool:
    """Whether it is a module of this package, which runs the kernels by itself."""
    home = type(module).__module__
    return home.startswith(("pykernels.nn", "pykernels.models")) and not home.endswith("models.reference")


def unfolds(module: nn.Module) -> bool:
    """Whether it is one of those that can run as the torch modules that it stands for."""
    return type(module).__module__.startswith("pykernels.models") or isinstance(module, ConvBNAct)
