"""Where int8_lstm and int8_lstm_cell run."""

from pykernels.ops._op import FLOATS, Op

_BACKENDS: dict[str, str | None] = {
    "cpu": None,
    "cuda": "a GPU's recurrence waits for its grid, not for its weights: int8 saves little",
    "triton": "a GPU's recurrence waits for its grid, not for its weights: int8 saves little",
}
_DTYPES = {"cpu": FLOATS["cpu"]}

INT8_LSTM = Op("int8_lstm", "int8_lstm", _BACKENDS, _DTYPES)
INT8_LSTM_CELL = Op("int8_lstm_cell", "int8_lstm", _BACKENDS, _DTYPES)
#: The same with ``weight_only``.
INT8_LSTM_WEIGHT_ONLY = Op("int8_lstm_weight_only", "int8_lstm", _BACKENDS, _DTYPES)
INT8_LSTM_CELL_WEIGHT_ONLY = Op("int8_lstm_cell_weight_only", "int8_lstm", _BACKENDS, _DTYPES)
