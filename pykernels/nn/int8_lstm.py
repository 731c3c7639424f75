"""Int8LSTM and Int8LSTMCell: LSTMs with int8 weights, a scale a row, on x and h in int8 or float."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from pykernels.nn._packed import Pack, PacksWeights, Slot
from pykernels.nn.int8 import _quantize_rows
from pykernels.nn.lstm import LSTM, LSTMCell, States, are_two, check_source, over_sequences, zero_states
from pykernels.ops import int8_lstm, int8_lstm_cell
from pykernels.ops._arguments import fail
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops.int8_lstm.op import INT8_LSTM, INT8_LSTM_CELL

#: The packed weights, the input size, the hidden size.
_Packed = tuple[Tensor, int, int]


class _Int8Recurrent(PacksWeights, nn.Module):
    """What the two have in common: buffers with torch's names, the matrices in int8, and a ``..._scale`` for each."""

    _most_compared = 0  # packing saves less here than a comparison costs
    bias: bool
    weight_only: bool = False  # of older pickles

    #: The weights' names, w_ih, w_hh and, with biases, b_ih, b_hh for each layer and direction in turn.
    _names: list[str]

    def _keep(self, module: nn.Module) -> None:
        """Makes the buffers of the parameters of ``module``."""
        for name in self._names:
            source = getattr(module, name)
            if name.startswith("weight"):
                q, scale = _quantize_rows(source)
                self.register_buffer(name, q)
                self.register_buffer(f"{name}_scale", scale)
            else:
                self.register_buffer(name, source.detach().clone())

    def _matrices(self) -> Iterator[str]:
        return (name for name in self._names if name.startswith("weight"))

    def _slots(self) -> Sequence[Slot]:
        scales = (f"{name}_scale" for name in self._matrices())
        return [(self._buffers, name) for name in (*self._names, *scales)]

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        # The op reports a weight of another dtype.
        whole = all(self._buffers[name].dtype is torch.int8 for name in self._matrices())  # type: ignore[union-attr]
        return super()._new_pack(slots, dtype, key) if whole else None

    def _pack_weights(self, tensors: list[Any], num_layers: int, bidirectional: bool) -> _Packed:
        weights, scales = tensors[: len(self._names)], tensors[len(self._names) :]
        weights = [w if w.dtype is torch.int8 else w.float() for w in weights]
        pack = torch.ops.pykernels.int8_lstm_pack.default
        packed = pack(weights, [s.float() for s in scales], num_layers, bidirectional, self.bias, self.weight_only)
        return packed, weights[0].shape[1], weights[1].shape[1]

    def _ops(self) -> Any:
        """The ops of packed weights: int8_lstm's, or lstm's, which take packed int8 weights too."""
        return _packed_ops(self.weight_only)

    def extra_repr(self) -> str:
        """As torch's, and ``weight_only`` if it is set."""
        return self._torchs_repr() + (", weight_only=True" if self.weight_only else "")

    def _torchs_repr(self) -> str:
        raise NotImplementedError

    def _all(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and scales, as `pykernels.ops.int8_lstm` takes them."""
        return [getattr(self, n) for n in self._names], [getattr(self, f"{n}_scale") for n in self._matrices()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scales = {f"{name}_scale": getattr(self, f"{name}_scale") for name in self._matrices()}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            now = getattr(self, name)
            if now.dtype != scale.dtype:  # half() and bfloat16() would cost the weight its precision
                setattr(self, name, scale.to(now.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self._matrices():
            weight = state_dict.get(prefix + name)
            if isinstance(weight, Tensor) and weight.is_floating_point():
                q, scale = _quantize_rows(weight)
                state_dict = {**state_dict, prefix + name: q, f"{prefix}{name}_scale": scale}
        super()._load_from_state_dict(state_dict, prefix, *rest)


@functools.cache
def _packed_ops(weight_only: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Those of sequences, and of a cell."""
    ops = torch.ops.pykernels
    if weight_only:
        return ops.lstm_packed.default, ops.lstm_cell_packed.default
    return ops.int8_lstm_packed.default, ops.int8_lstm_cell_packed.default


class Int8LSTM(_Int8Recurrent):
    """`torch.nn.LSTM` with int8 weights, for inference.

    Each row of the weights is rounded to int8 by its own largest magnitude beforehand, and on the way into the products
    so is each row of ``x``, of h and of what a layer hands to the next. The products are summed exactly, and the gates
    are computed in float32::

        output, (h_n, c_n) = nn.LSTM(input_size, hidden_size, num_layers)(x, (h_0, c_0))   # to about 1 %

    With ``weight_only`` ``x``, h and the sums stay float, and only the weights are rounded: for one sequence or a few,
    whose time is that of reading the weights.

    >>> fast = pk.nn.Int8LSTM.from_torch(lstm)
    >>> with torch.no_grad():
    ...     output, (h_n, c_n) = fast(x)

    Args:
        input_size: I, the features of ``x``.
        hidden_size: H, the size of a state.
        num_layers: How many layers lie on one another.
        bias: Whether the gates have biases.
        batch_first: Whether ``x`` and the output are (N, T, *) and not (T, N, *).
        dropout: That of the LSTM which was trained. It is kept, and nothing is dropped: there is no training.
        bidirectional: Whether each layer also reads the sequence backwards.
        proj_size: 0. There are no kernels for projected states.
        device: The device to make the buffers on.
        dtype: The biases' dtype.
        weight_only: Whether ``x`` and h stay float.

    There are no parameters, but buffers with the names of torch's parameters: ``weight_ih_l0`` (4H, I) and so on in
    int8, ``bias_ih_l0`` and so on; and for each weight its scales, ``weight_ih_l0_scale`` (4H,), which stay float32
    whatever the module is cast to. ``load_state_dict`` takes the module's own state_dict, and that of a
    `torch.nn.LSTM`, which it quantises.

    ``x`` and the states are float32 or bfloat16; other dtypes run as plain PyTorch. A float32 result has the same bits
    on every CPU, for any number of threads and in any batch; with ``weight_only``, for any number of threads.
    Quantisation has no gradient: the module refuses an input that requires one, except under ``torch.no_grad()``. The
    module packs its weights at the first call, and again when they have changed.

    Raises:
        ValueError: torch refuses an argument, or ``proj_size`` is above 0.
    """

    # These read what torch's and ours have.
    _torchs_repr = RNNBase.extra_repr

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_only: bool = False,
    ) -> None:
        super().__init__()
        self.weight_only = weight_only
        self._assemble(
            nn.LSTM(
                input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
            )
        )

    @classmethod
    def from_torch(cls, module: nn.LSTM | LSTM, *, weight_only: bool = False) -> Int8LSTM:
        """Makes the int8 form of ``module``, which stays as it is.

        Args:
            module: A `torch.nn.LSTM` or a `pykernels.nn.LSTM`.
            weight_only: Whether ``x`` and h stay float.

        Raises:
            TypeError: ``module`` is neither, or overrides ``forward``.
            ValueError: ``module`` has hooks, which would not run, parametrized weights, or projected states.
        """
        check_source(cls, module, nn.LSTM, LSTM)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.weight_only = weight_only
        self._assemble(module)
        return self.train(module.training)

    def _assemble(self, lstm: Any) -> None:
        if lstm.proj_size:
            fail(ValueError, "Int8LSTM", "proj_size", "0", lstm.proj_size)
        self.mode = "LSTM"
        self.input_size, self.hidden_size, self.num_layers = lstm.input_size, lstm.hidden_size, lstm.num_layers
        self.bias, self.batch_first, self.dropout = lstm.bias, lstm.batch_first, lstm.dropout
        self.bidirectional, self.proj_size = lstm.bidirectional, lstm.proj_size
        self._names = list(lstm._flat_weights_names)
        self._keep(lstm)

    def flatten_parameters(self) -> None:
        """Does nothing: the packed weights are the flat ones."""

    @overload
    def forward(self, input: Tensor, hx: States | None = None) -> tuple[Tensor, States]: ...

    @overload
    def forward(self, input: PackedSequence, hx: States | None = None) -> tuple[PackedSequence, States]: ...

    def forward(self, input: Tensor | PackedSequence, hx: States | None = None) -> tuple[Any, States]:
        """Runs the sequence through all layers.

        Args:
            input: (T, N, I), or (N, T, I) with ``batch_first``, or (T, I) unbatched; or a `PackedSequence`.
            hx: The states at the beginning, (h_0, c_0), each (layers x directions, N, H), or without N for unbatched
                input; zeros if None.

        Returns:
            The last layer's states at each step, of ``input``'s kind, with H x directions features; and (h_n, c_n),
            the states at the end, of the shape of ``hx``.

        Raises:
            TypeError: An argument is not a tensor, or its dtype does not go with ``input``'s.
            ValueError: A shape or a device is wrong. The message names it.
            RuntimeError: An argument requires a gradient.
        """
        return over_sequences(self._run, input, hx)

    if TYPE_CHECKING:
        __call__ = forward

    def _run(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> tuple[Tensor, States]:
        if hx is None:
            hx = zero_states(self, x, batch_sizes)
        elif not are_two(hx):
            return self._run_plain(x, hx, batch_sizes)
        h0, c0 = hx
        # None where a compiled graph, which is to hold no copies, or the reference runs.
        pack = self._current_pack(INT8_LSTM, (x, h0, c0), torch.int8)
        if pack is None:
            return self._run_plain(x, hx, batch_sizes)
        try:
            return self._run_packed(x, h0, c0, pack, batch_sizes)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, x, hx, batch_sizes)

    def _run_plain(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> tuple[Tensor, States]:
        return int8_lstm(
            x,
            hx,
            *self._all(),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            batch_sizes=batch_sizes,
            weight_only=self.weight_only,
        )

    def _run_packed(
        self, x: Tensor, h0: Tensor, c0: Tensor, pack: Pack, batch_sizes: Tensor | None
    ) -> tuple[Tensor, States]:
        if torch._C._is_any_autocast_enabled():
            x, h0, c0 = cast(autocast_dtype(x), (x, h0, c0))
        unbatched = batch_sizes is None and x.dim() == 2
        if unbatched:
            x, h0, c0 = x.unsqueeze(1), h0.unsqueeze(1), c0.unsqueeze(1)
        with torch._C._AutoDispatchBelowAutograd():  # no gradient is wanted; the op's own check of that takes longer
            output, h_n, c_n = self._ops()[0](
                x,
                h0,
                c0,
                *pack.value,
                batch_sizes,
                self.num_layers,
                self.bidirectional,
                self.batch_first and not unbatched,
            )
        if unbatched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)

    def _key(self) -> Hashable:
        return self.num_layers, self.bidirectional, self.weight_only

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> _Packed:
        return self._pack_weights(tensors, self.num_layers, self.bidirectional)


