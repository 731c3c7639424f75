"""``pykernels tune``: times the tiles of Triton kernels on this GPU and writes the best into a table.

It compares a candidate's answer with the reference before it times it. Candidates take turns, so that a sinking clock
or a busy neighbour hits all of them. Between two calls it overwrites L2. The median of each candidate counts. A winner
that is not at least 2 % faster than the choice of ``config`` is noise, and `tune` then writes that choice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pykernels._measure import gpu_seconds, interleaved, relative_l2
from pykernels.cli._console import complain, heading, table, wrote
from pykernels.cli._console import console as make_console
from pykernels.cli.bench.ops import bench_samples
from pykernels.ops import _tuned
from pykernels.ops._check import inputs_of
from pykernels.ops._dispatch import backend, triton_missing
from pykernels_cli._options import check_choice, check_writable

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One shape of an op: how it is called, what has to come out, and how far off that may be."""

    call: Callable[[], torch.Tensor]
    expected: Callable[[], torch.Tensor]
    tolerance: float


@dataclass(frozen=True)
class Tunable:
    """An op whose tiles can be tuned: the sizes that its table is keyed by, and what to try."""

    sizes: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    #: The shapes of the spec's bench samples.
    bench: Callable[[], list[Shape]]
    #: (shape, dtype, device): config's choice first.
    candidates: Callable[[Shape, torch.dtype, Any], list[Any]]
    trial: Callable[[Shape, torch.dtype, torch.device], Trial]


def neighbours(config: Any) -> list[Any]:
    """The config, and those that differ from it in the tile, or in warps, stages or the parts of a sum."""
    found = [config]
    for m, n in ((2, 1), (0.5, 1), (1, 2), (1, 0.5), (2, 0.5), (0.5, 2)):
        block_m, block_n = int(config.block_m * m), int(config.block_n * n)
        if 16 <= block_m <= 256 and 16 <= block_n <= 256:
            tile = dataclasses.replace(config, block_m=block_m, block_n=block_n)
            found += [tile, dataclasses.replace(tile, warps=12 - tile.warps)]
    found.append(dataclasses.replace(config, warps=12 - config.warps))  # 4 or 8
    found += [dataclasses.replace(config, stages=config.stages + more) for more in (-1, 1)]
    found += [dataclasses.replace(config, splits=splits) for splits in (1, 2 * config.splits)]
    return list(dict.fromkeys(c for c in found if c.stages > 0 and c.warps in (4, 8)))


def _bench_arguments(op: str) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of an op's bench samples as fake tensors: those to be timed are large."""
    for _, sample in bench_samples(op):
        with FakeTensorMode():
            yield inputs_of(sample, torch.float32)


def _int8_bench() -> list[Shape]:
    calls = (args for op in ("int8_matmul", "int8_matmul_scaled") for args, _ in _bench_arguments(op))
    return list(dict.fromkeys((a.shape[0], b.shape[1], a.shape[1]) for a, b in calls))


def _int8_candidates(shape: Shape, dtype: torch.dtype, device: Any) -> list[Any]:
    from pykernels.ops.int8_matmul.triton.config import candidates, config

    m, n, k = shape
    chosen = config(m, n, k, device)
    deeper = [dataclasses.replace(chosen, stages=chosen.stages + more) for more in (-1, 1)]
    return list(dict.fromkeys([chosen, *candidates(m, n, k, device), *deeper]))


def _int8_trial(shape: Shape, dtype: torch.dtype, device: torch.device) -> Trial:
    from pykernels.ops.int8_matmul import int8_matmul
    from pykernels.ops.int8_matmul.reference import int8_matmul_reference
    from pykernels.ops.int8_matmul.spec import INT8_MATMUL_SCALED_SPEC

    m, n, k = shape
    g = torch.Generator(device).manual_seed(0)
    a, b = (torch.randint(-128, 128, s, generator=g, dtype=torch.int8, device=device) for s in ((m, k), (n, k)))
    given: dict[str, Any] = {
        "a_scale": torch.full((m,), 1 / 74, device=device),
        "b_scale": torch.full((n,), 1 / (74 * k**0.5), device=device),
        "out_dtype": torch.float16,
    }
    return Trial(
        lambda: int8_matmul(a, b.t(), **given),
        lambda: int8_matmul_reference(a, b.t(), **given),
        INT8_MATMUL_SCALED_SPEC.bound(torch.float16, 8),
    )


def _product_candidates(shape: Shape, dtype: torch.dtype, device: Any) -> list[Any]:
    from pykernels.ops.lstm.triton.gemm import config

    m, n, k = shape
    return neighbours(config(m, n, k, dtype.itemsize, device))


