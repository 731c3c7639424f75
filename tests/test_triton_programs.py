"""The tool that runs programs side by side finds what it is there for: missing barriers, and waiting for ever."""

from __future__ import annotations

import pytest
import torch

from tests.harness import triton_reason

if triton_reason() is not None or torch.cuda.is_available():
    pytest.skip(f"needs Triton's interpreter: {triton_reason() or 'here is a GPU'}", allow_module_level=True)

import triton
import triton.language as tl

from tests.triton_programs import SCHEDULES, Deadlock, side_by_side


@triton.jit
def exchange_kernel(values, seen, counter, STEPS: tl.constexpr, BARRIERS: tl.constexpr, TOO_MANY: tl.constexpr):
    """Each step a program writes its number plus the step, and reads its neighbour's."""
    me, programs = tl.program_id(0), tl.num_programs(0)
    for step in range(STEPS):
        tl.store(values + me, me + step)
        if BARRIERS >= 1:
            tl.atomic_add(counter, 1, sem="release")
            while tl.atomic_add(counter, 0, sem="acquire") < (2 * step + 1) * programs + TOO_MANY:
                pass
        tl.store(seen + step * programs + me, tl.load(values + (me + 1) % programs))
        if BARRIERS >= 2:
            tl.atomic_add(counter, 1, sem="release")
            while tl.atomic_add(counter, 0, sem="acquire") < (2 * step + 2) * programs:
                pass
        elif BARRIERS == 1:
            tl.atomic_add(counter, 1, sem="release")


def run(schedule: str, barriers: int, too_many: int = 0, programs: int = 4, steps: int = 3) -> bool:
    values, counter = (torch.full((programs,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    seen = torch.empty(steps, programs, dtype=torch.int32)
    with side_by_side(schedule) as sizes:
        exchange_kernel[(programs,)](values, seen, counter, STEPS=steps, BARRIERS=barriers, TOO_MANY=too_many)
    assert sizes == [programs]
    expected = (torch.arange(programs) + 1) % programs + torch.arange(steps)[:, None]
    return torch.equal(seen, expected.int())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_programs_that_wait_for_each_other(schedule):
    assert run(schedule, barriers=2)


@pytest.mark.parametrize("barriers", [0, 1])
def test_a_missing_barrier_is_found(barriers):
    assert not all(run(schedule, barriers) for schedule in SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_waiting_for_ever_is_an_error(schedule):
    with pytest.raises(Exception, match="waits for ever") as caught:
        run(schedule, barriers=2, too_many=1)
    assert isinstance(caught.value.__cause__, Deadlock)


def test_it_leaves_the_interpreter_as_it_was():
    with side_by_side("ahead"):
        pass
    values, seen, counter = (torch.zeros(n, dtype=torch.int32) for n in (1, 3, 1))
    exchange_kernel[(1,)](values, seen, counter, STEPS=3, BARRIERS=2, TOO_MANY=0)
    assert seen.tolist() == [0, 1, 2]