class Int8LSTMCell(_Int8Recurrent):
    """`torch.nn.LSTMCell` with int8 weights, for inference: one step of an `Int8LSTM`.

    >>> fast = pk.nn.Int8LSTMCell.from_torch(cell)
    >>> with torch.no_grad():
    ...     h, c = fast(x, (h, c))

    Args:
        input_size: I, the features of ``x``.
        hidden_size: H, the size of a state.
        bias: Whether the gates have biases.
        device: The device to make the buffers on.
        dtype: The biases' dtype.
        weight_only: Whether ``x`` and h stay float.

    There are no parameters, but the buffers ``weight_ih`` (4H, I) and ``weight_hh`` (4H, H) in int8, their scales
    ``weight_ih_scale`` and ``weight_hh_scale`` (4H,) in float32, and ``bias_ih`` and ``bias_hh`` (4H,). All else is as
    in `Int8LSTM`.

    Raises:
        ValueError: torch refuses an argument.
    """

    # torch's prints the nonlinearity of an RNNCell, where there is one.
    _torchs_repr = nn.LSTMCell.extra_repr

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_only: bool = False,
    ) -> None:
        super().__init__()
        self.weight_only = weight_only
        self._assemble(nn.LSTMCell(input_size, hidden_size, bias, device, dtype))

    @classmethod
    def from_torch(cls, module: nn.LSTMCell, *, weight_only: bool = False) -> Int8LSTMCell:
        """Makes the int8 form of ``module``, which stays as it is.

        Args:
            module: A `torch.nn.LSTMCell` or a `pykernels.nn.LSTMCell`.
            weight_only: Whether ``x`` and h stay float.

        Raises:
            TypeError: ``module`` is neither, or overrides ``forward``.
            ValueError: ``module`` has hooks, which would not run, or parametrized weights.
        """
        check_source(cls, module, nn.LSTMCell, LSTMCell)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.weight_only = weight_only
        self._assemble(module)
        return self.train(module.training)

    def _assemble(self, cell: Any) -> None:
        self.input_size, self.hidden_size, self.bias = cell.input_size, cell.hidden_size, cell.bias
        self._names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if cell.bias else [])]
        self._keep(cell)

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Runs one step.

        Args:
            input: (N, I), or (I,) unbatched.
            hx: The states (h, c) before it, each (N, H) or (H,); zeros if None.

        Returns:
            The states (h, c) after it, of the same shapes.

        Raises:
            TypeError: An argument is not a tensor, or its dtype does not go with ``input``'s.
            ValueError: A shape or a device is wrong. The message names it.
            RuntimeError: An argument requires a gradient.
        """
        if hx is None:
            # What is not a tensor is left to the op, which says so.
            zeros: Any = input
            if hasattr(input, "new_zeros"):
                zeros = input.new_zeros((*input.shape[:-1], self.hidden_size))
            hx = zeros, zeros
        elif not are_two(hx):
            return self._run_plain(input, hx)
        h, c = hx
        pack = self._current_pack(INT8_LSTM_CELL, (input, h, c), torch.int8)
        if pack is None:
            return self._run_plain(input, hx)
        try:
            return self._run_packed(input, h, c, pack)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, input, hx)

    if TYPE_CHECKING:
        __call__ = forward

    def _run_plain(self, x: Tensor, hx: States) -> States:
        weights, scales = self._all()
        return int8_lstm_cell(x, hx, *weights[:2], *scales, *weights[2:], weight_only=self.weight_only)

    def _run_packed(self, x: Tensor, h: Tensor, c: Tensor, pack: Pack) -> States:
        if torch._C._is_any_autocast_enabled():
            x, h, c = cast(autocast_dtype(x), (x, h, c))
        unbatched = x.dim() == 1
        if unbatched:
            x, h, c = x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)
        with torch._C._AutoDispatchBelowAutograd():
            h, c = self._ops()[1](x, h, c, *pack.value)
        return (h.squeeze(0), c.squeeze(0)) if unbatched else (h, c)

    def _key(self) -> Hashable:
        return self.weight_only

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> _Packed:
        return self._pack_weights(tensors, 1, False)
