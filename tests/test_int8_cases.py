"""`tools/int8_cases.py`: that each op's draw is a call which can be made, and that another bit is found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.harness import native

SCRIPT = Path(__file__).parents[1] / "tools/int8_cases.py"

pytestmark = [native, pytest.mark.skipif(not SCRIPT.is_file(), reason="no tools/ beside the tests")]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("int8_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_some_calls_of_each_op(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["int8_cases.py", "--count", "4", "--seed", "90"])
    threads = torch.get_num_threads()
    try:
        assert tool.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out.count("4 calls on ") == len(tool.OPS)


def test_another_bit_is_told_with_the_seed_that_makes_it_again(tool, monkeypatch, capsys):
    def draw(draw):
        y = draw.floats(5)
        return lambda backend: y if backend == "reference" else torch.nextafter(y, y + 1)

    monkeypatch.setattr(tool, "OPS", {"wrong": draw})
    monkeypatch.setattr(sys, "argv", ["int8_cases.py", "--count", "1", "--seed", "7"])
    threads = torch.get_num_threads()
    try:
        assert tool.main() == 1
    finally:
        torch.set_num_threads(threads)
    assert "--seed 7 --count 1 wrong" in capsys.readouterr().out
