"""Runs the programs of an interpreted Triton grid side by side, for kernels whose programs wait for each other.

Triton's interpreter runs one program after another, so the first that waits for the second waits for ever. Inside
`side_by_side` each program is a thread of which one runs at a time, and hands over where programs can see each other:
at atomics and volatile loads. A schedule says who runs next:

- "ahead": a program runs until it waits (polls the same value twice), then the next one: each gets as far ahead of the
  others as the kernel lets it, which a missing barrier lets it too far
- "behind": the same, last program first
- "random": at every such point anyone, by a seed

A value read too early is a wrong result; programs that wait for ever are an error, not a hang. Memory is sequentially
consistent, so missing acquire and release go unseen.
"""

from __future__ import annotations

import inspect
import random
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime import interpreter

SCHEDULES = ("ahead", "behind", "random")

#: A program that has polled the same value so often in turn, while no other came further, waits for ever.
_FOR_EVER = 50


class Deadlock(Exception):
    """Every program that is not done waits."""


class _Program(threading.Thread):
    def __init__(self, grid: _Grid, index: tuple[int, int, int], arguments: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.grid, self.index, self.arguments = grid, index, arguments
        self.turn = threading.Event()
        self.seen: Any = None
        self.polls = 0
        self.done = False
        self.problem: BaseException | None = None

    def run(self) -> None:
        self.turn.wait()
        try:
            interpreter.interpreter_builder.set_grid_idx(*self.index)
            self.grid.function(**self.arguments)
        except BaseException as problem:
            self.problem = problem
        self.done = True
        self.grid.hand_over(self)

    def has_seen(self, what: Any) -> None:
        """``what``: the operation, where, and the value that it found."""
        self.polls = self.polls + 1 if what == self.seen else 0
        self.seen = what
        self.grid.hand_over(self)


class _Grid:
    """The programs of one launch."""

    def __init__(self, function: Any, schedule: str, seed: int) -> None:
        self.function, self.schedule = function, schedule
        self.random = random.Random(seed)
        self.programs: list[_Program] = []
        self.running: _Program | None = None
        self.finished = threading.Event()

    def run(self) -> None:
        if self.schedule == "behind":
            self.programs.reverse()
        for program in self.programs:
            program.start()
        self.running = self._next(self.programs[-1])
        assert self.running is not None
        self.running.turn.set()
        self.finished.wait()
        for program in self.programs:
            if program.problem is not None:
                raise program.problem

    def hand_over(self, program: _Program) -> None:
        waits = program.polls > 0
        if not (program.done or waits or self.schedule == "random"):
            return
        if not waits:
            for other in self.programs:
                other.polls = min(other.polls, 1)
        following = self._next(program)
        if following is program:
            return
        if following is None:
            for other in self.programs:  # nobody will come back to its stack: the threads end with the process
                other.problem = other.problem or (None if other.done else Deadlock(f"{other.index} waits for ever"))
            self.finished.set()
            if program.done:
                return
        else:
            self.running = following
            program.turn.clear()
            following.turn.set()
            if program.done:
                return
        program.turn.wait()
        interpreter.interpreter_builder.set_grid_idx(*program.index)

    def _next(self, program: _Program) -> _Program | None:
        left = [p for p in self.programs if not p.done]
        if not left or all(p.polls > _FOR_EVER for p in left):
            return None
        if self.schedule == "random":
            return self.random.choice(left)
        at = self.programs.index(program)
        return next(p for p in (*self.programs[at + 1 :], *self.programs[: at + 1]) if not p.done)


@contextmanager
def side_by_side(schedule: str, seed: int = 0) -> Iterator[list[int]]:
    """Inside the block the programs of every interpreted launch run side by side; gives the grids' sizes."""
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    construct = executor.__init__
    watched = {name: getattr(builder, name) for name in _WATCHED}
    sizes: list[int] = []
    current: list[_Grid | None] = [None]

    def init(self: Any, function: Any, *rest: Any, **named: Any) -> None:
        construct(self, function, *rest, **named)
        grids: list[_Grid] = []

        def gather(arguments: dict[str, Any]) -> None:
            index, size = builder.grid_idx, builder.grid_dim
            if index == (0, 0, 0):
                grids.append(_Grid(function, schedule, seed))
            grid = grids[-1]
            grid.programs.append(_Program(grid, index, arguments))
            if all(i + 1 == n for i, n in zip(index, size, strict=True)):
                sizes.append(len(grid.programs))
                current[0] = grid
                try:
                    grid.run()
                finally:
                    current[0] = None

        # The interpreter looks into the function's globals and signature, so the stand-in has to have the same ones.
        def stand_in(**arguments: Any) -> None:
            gather(arguments)

        self.fn = types.FunctionType(
            stand_in.__code__, function.__globals__, function.__name__, None, stand_in.__closure__
        )
        self.fn.__signature__ = inspect.signature(function)

    def watch(name: str, call: Any) -> Any:
        def watching(pointer: Any, *rest: Any) -> Any:
            return note(name, call, (pointer, *rest), pointer)

        def watching_rmw(operation: Any, pointer: Any, *rest: Any) -> Any:
            return note(f"{name} {operation}", call, (operation, pointer, *rest), pointer)

        return watching_rmw if name == "create_atomic_rmw" else watching

    def note(name: str, call: Any, arguments: tuple[Any, ...], pointer: Any) -> Any:
        found = call(*arguments)
        grid = current[0]
        # A volatile load is marked by its last argument; other loads are nobody's business.
        if grid is not None and (name.startswith("create_atomic") or arguments[-1]):
            program = grid.running
            assert program is not None
            value = b"" if found is None else found.data.tobytes()
            program.has_seen((name, pointer.data.tobytes(), value))
        return found

    executor.__init__ = init
    for name, call in watched.items():
        setattr(builder, name, watch(name, call))
    try:
        yield sizes
    finally:
        executor.__init__ = construct
        for name in watched:
            delattr(builder, name)


_WATCHED = ("create_load", "create_masked_load", "create_atomic_rmw", "create_atomic_cas")