def _product_trial(shape: Shape, dtype: torch.dtype, device: torch.device) -> Trial:
    from pykernels.ops.lstm.spec import LSTM_SPEC
    from pykernels.ops.lstm.triton.gemm import product

    m, n, k = shape
    g = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(s, generator=g, dtype=dtype, device=device) for s in ((m, k), (n, k)))
    return Trial(lambda: product(a, b.t(), dtype=dtype), lambda: a.double() @ b.double().t(), LSTM_SPEC.bound(dtype, k))


def _product_bench() -> list[Shape]:
    return [(1600, 2048, 512), (6400, 4096, 1024), (1600, 512, 2048)]  # t * b rows, 4H gates of I inputs; and backward


def _conv_bench() -> list[Shape]:
    from pykernels.ops.conv_bn_act.triton.config import is_depthwise

    shapes = []
    for (x, weight, *_), options in _bench_arguments("conv_bn_act"):
        groups, (k, channels, r, s) = options.get("groups", 1), weight.shape
        stride, padding = options.get("stride", 1), options.get("padding", 0)
        p, q = ((n + 2 * padding - taps) // stride + 1 for n, taps in zip(x.shape[2:], (r, s), strict=True))
        if not is_depthwise(channels, k // groups, groups):
            shapes.append((x.shape[0] * p * q, k // groups, channels, r * s, groups))
    return list(dict.fromkeys(shapes))


def _conv_candidates(shape: Shape, dtype: torch.dtype, device: Any) -> list[Any]:
    from pykernels.ops.conv_bn_act.triton.config import config

    m, filters, channels, taps, groups = shape
    vec = math.gcd(16 // dtype.itemsize, filters * groups)
    return neighbours(config(m, filters, channels, taps, groups, dtype.itemsize, vec, device))


def _conv_trial(shape: Shape, dtype: torch.dtype, device: torch.device) -> Trial:
    from pykernels.ops.conv_bn_act import conv_bn_act
    from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC, conv_bn_act_reference

    m, filters, channels, taps, groups = shape
    side = math.isqrt(taps)
    if side * side != taps or side % 2 == 0:
        raise ValueError(f"--shape: expected taps 1, 9, 25, ... for conv_bn_act, a square of odd size; got {taps}")
    # Pixels as m = n p q, p and q as a network has them: the largest divisors up to 56.
    q = max(d for d in range(1, 57) if m % d == 0)
    p = max(d for d in range(1, 57) if m // q % d == 0)
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(m // (p * q), channels * groups, p, q, generator=g, dtype=dtype, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters * groups, channels, side, side, generator=g, dtype=dtype, device=device)
    options: dict[str, Any] = {"padding": side // 2, "groups": groups}
    return Trial(
        lambda: conv_bn_act(x, weight, **options),
        lambda: conv_bn_act_reference(x.double(), weight.double(), **options),
        CONV_BN_ACT_SPEC.bound(dtype, channels * taps),
    )


_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
TUNABLES: dict[str, Tunable] = {
    "conv_bn_act": Tunable(
        ("pixels", "filters", "channels", "taps", "groups"), _FLOATS, _conv_bench, _conv_candidates, _conv_trial
    ),
    "int8_matmul": Tunable(("m", "n", "k"), (torch.int8,), _int8_bench, _int8_candidates, _int8_trial),
    "lstm_product": Tunable(("m", "n", "k"), _FLOATS, _product_bench, _product_candidates, _product_trial),
}


class Clock:
    """Times calls on a GPU: in turn, between events, with L2 overwritten before each."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.repeats = repeats
        self.flush = torch.empty(2 * 2**27, dtype=torch.int8, device=device)  # more than any L2

    def medians(self, calls: list[Callable[[], object]]) -> list[float]:
        """Milliseconds of each call."""
        rounds = self.repeats + 2  # the first two are warming up
        times = interleaved(calls, 0.0, least=rounds, clock=self._once)
        return [1e3 * statistics.median(t[2:]) for t in times]

    def _once(self, call: Callable[[], object]) -> float:
        self.flush.zero_()
        return gpu_seconds(call)


def shapes_of(op: str | None, given: list[str]) -> dict[str, list[Shape]]:
    """Op -> what to tune.

    Raises:
        ValueError: An option has an unknown value, or a shape does not fit the op.
    """
    check_choice("--op", op, TUNABLES)
    if not given:
        return {name: t.bench() for name, t in TUNABLES.items() if op in (None, name)}
    if op is None:
        raise ValueError("--shape: expected --op beside it, to know whose shape it is")
    sizes, found = TUNABLES[op].sizes, []
    for text in given:
        numbers = text.split(",")
        if len(numbers) != len(sizes) or not all(x.strip().isdecimal() and int(x) > 0 for x in numbers):
            raise ValueError(f"--shape: expected {','.join(sizes)} for {op}, all positive; got {text!r}")
        found.append(tuple(int(x) for x in numbers))
    return {op: list(dict.fromkeys(found))}


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name, among those that an op is tuned for."""
    known = {str(d).removeprefix("torch."): d for d in _FLOATS}
    check_choice("--dtype", name.removeprefix("torch."), known)
    return known[name.removeprefix("torch.")]


def gpu() -> torch.device:
    """The one in force."""
    return torch.device("cuda", torch.cuda.current_device())


def no_gpu() -> str | None:
    """Why it can tune nothing here; None if it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU, and only there is anything to time"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 is set, so kernels would be interpreted and not run on the GPU"
    return triton_missing(torch.device("cuda"))


def best(op: str, shape: Shape, dtype: torch.dtype, device: torch.device, clock: Any) -> tuple[list[Any], list[float]]:
    """The candidates whose answers are right, config's choice first, and their milliseconds.

    Raises:
        RuntimeError: config's own choice gives a wrong answer or does not run.
    """
    from pykernels.ops._triton import device_of

    tunable = TUNABLES[op]
    trial = tunable.trial(shape, dtype, device)
    expected = trial.expected()

    def forced(config: Any) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with _tuned.forced(op, dataclasses.asdict(config)), backend("triton"):
                return trial.call()

        return call

    right = []
    candidates = tunable.candidates(shape, dtype, device_of(torch.empty(0, device=device)))
    for position, candidate in enumerate(candidates):
        try:
            error = relative_l2(forced(candidate)(), expected)
        except Exception as problem:  # too much shared memory, or whatever else a compiler may say of a tile
            error, reason = math.inf, f"{type(problem).__name__}: {problem}"
        else:
            reason = f"relative error {error:.1e}, of which {trial.tolerance:.1e} is allowed"
        if error <= trial.tolerance:
            right.append(candidate)
        elif position == 0:
            raise RuntimeError(f"{op} {shape}: the kernel as it is chosen, {candidate}, fails: {reason}")
    return right, clock.medians([forced(c) for c in right])


def merge(path: Path, device: str, op: str, shape: str, fields: dict[str, Any], version: str) -> None:
    """Writes one winner into the table, which may exist already. A failure leaves the old table as it was."""
    devices = _tuned.read(path) if path.exists() else {}
    _tuned.check_fields(f"{device}, {op}, {shape}", op, fields)
    devices.setdefault(device, {}).setdefault(op, {})[shape] = fields
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps({"triton": version, "devices": devices}, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def run(op: str | None, shapes: list[str], dtype: str, out: Path | None, repeats: int) -> int:
    """Tunes and prints; returns the exit code: 2 without a GPU, 1 if a kernel is wrong."""
    todo, kind = shapes_of(op, shapes), dtype_of(dtype)
    console = make_console()
    named = os.environ.get("PYKERNELS_TUNED")
    path = out or Path(named or "pykernels-tuned.json")
    check_writable("--out", path)
    if path.exists():
        _tuned.read(path)  # to find out now, and not after minutes, that a file is not a table
    reason = no_gpu()
    if reason is not None:
        complain("tune", f"nothing can be tuned: {reason}")
        return 2
    heading(console, "tune")
    import triton

    device = gpu()
    name = torch.cuda.get_device_name(device)
    clock = Clock(device, repeats)
    columns = ("op", "shape", "config's choice", ">ms", "best", ">ms", ">gain")
    lines = table(f"{name}, Triton {triton.__version__}, median of {repeats}", *columns)
    failed = False
    for family, wanted in todo.items():
        for shape in wanted:
            dtype_ = kind if kind in TUNABLES[family].dtypes else TUNABLES[family].dtypes[0]
            key = _tuned.key(shape, dtype_)
            try:
                configs, times = best(family, shape, dtype_, device, clock)
            except RuntimeError as problem:
                complain("tune", str(problem))
                failed = True
                continue
            winner = min(range(len(times)), key=times.__getitem__)
            if times[winner] > 0.98 * times[0]:
                winner = 0
            merge(path, name, family, key, dataclasses.asdict(configs[winner]), triton.__version__)
            told = [", ".join(map(str, dataclasses.astuple(configs[i]))) for i in (0, winner)]
            gain = f"{times[0] / times[winner]:.2f}"
            lines.add_row(family, key, told[0], f"{times[0]:.4f}", told[1], f"{times[winner]:.4f}", gain)
    console.print(lines)
    wrote(console, path)
    if named is None or Path(named) != path:
        console.print(f"Set PYKERNELS_TUNED={path} to make the kernels use the table.", markup=False, highlight=False)
    return 1 if failed else 0
