"""From a recording to a program."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from pykernels.optimize._graph import Graph
from pykernels.optimize._program import Program
from pykernels.optimize._record import Recorder


def compiled(graph: Graph, recorder: Recorder, store: dict[Hashable, Any]) -> Program | None:
    return Program(graph, [], recorder.watch, store)
