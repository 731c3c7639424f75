#!/usr/bin/env python3
"""What the cross compiler made of the inner loops for 64-bit ARM: `make arm` runs it after the build.

A tile's loop must keep its sums in registers, and take no more instructions than the table says. No ARM machine has
timed these loops; the counts are what docs/kernels tells.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

# Object, the instruction that multiplies, how many of it the largest tile's loop has, and the loop's length at most.
LOOPS = (
    ("pk_neon_dotprod", "int8_matmul/matmul", "sdot", 24, 44),
    ("pk_neon_dotprod", "int8_conv2d/conv", "sdot", 28, 50),
    ("pk_neon_dotprod", "int8_lstm/forward", "sdot", 24, 52),
    ("pk_scalar", "conv_bn_act/direct", "fmla", 28, 48),
    ("pk_scalar", "conv_bn_act/winograd", "fmla", 28, 52),
    ("pk_scalar", "lstm/forward", "fmla", 24, 40),
)
BRANCH = re.compile(r"b\.?\w*|cbn?z|tbn?z|ret")


def loops(path: Path):
    """Counters of the instructions of each innermost loop; ``stack``: how many of them move a vector there or back."""
    text = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(path)], check=True, capture_output=True, text=True
    ).stdout
    for function in text.split("\n\n"):
        code = [
            (int(at, 16), name, rest)
            for at, name, rest in re.findall(r"^ +([0-9a-f]+):\t(\S+)[ \t]*(.*)$", function, re.MULTILINE)
        ]
        index = {at: i for i, (at, _, _) in enumerate(code)}
        for i, (_, name, rest) in enumerate(code):
            target = re.search(r"([0-9a-f]+) <", rest)
            if not BRANCH.fullmatch(name) or target is None:
                continue
            begin = index.get(int(target[1], 16), i + 1)
            body = code[begin : i + 1]
            if not body or any(BRANCH.fullmatch(name) for _, name, _ in body[:-1]):
                continue
            counts = Counter(name for _, name, _ in body)
            counts["stack"] = sum(
                name[:2] in ("ld", "st") and re.match(r"[qd]\d", rest) is not None and "[sp" in rest
                for _, name, rest in body
            )
            yield counts, len(body)


def main() -> int:
    """Prints a line for each object; 1 if a loop is not as the table says."""
    build, failed = Path(sys.argv[1]), False
    for isa, source, instruction, count, most in LOOPS:
        found = list(loops(build / f"CMakeFiles/{isa}.dir/csrc/cpu/{source}.cpp.o"))
        # Loops that also shuffle are those of an unpacked b.
        whole = [length for counts, length in found if counts[instruction] == count and not counts["zip1"]]
        spilled = sum(counts[instruction] >= 8 and counts["stack"] > 0 for counts, _ in found)
        good = bool(whole) and max(whole) <= most and spilled == 0
        failed |= not good
        length = max(whole, default=0)
        print("ok " if good else "BAD", isa, source, end=": ")
        print(f"{count} {instruction} in {length} instructions (at most {most}), {spilled} loops use the stack")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
