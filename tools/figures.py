"""Writes what README and docs take from the measurements in bench/results: three tables, and the picture.

    python tools/figures.py            # into README.md, docs/benchmarks.md, docs/networks.md, docs/images/speed.svg
    python tools/figures.py --check    # exit code 1 if one of them is not what the measurements say

It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
#: The measurements of the README's table and picture, and those of the older table in docs/benchmarks.md.
LATEST, BEFORE = "avx512_vnni", "avx2"
ENGINES = {"ort": "ONNX Runtime", "ov": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN", "executorch": "ExecuTorch"}

BLUE, ORANGE, GREY, INK = "#1f6feb", "#e8710a", "#9aa0a6", "#30343a"
LEFT, WIDTH, ROW, TOP = 170, 860, 27, 92


class Peers:
    """The best call of each contender on each network."""

    def __init__(self, isa: str) -> None:
        files = [json.loads((RESULTS / f"peers-{part}-{isa}.json").read_text()) for part in ("models", "networks")]
        self.machine: dict[str, Any] = files[0]["machine"]
        found = [r for file in files for r in file["results"]]
        self.rows = list(dict.fromkeys(r["row"] for r in found))
        self.best = {(r["row"], r["contender"], r["threads"]): r["best_ms"] for r in found if r["status"] == "ok"}

    def against_eager(self, row: str, threads: int) -> float:
        """Eager's time over ours."""
        return float(self.best[row, "eager", threads] / self.best[row, "ours", threads])

    def engine(self, row: str, threads: int) -> tuple[str, float]:
        """The fastest engine, and its time over ours."""
        times = {e: t for e in ENGINES if (t := self.best.get((row, e, threads))) is not None}
        fastest = min(times, key=lambda e: times[e])
        return ENGINES[fastest], times[fastest] / self.best[row, "ours", threads]


def peers_table(peers: Peers) -> list[str]:
    """A line for each network."""
    lines = []
    for row in peers.rows:
        cells = [name_of(row)]
        for threads in (1, 2):
            engine, ratio = peers.engine(row, threads)
            cells += [f"{peers.against_eager(row, threads):.1f}", f"{ratio:.2f} ({engine})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def networks_table() -> list[str]:
    """A line for each network of `bench/zoo.py`, those that gain most first."""
    rows = sorted(json.loads((RESULTS / "zoo-avx2.json").read_text())["results"], key=lambda row: -row["ratio"])
    return [f"| {row['name']}{' *' * (row['status'] != 'ok')} | {row['ratio']:.2f} |" for row in rows]


def name_of(row: str) -> str:
    """A network's name without its batch."""
    return row.removesuffix("_b1")


def picture(peers: Peers) -> str:
    """Bars of ours against eager PyTorch, one thread, and where the fastest engine would be."""
    found = []
    for row in peers.rows:
        ours = peers.against_eager(row, 1)
        engine, ratio = peers.engine(row, 1)
        found.append((name_of(row), ours, engine, ours / ratio))
    found.sort(key=lambda entry: -entry[1])
    most = max(max(ours, engine) for _, ours, _, engine in found)
    scale = (WIDTH - LEFT - 180) / most
    height = TOP + ROW * len(found) + 44
    bottom = TOP + ROW * len(found)
    machine = peers.machine
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="28" font-size="17" font-weight="bold">'
        "Speed against eager PyTorch, float32, batch 1, one thread</text>",
        f'<text x="16" y="48" fill="#5f6368">{escape(machine["cpu"])}, {machine["isa"]}, torch '
        f"{escape(machine['versions']['torch'])}, {machine['date'][:10]}; eager PyTorch = 1, longer is faster</text>",
        f'<rect x="16" y="62" width="12" height="12" fill="{BLUE}"/><text x="34" y="73">pk.optimize</text>',
        f'{_diamond(140, 68)}<text x="152" y="73">the fastest of {escape(", ".join(_measured(peers)))}</text>',
    ]
    for tick in range(int(most) + 1):
        x = LEFT + tick * scale
        dash = ' stroke-dasharray="4 3"' if tick == 1 else ""
        colour = GREY if tick == 1 else "#e3e5e8"
        lines.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}"{dash}/>')
        lines.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    lines.append(
        f'<text x="{LEFT + scale:.1f}" y="{bottom + 34}" text-anchor="middle" fill="#5f6368">eager PyTorch</text>'
    )
    for i, (name, ours, engine, theirs) in enumerate(found):
        y = TOP + ROW * i + ROW / 2
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y - 8:.1f}" width="{ours * scale:.1f}" height="16" fill="{BLUE}"/>',
            _diamond(LEFT + theirs * scale, y),
            f'<text x="{LEFT + max(ours, theirs) * scale + 12:.1f}" y="{y + 4.5:.1f}">{ours:.1f}'
            f'<tspan fill="#5f6368">  ({escape(engine)} {theirs:.1f})</tspan></text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _measured(peers: Peers) -> list[str]:
    return [name for e, name in ENGINES.items() if any(contender == e for _, contender, _ in peers.best)]


def _diamond(x: float, y: float) -> str:
    points = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
    return f'<polygon points="{points}" fill="{ORANGE}" stroke="#ffffff"/>'


def with_table(page: Path, table: list[str]) -> str:
    """The page's text, with ``table`` for the body of its table of networks."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| network |")) + 2
    end = next(i for i, line in enumerate([*lines[start:], ""]) if not line.startswith("|")) + start
    return "\n".join([*lines[:start], *table, *lines[end:], ""])


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    check = parser.parse_args().check
    peers = Peers(LATEST)
    readme, benchmarks, networks = ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/networks.md"
    wanted = {
        readme: with_table(readme, peers_table(peers)),
        benchmarks: with_table(benchmarks, peers_table(Peers(BEFORE))),
        networks: with_table(networks, networks_table()),
        ROOT / "docs/images/speed.svg": picture(peers),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)} {'is not what bench/results says: run tools/figures.py' if check else 'written'}"
        )
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
