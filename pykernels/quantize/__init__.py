"""`quantize`: your model in int8, on the programs of `pykernels.optimize`.

`_calibrate` watches float programs run and finds ranges; `_grid` makes grids of them. `_plan` keeps them by graph, and
`_rewrite` puts the steps of `_steps`, `_glue`, `_dynamic` and `_recurrent` into the graphs of later calls. `_tune`
equalises channels and corrects biases. `_measure` finds what int8 costs, and where. `_simulate` evaluates the same
steps in float, for `_qat` and `_onnx`. `_given`, `_given_layers` and `_follow` serve models that bring their grids.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pykernels import _native
from pykernels.nn import LSTM, LSTMCell
from pykernels.ops._arguments import check_number, fail
from pykernels.optimize._face import Optimized, face, family_of
from pykernels.quantize._calibrate import OP, Call, buffers_kept, calibrate, calls_of, nothing_given
from pykernels.quantize._grid import OBSERVERS
from pykernels.quantize._measure import keep_within, layer_names, measure
from pykernels.quantize._model import Quantized
from pykernels.quantize._plan import Plan
from pykernels.quantize._qat import QuantAware
from pykernels.quantize._report import Layer, QuantReport

if TYPE_CHECKING:
    from pykernels.optimize._face import Callee, P, R

__all__ = ["Layer", "QuantAware", "QuantReport", "Quantized", "quantize"]

#: The most batches that errors are measured on, spread over all: the results of layers are kept of each.
_MEASURED_BATCHES = 8
#: What runs in int8 if it is calibrated, and what without.
_FOR_BATCHES = nn.Conv1d, nn.Conv2d
_DYNAMIC = nn.Linear, nn.LSTM, nn.LSTMCell, LSTM, LSTMCell


def quantize(
    model: Callee[P, R],
    batches: Iterable[Any] | None = None,
    *,
    dynamic: bool = False,
    weight_only: bool = False,
    skip: str | Sequence[str] = (),
    per_channel: bool = True,
    observer: str = "minmax",
    budget: float | None = None,
    score: Callable[[nn.Module], float] | None = None,
    qat: bool = False,
    equalize: bool = False,
    correct_bias: bool = False,
) -> Any:
    """Makes an evaluation-mode twin of ``model`` that computes in int8, on a CPU.

    The twin is what `pykernels.optimize` makes, except that convolutions, linear layers and LSTMs multiply int8
    numbers, with exact sums. Batch norms are folded first, so that a convolution, its batch norm, a sum and an
    activation are one int8 step. What lies between two such steps (views, concatenations, pools, resizes, sums, other
    batch norms, activations, squeeze-and-excitation) stays in int8 too. Everything else computes in float32.

    Weights get one scale for each output channel. What flows between layers gets grids of a scale and a zero point,
    which come from the values that the model computes on ``batches``.

    Args:
        model: Any ``nn.Module`` of float32, in any mode. It stays as it is, and the twin shares its parameters: after
            an update of these the twin rounds them anew, on the same grids.
        batches: Some tens of typical inputs: any iterable, such as a DataLoader. A tuple or list holds the arguments of
            a call, a dict those by name, and all else is the one argument. In a tuple one more than ``forward`` takes,
            or a tensor of integers more than it requires, is a label, and dropped. None for ``dynamic`` and
            ``weight_only`` unless there is a budget, or for a model that gets its ranges by ``load_state_dict`` and
            until then runs in float.
        dynamic: Quantises linear layers and LSTMs only, each row by its own largest magnitude as it comes.
        weight_only: Rounds the weights of linear layers and LSTMs only; what they read, and their sums, stay float. It
            pays where few rows read large weights from memory, and costs the least accuracy.
        skip: The names of modules that stay in float, with all that they contain; ``*`` and ``?`` stand for any
            characters.
        per_channel: False gives a layer's weights one scale for all channels.
        observer: How a range is found. "minmax": from the least to the largest value. "percentile": without a
            ten-thousandth at either end. "mse": the part for which the squared error is least. "entropy": the part that
            keeps the distribution best.
        budget: The largest loss. As many layers as necessary stay in float, those first that cost most.
        score: A function from a model to a number, such as its accuracy; then ``budget`` is what that may lose.
            None: it is the error of the results, by its L2 norm relative to theirs, over at most eight of the batches.
        qat: Returns a `QuantAware`, which trains with the rounding of int8.
        equalize: Scales the channels between two layers in int8 so that their ranges and those of the weights agree,
            for layers with no activation, a ReLU, leaky ReLU or ReLU6 between them. The ranges are "minmax" there.
        correct_bias: Takes what the rounding of a weight adds to the mean of a sum from the bias.

    Returns:
        A `Quantized`, which has the type of the original's calls. Its ``report()`` says what runs in int8 and how
        exactly. With ``qat`` a `QuantAware`, whose ``convert()`` makes a `Quantized`.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, is optimised already, or has parameters that are not float32;
            ``batches`` is a tensor or not iterable; ``skip`` or ``score`` is something else.
        ValueError: ``batches`` gives nothing, or NaN, infinity, or tensors on another device, or ``dynamic`` or
            ``weight_only`` has no use for it; ``observer`` is unknown; ``skip`` names no module; there is a ``budget``
            and nothing to measure it on, a ``score`` without a ``budget``, two of ``qat``, ``dynamic`` and
            ``weight_only``, or ``equalize`` or ``correct_bias`` without a calibration.
        RuntimeError: There are no kernels, or the model raises an error for one of the batches.

    Example:
        >>> q = pk.quantize(model, [images[i : i + 8] for i in range(0, 64, 8)])
        >>> with torch.inference_mode():
        ...     y = q(x)
        >>> q.report().worst(5)
    """
    if not isinstance(model, nn.Module):
        fail(TypeError, OP, "model", "a torch.nn.Module", type(model).__name__)
    _check_model(model)
    patterns = _patterns(model, skip)
    if dynamic and weight_only:
        fail(ValueError, OP, "weight_only", "False, because of dynamic=True", True)
    without_data = "dynamic" if dynamic else "weight_only" if weight_only else ""
    tunes = {"equalize": equalize, "correct_bias": correct_bias}
    _check_options(batches, without_data, observer, budget, score, qat, tunes)
    plan = Plan(per_channel=per_channel, skip=patterns, dynamic=bool(without_data), weight_only=weight_only)
    twin = face(model, torch.float32, torch.float32, None, Quantized, plan)
    if batches is None:
        if without_data:
            _warn_of_convolutions(model, without_data)
        return twin
    kept: list[Call] = []
    calls = _spread(calls_of(model, batches), kept)
    with buffers_kept(twin):
        if without_data:
            nothing_given(sum(1 for _ in calls))
        else:
            calibrate(twin, plan, calls, observer, equalize, correct_bias)
        if budget is not None:
            keep_within(twin, plan, kept, float(budget), score)
        measure(twin, plan, kept)
        _warn_of_floats(twin)
    return QuantAware(model, plan, observer) if qat else twin


def _check_model(model: nn.Module) -> None:
    if isinstance(model, Optimized):
        fail(TypeError, OP, "model", "an original model", "one that is optimised already")
    if _native.error is not None:
        raise RuntimeError(f"pykernels.{OP}: there are no kernels: {_native.error}")
    for name, p in model.named_parameters():
        if p.is_floating_point() and p.dtype != torch.float32:
            fail(TypeError, OP, "model", "parameters of torch.float32", f"{p.dtype} in {name}")


def _check_options(
    batches: Any, without_data: str, observer: Any, budget: Any, score: Any, qat: bool, tunes: dict[str, bool]
) -> None:
    if observer not in OBSERVERS:
        fail(ValueError, OP, "observer", f"one of {', '.join(map(repr, OBSERVERS))}", repr(observer))
    if observer != "minmax" and without_data:
        fail(ValueError, OP, "observer", f"'minmax', because {without_data}=True finds no ranges", repr(observer))
    if score is not None and not callable(score):
        fail(TypeError, OP, "score", "a function from a model to a number", type(score).__name__)
    if score is not None and budget is None:
        fail(ValueError, OP, "score", "a budget beside it", None)
    if qat and without_data:
        fail(ValueError, OP, "qat", f"False, because of {without_data}=True", True)
    if budget is not None:
        check_number(OP, "budget", budget)
        if not budget >= 0:
            fail(ValueError, OP, "budget", "a number of at least 0", budget)
        if batches is None:
            fail(ValueError, OP, "budget", "batches to measure on", "none")
    if without_data and batches is not None and budget is None:
        expected = f"None, because {without_data}=True needs no ranges and there is no budget"
        fail(ValueError, OP, "batches", expected, type(batches).__name__)
    for name, given in tunes.items():
        if given and (without_data or batches is None):
            fail(ValueError, OP, name, "False, because there is nothing to calibrate on", True)
    if qat and batches is None:
        fail(ValueError, OP, "qat", "batches to calibrate on", "none")


def _warn_of_convolutions(model: nn.Module, without_data: str) -> None:
    """Warns if ``model`` has convolutions, and nothing that a quantisation without data is for."""

    def has(kinds: tuple[type, ...]) -> bool:
        return any(isinstance(m, kinds) for m in model.modules())

    if has(_FOR_BATCHES) and not has(_DYNAMIC):
        told = f"the model has no linear layer and no LSTM, and {without_data}=True quantises nothing else"
        warnings.warn(f"pykernels.{OP}: {told}; give batches to quantise its convolutions", stacklevel=3)


def _warn_of_floats(twin: nn.Module) -> None:
    """Warns if no layer of ``twin``, which has been called, runs in int8."""
    if not layer_names(twin):
        graphs = (p.graph.rewritten for p in family_of(twin).programs())
        reasons = dict.fromkeys(why for g in graphs if g is not None for why in g.reasons.values())
        told = "; ".join(reasons) or "no convolution, linear layer or LSTM in it can be followed"
        warnings.warn(f"pykernels.{OP}: nothing in the model runs in int8: {told}", stacklevel=3)


def _spread(calls: Iterable[Call], kept: list[Call]) -> Iterator[Call]:
    """``calls``; puts up to `_MEASURED_BATCHES` of them into ``kept``, at equal distances."""
    distance = 1
    for number, call in enumerate(calls):
        if number % distance == 0:
            kept.append(tree_map_only(Tensor, Tensor.clone, call))  # whoever gives it may fill it anew
        if len(kept) > _MEASURED_BATCHES:
            del kept[1::2]
            distance *= 2
        yield call


def _patterns(model: nn.Module, skip: Any) -> tuple[str, ...]:
    """The patterns of ``skip``, each of which has to fit a module of ``model``."""
    if not isinstance(skip, str | list | tuple | set | frozenset):
        fail(TypeError, OP, "skip", "a name or a sequence of names of modules", type(skip).__name__)
    names = [name for name, _ in model.named_modules() if name]
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    for pattern in patterns:
        if not isinstance(pattern, str):
            fail(TypeError, OP, "skip", "names of modules", type(pattern).__name__)
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            fail(ValueError, OP, "skip", "names or patterns of modules of the model", repr(pattern))
    return patterns
