"""Where lstm and lstm_cell run."""

from pykernels.ops._op import FLOATS, Op

_EVERYWHERE: dict[str, str | None] = {"cpu": None, "cuda": None, "triton": None}

LSTM = Op("lstm", "lstm", _EVERYWHERE, FLOATS)
LSTM_CELL = Op("lstm_cell", "lstm", _EVERYWHERE, FLOATS)
