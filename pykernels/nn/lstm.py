"""LSTM and LSTMCell: torch's constructors, parameters and state_dicts, on the package's kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from pykernels.nn._packed import Pack, PacksWeights, Slot
from pykernels.nn._replaceable import check_replaceable
from pykernels.ops import _dispatch
from pykernels.ops import lstm as lstm_op
from pykernels.ops import lstm_cell as lstm_cell_op
from pykernels.ops._arguments import fail
from pykernels.ops.lstm.op import LSTM as SPEC
from pykernels.ops.lstm.op import LSTM_CELL as CELL_SPEC

States = tuple[Tensor, Tensor]


#: The packed weights, the input size, the hidden size.
_Packed = tuple[Tensor, int, int]


def _pack(weights: list[Tensor], num_layers: int, bidirectional: bool, has_bias: bool) -> _Packed:
    packed = torch.ops.pykernels.lstm_pack.default(weights, num_layers, bidirectional, has_bias)
    return packed, weights[0].shape[1], weights[1].shape[1]


def are_two(hx: Any) -> bool:
    """Whether ``hx`` is a pair. The op reports what is not one."""
    return (isinstance(hx, tuple | list) and len(hx) == 2) or isinstance(hx, torch.fx.Proxy)


def over_sequences(
    run: Callable[[Tensor, Any, Tensor | None], tuple[Tensor, States]], input: Any, hx: Any
) -> tuple[Any, States]:
    """``run(x, hx, batch_sizes)`` on ``input``, a tensor or a `PackedSequence`, whose states it sorts and unsorts."""
    if not isinstance(input, PackedSequence):
        return run(input, hx, None)
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is not None and sorted_indices is not None and are_two(hx):
        hx = hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices)
    output, (h_n, c_n) = run(data, hx, batch_sizes)
    if unsorted_indices is not None:
        h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)


def zero_states(module: Any, x: Any, batch_sizes: Tensor | None) -> States:
    """The states that an LSTM ``module`` begins with if it gets none; x itself where that is not a tensor."""
    if not hasattr(x, "new_zeros"):
        return x, x  # the op says that x is not a tensor
    rows = module.num_layers * (2 if module.bidirectional else 1)
    if batch_sizes is not None:
        shape: tuple[Any, ...] = (rows, batch_sizes[0], module.hidden_size)
    elif x.dim() == 3:
        shape = (rows, x.shape[0 if module.batch_first else 1], module.hidden_size)
    else:
        shape = (rows, module.hidden_size)
    zeros = x.new_zeros(shape)
    return zeros, zeros


def check_source(ours: type, module: nn.Module, *theirs: type) -> None:
    """Raises unless ``module`` is one of ``theirs`` (torch's class first) and holds its weights itself."""
    kind = next((k for k in theirs[1:] if isinstance(module, k)), theirs[0])
    check_replaceable(f"{ours.__name__}.from_torch", "module", module, kind)
    if nn.utils.parametrize.is_parametrized(module):
        got = "parametrized ones; remove_parametrizations first"
        fail(ValueError, f"{ours.__name__}.from_torch", "module", "plain parameters", got)


class LSTM(PacksWeights, RNNBase):
    """`torch.nn.LSTM` on the kernels of this package.

    It takes torch's arguments and has torch's attributes, parameters and state_dict. The results are torch's but for
    rounding::

        output, (h_n, c_n) = nn.LSTM(input_size, hidden_size, num_layers)(x, (h_0, c_0))

    >>> lstm = pk.nn.LSTM(10, 20, num_layers=2, batch_first=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))

    Args:
        input_size: I, the features of ``x``.
        hidden_size: H, the size of a state.
        num_layers: How many layers lie on one another.
        bias: Whether the gates have biases.
        batch_first: Whether ``x`` and the output are (N, T, *) and not (T, N, *).
        dropout: The probability of a zero between layers, in training.
        bidirectional: Whether each layer also reads the sequence backwards.
        proj_size: The size of a projected state. There are no kernels for one above 0: torch's own implementation runs.
        device: The device to make the parameters on.
        dtype: The parameters' dtype.

    Calls that record gradients run the differentiable op. In other calls the module packs its weights once, and again
    when they have changed, as `ConvBNAct2d` does. `isinstance(lstm, torch.nn.LSTM)` is False: the class derives from
    torch's RNNBase, because Dynamo does not trace into a `torch.nn.LSTM`, and this one compiles in one graph.

    Raises:
        ValueError: torch refuses an argument, for example a dropout above 1.
    """

    # torch.nn.LSTM's, which for the projections runs as if this were one.
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

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
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype,
        )  # fmt: skip

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> LSTM:
        """Makes an LSTM that shares the parameters of ``module``: training one trains the other.

        Args:
            module: A `torch.nn.LSTM`.

        Raises:
            TypeError: ``module`` is not a `torch.nn.LSTM`, or overrides ``forward``.
            ValueError: ``module`` has hooks, which would not run, or parametrized weights.
        """
        check_source(cls, module, nn.LSTM)
        return cls._sharing(module)

    @classmethod
    def _sharing(cls, module: Any) -> Any:
        """One with all that ``module`` has, torch's or ours."""
        ours = cls(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            module.bias,
            module.batch_first,
            module.dropout if module.num_layers > 1 else 0.0,
            module.bidirectional,
            module.proj_size,
            device="meta",
        )
        ours.dropout = module.dropout
        for name in module._flat_weights_names:
            setattr(ours, name, getattr(module, name))
        ours._init_flat_weights()
        return ours.train(module.training)

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
            TypeError: An argument is not a tensor, or its dtype does not go with the parameters'.
            ValueError: A shape or a device is wrong. The message names it.
        """
        if self.proj_size or _dispatch.is_for_onnx():  # where one operator is better than the steps of a recurrence
            return nn.LSTM.forward(self, input, hx)  # type: ignore[call-overload]
        return over_sequences(self._run, input, hx)

    if TYPE_CHECKING:
        __call__ = forward

    def _run(self, x: Tensor, hx: States | None, batch_sizes: Tensor | None) -> tuple[Tensor, States]:
        if hx is None:
            hx = zero_states(self, x, batch_sizes)
        elif not are_two(hx):
            return self._run_plain(x, hx, batch_sizes)
        h0, c0 = hx
        if self.training and self.dropout > 0 and self.num_layers > 1:
            return self._run_plain(x, hx, batch_sizes)
        pack = self._current_pack(SPEC, (x, h0, c0))
        if pack is None:
            return self._run_plain(x, hx, batch_sizes)
        try:
            return self._run_packed(x, h0, c0, pack, batch_sizes)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, x, hx, batch_sizes)

    def _run_plain(self, x: Tensor, hx: States, batch_sizes: Tensor | None) -> tuple[Tensor, States]:
        return lstm_op(
            x,
            hx,
            [getattr(self, name) for name in self._flat_weights_names],
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
        )

    def _slots(self) -> Sequence[Slot]:
        return [(self._parameters, name) for name in self._flat_weights_names]

    def _key(self) -> Hashable:
        return self.num_layers, self.bidirectional, *self._flat_weights_names

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        # The op reports a number of weights that does not go with the attributes.
        whole = len(slots) in (2 * self._rows(), 4 * self._rows())
        return super()._new_pack(slots, dtype, key) if whole else None

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> _Packed:
        has_bias = len(tensors) == 4 * self._rows()
        return _pack([t.to(dtype) for t in tensors], self.num_layers, self.bidirectional, has_bias)

    def _rows(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _run_packed(
        self, x: Tensor, h0: Tensor, c0: Tensor, pack: Pack, batch_sizes: Tensor | None
    ) -> tuple[Tensor, States]:
        if x.dtype is not pack.dtype or torch._C._is_any_autocast_enabled():
            x, h0, c0 = x.to(pack.dtype), h0.to(pack.dtype), c0.to(pack.dtype)
        unbatched = batch_sizes is None and x.dim() == 2
        if unbatched:
            x, h0, c0 = x.unsqueeze(1), h0.unsqueeze(1), c0.unsqueeze(1)
        output, h_n, c_n = torch.ops.pykernels.lstm_packed.default(
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


class LSTMCell(PacksWeights, nn.LSTMCell):
    """`torch.nn.LSTMCell` on the kernels of this package.

    It takes torch's arguments and has torch's attributes, parameters and state_dict. The results are torch's but for
    rounding::

        h, c = nn.LSTMCell(input_size, hidden_size)(x, (h, c))

    >>> cell = pk.nn.LSTMCell(10, 20)
    >>> h, c = cell(torch.randn(3, 10))

    Args:
        input_size: I, the features of ``x``.
        hidden_size: H, the size of a state.
        bias: Whether the gates have biases.
        device: The device to make the parameters on.
        dtype: The parameters' dtype.

    Calls that record gradients run the differentiable op. In other calls the module packs its weights once, and again
    when they have changed, as `ConvBNAct2d` does.

    Raises:
        ValueError: torch refuses an argument.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)

    @classmethod
    def from_torch(cls, module: nn.LSTMCell) -> LSTMCell:
        """Makes a cell that shares the parameters of ``module``: training one trains the other.

        Args:
            module: A `torch.nn.LSTMCell`.

        Raises:
            TypeError: ``module`` is not a `torch.nn.LSTMCell`, or overrides ``forward``.
            ValueError: ``module`` has hooks, which would not run, or parametrized weights.
        """
        check_source(cls, module, nn.LSTMCell)
        ours = cls(module.input_size, module.hidden_size, module.bias, device="meta")
        for name in _CELL_WEIGHTS:
            setattr(ours, name, getattr(module, name))
        return ours.train(module.training)

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Runs one step.

        Args:
            input: (N, I), or (I,) unbatched.
            hx: The states (h, c) before it, each (N, H) or (H,); zeros if None.

        Returns:
            The states (h, c) after it, of the same shapes.

        Raises:
            TypeError: An argument is not a tensor, or its dtype does not go with the parameters'.
            ValueError: A shape or a device is wrong. The message names it.
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
        pack = self._current_pack(CELL_SPEC, (input, h, c))
        if pack is None:
            return self._run_plain(input, hx)
        try:
            return self._run_packed(input, h, c, pack)
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, input, hx)

    if TYPE_CHECKING:
        __call__ = forward

    def _run_plain(self, x: Tensor, hx: States) -> States:
        return lstm_cell_op(x, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def _run_packed(self, x: Tensor, h: Tensor, c: Tensor, pack: Pack) -> States:
        if x.dtype is not pack.dtype or torch._C._is_any_autocast_enabled():
            x, h, c = x.to(pack.dtype), h.to(pack.dtype), c.to(pack.dtype)
        op = torch.ops.pykernels.lstm_cell_packed.default
        if x.dim() == 2:
            return op(x, h, c, *pack.value)
        x, h, c = x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)
        h, c = op(x, h, c, *pack.value)
        return h.squeeze(0), c.squeeze(0)

    def _slots(self) -> Sequence[Slot]:
        return [(self._parameters, name) for name in _CELL_WEIGHTS]

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        one_bias = (self.bias_ih is None) is not (self.bias_hh is None)
        return None if one_bias else super()._new_pack(slots, dtype, key)

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> _Packed:
        weights = [t.to(dtype) for t in tensors if t is not None]
        return _pack(weights, 1, False, len(weights) == 4)


_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
