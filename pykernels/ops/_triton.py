"""What the Triton kernels of all families share: launching, the device to choose tiles for, barriers, rounding.

Only a family's ``triton`` package imports this, and the first use of the backend imports that one: so ``import
pykernels`` never imports Triton. `launch` launches every kernel, so that the compile gate (tools/triton_gate.py) sees
what is launched, with which constants, and for which device.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

import torch
import triton
import triton.language as tl
from torch._library import triton as torch_triton
from torch._subclasses.fake_tensor import is_fake
from torch.library import wrap_triton
from triton.runtime.jit import JITFunction

#: Kernels run as NumPy on the CPU. Triton looks at its switch where a kernel is defined.
INTERPRETED: bool = triton.knobs.runtime.interpret

#: Triton's own functions, which kernels call, were defined before the switch was set: then nothing can be interpreted.
SWITCHED_LATE: bool = INTERPRETED and isinstance(tl.sigmoid, JITFunction)


@dataclass(frozen=True)
class Device:
    """What a choice of tiles may know of a GPU."""

    #: "cuda" (NVIDIA) or "hip" (AMD).
    platform: str = "cuda"
    #: 10 * major + minor on NVIDIA; 0 on AMD.
    capability: int = 80
    multiprocessors: int = 108
    #: Bytes of shared memory that a program can have.
    shared: int = 166912


#: The targets of the compile gate. The interpreter stands for a small one, so that persistent kernels loop.
AMPERE = Device("cuda", 80, 108, 166912)
HOPPER = Device("cuda", 90, 132, 232448)
CDNA3 = Device("hip", 0, 304, 65536)
INTERPRETER = Device("cuda", 80, 3, 166912)

_forced: contextvars.ContextVar[Device | None] = contextvars.ContextVar("triton_device", default=None)

#: The interpreter exchanges triton.language's functions while a kernel runs: two threads at once would break it.
_interpreter = threading.Lock()


@contextmanager
def on_device(device: Device) -> Iterator[None]:
    """Choose tiles for another device than the tensors' inside the block: for tests, and for the compile gate.

    As `pykernels.backend`, the block is of the thread (and task) that entered it.
    """
    token = _forced.set(device)
    try:
        yield
    finally:
        _forced.reset(token)


@functools.cache
def _properties(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return Device("hip", 0, found.multi_processor_count, 65536)
    capability = 10 * found.major + found.minor
    return Device("cuda", capability, found.multi_processor_count, found.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def device_of(t: torch.Tensor) -> Device:
    """What tiles for a tensor are chosen for: its GPU, or `INTERPRETER` where kernels are interpreted."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if t.is_cuda and torch.cuda.is_available():
        return _properties(t.device.index)
    return INTERPRETER


def hinted(size: int) -> int:
    """The number to choose tiles by: of a size that a trace keeps open, the one it was traced with.

    A comparison of the open size would bind the graph to its outcome, and compile it again for other batch sizes.
    """
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return 1024 if hint is None else int(hint)
    return size


def _parameters_of(call: type) -> Iterator[inspect.Parameter]:
    """The fields of ``call``, a NamedTuple that may have others within, as a function's parameters."""
    defaults: dict[str, Any] = getattr(call, "_field_defaults", {})
    for name, kind in get_type_hints(call).items():
        if hasattr(kind, "_fields"):
            yield from _parameters_of(kind)
            continue
        yield inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=defaults.get(name, inspect.Parameter.empty),
            annotation=Sequence[int] if get_origin(kind) is tuple else kind,
        )


def triton_op(
    name: str, *, mutates_args: Sequence[str] = (), call: type | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """``torch.library.triton_op``: an op that a compiler can see into, down to the kernels that it launches.

    ``call``: what the function takes, flat, as ``*flat`` behind its tensors; torch infers the schema from a signature.

    A trace cannot hold interpreted kernels: for them it is an opaque ``torch.library.custom_op``.
    """

    def register(function: Any) -> Any:
        if call is not None:
            written = inspect.signature(function)
            tensors = list(written.parameters.values())[:-1]
            function.__signature__ = written.replace(parameters=[*tensors, *_parameters_of(call)])
        if INTERPRETED:
            opaque = torch.library.custom_op(name, function, mutates_args=mutates_args)
            opaque.register_fake(function)
            return opaque
        op = torch.library.triton_op(name, function, mutates_args=mutates_args)
        torch_triton.triton_ops_to_kernels[name] = _kernels_beside(function.__module__)
        return op

    return register


def _kernels_beside(module: str) -> list[object]:
    """Every kernel of the family of an op in ``module``, for AOTAutograd's cache, which must miss when one changes.

    Torch looks for wrap_triton in the op's own source and finds none, because only `launch` has it. It has to be the
    whole family, because an op launches kernels of other modules through their functions, and those of its backward
    pass.
    """
    family = module.rpartition(".")[0] + ".triton"
    modules = [m for name, m in sys.modules.items() if name == module or name.startswith(family)]
    found = (value for m in modules for value in vars(m).values() if isinstance(value, JITFunction))
    return list({id(kernel): kernel for kernel in found}.values())


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """``kernel[grid](*arguments, **constants)`` on the first tensor's device and its current stream.

    ``constants`` are the kernel's ``tl.constexpr`` parameters and Triton's own options (num_warps, num_stages,
    launch_cooperative_grid). Inside a ``triton_op`` a trace records the launch, and so Inductor sees the kernel.
    """
    first = next(a for a in arguments if isinstance(a, torch.Tensor))
    if INTERPRETED:
        constants.pop("launch_cooperative_grid", None)  # an option that it doesn't know
        if not (first.is_meta or is_fake(first)):  # of those only the shapes are wanted
            with _interpreter:
                kernel[grid](*arguments, **constants)
        return
    with _current_device(first):
        # Where nothing is traced, wrap_triton only costs time, and loses options that it doesn't know.
        (wrap_triton(kernel) if is_fake(first) else kernel)[grid](*arguments, **constants)


def _current_device(t: torch.Tensor) -> AbstractContextManager[Any]:
    if t.is_cuda and not is_fake(t) and torch.cuda.current_device() != t.device.index:
        return torch.cuda.device(t.device)
    return nullcontext()


def matrix_precision(dtype: torch.dtype, tf32: bool, device: Device) -> str:
    """``tl.dot``'s ``input_precision``: float32 goes in three products of tf32, which keep its precision, or in one.

    AMD's matrix units multiply float32 as it is.
    """
    if dtype != torch.float32 or device.platform == "hip":
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


def compiles_for_amd(device: Device) -> bool:
    """`arrive`'s AMD."""
    return device.platform == "hip" and not INTERPRETED


_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr):
    """``tl.dot``, also for bfloat16 under the interpreter, which would multiply its bits as integers."""
    if _INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def arrive(counter, AMD: tl.constexpr):
    """One more at a counter in global memory: whoever has waited for it sees all that this program has stored.

    AMD: compiled for AMD. There a barrier waits for shared memory only, and a release for the stores of its own wave.
    """
    if AMD:
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [tl.arange(0, 256)], dtype=tl.int32, is_pure=False, pack=1
        )
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(counter, arrivals):
    """Until so many have arrived. All programs that wait for each other have to be resident: a co-operative launch."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    tl.debug_barrier()


@triton.jit
def round_even(x):
    """To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def to_int8(x, LOWEST: tl.constexpr):
    """To nearest even, saturated to [LOWEST, 127]; NaN gives 0."""
    x = tl.where(x != x, 0.0, x)
    x = tl.minimum(tl.maximum(x, LOWEST * 1.0), 127.0)
    return round_even(x).to(tl.int8)
