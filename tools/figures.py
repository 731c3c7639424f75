"""Writes what README and docs take from the measurements in bench/results: tables, sentences, and the picture.

    python tools/figures.py            # into README.md, docs/*.md and docs/images/speed.svg
    python tools/figures.py --check    # exit code 1 if one of them is not what the measurements say

A page marks what is written here, so nobody has to edit a figure by hand after a measurement:

    <!-- figures: NAME -->
    ...                                # replaced by what `passages` makes for NAME
    <!-- end of figures -->

It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from datetime import datetime
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
#: The measurements of the README's table and picture, and those of the older table in docs/benchmarks.md.
LATEST, BEFORE = "avx512_vnni", "avx2"
#: Which CPUs they are; the JSON has no more than the vendor's name, because the machines are virtual.
CPUS = {"avx512_vnni": "Zen 4, AVX-512", "avx2": "Zen 3, AVX2"}
#: Rows of `bench/zoo.py` that are transformers or MLP-mixers.
ATTENTION = (
    "*vit_tiny*",
    "tv:vit*",
    "deit*",
    "beit*",
    "eva*",
    "pit_*",
    "swin*",
    "tv:swin*",
    "mixer*",
    "resmlp*",
    "gmlp*",
)
RECURRENT = ("lstmlm", "cnnlstm")
INT8_ENGINES = {
    "q8_ort": "ONNX Runtime",
    "q8_ov": "OpenVINO",
    "q8_pt2e": "PT2E",
    "dyn_int8": "torch.ao",
}
ENGINES = {"ort": "ONNX Runtime", "ov": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN", "executorch": "ExecuTorch"}

BLUE, ORANGE, GREY, INK = "#1f6feb", "#e8710a", "#9aa0a6", "#30343a"
LEFT, WIDTH, ROW, TOP = 170, 860, 27, 92


class Peers:
    """The best call of each contender on each network."""

    def __init__(self, isa: str) -> None:
        files = [json.loads((RESULTS / f"peers-{part}-{isa}.json").read_text()) for part in ("models", "networks")]
        self.isa, self.machine = isa, files[0]["machine"]
        #: Of each file, the rounds and the commit of pykernels.
        self.runs = [
            f"{counted(file['method']['rounds'], 'round')} at commit {file['machine']['commit'].rstrip('+')}"
            for file in files
        ]
        found = [r for file in files for r in file["results"]]
        self.rows = list(dict.fromkeys(r["row"] for r in found))
        self.worst = max((r.get("error") or 0.0 for r in found if r["contender"] == "ours"), default=0.0)
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
    """A line for each network, by the best calls."""
    lines = [
        "| network | eager, 1 thread | best engine, 1 thread | eager, 2 threads | best engine, 2 threads |",
        "|---|---|---|---|---|",
    ]
    for row in peers.rows:
        cells = [name_of(row)]
        for threads in (1, 2):
            engine, ratio = peers.engine(row, threads)
            cells += [f"{peers.against_eager(row, threads):.1f}", f"{ratio:.2f} ({engine})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def provenance(peers: Peers) -> str:
    """Where the table's figures are from: files, machine, versions, day."""
    machine = peers.machine
    versions = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn", "MNN": "MNN"}
    versions["executorch"] = "ExecuTorch"
    known = [f"{says} {machine['versions'][name]}" for name, says in versions.items() if name in machine["versions"]]
    missing = [says for name, says in versions.items() if name not in machine["versions"]]
    text = (
        f"`bench/results/peers-models-{peers.isa}.json` and `peers-networks-{peers.isa}.json` hold these figures: "
        f"{machine['cpu']} ({CPUS[peers.isa]}, {counted(machine['cores'], 'virtual core')} on a machine that others "
        f"use too), {', '.join(known)}, {day_of(machine['date'])}, {listed(peers.runs)}. "
        f"The largest relative L2 error of ours is {peers.worst:.1e}."
    )
    return f"{text} {listed(missing)} did not run." if missing else text


def gains(peers: Peers) -> str:
    """Which networks gain on eager, and how much."""
    convolutions, recurrent = (
        [peers.against_eager(row, t) for row in peers.rows for t in (1, 2) if (name_of(row) in RECURRENT) is kind]
        for kind in (False, True)
    )
    attention = [row["ratio"] for row in sweep() if any(fnmatchcase(row["name"], p) for p in ATTENTION)]
    return (
        f"- **Faster than eager**: convolutional networks with batch norm, {span(convolutions, 1)} times, and LSTMs, "
        f"{span(recurrent, 1)} times.\n"
        f"- **Hardly faster**: transformers and MLP-mixers, {span(attention, 1)} times "
        "(`bench/results/zoo-avx2.json`). Their linear layers already run at MKL's speed."
    )


def losses(peers: Peers) -> str:
    """Which engines are ahead, and where: a point of the README's list."""
    parts = []
    for threads in (1, 2):
        ahead: dict[str, list[tuple[float, str]]] = {}
        for row in peers.rows:
            engine, ratio = peers.engine(row, threads)
            if round(ratio, 2) < 1:
                ahead.setdefault(engine, []).append((ratio, name_of(row)))
        count = sum(map(len, ahead.values()))
        with_ = "one thread" if threads == 1 else "two threads"
        if not count:
            parts.append(f"With {with_} no engine is faster on any of these networks.")
            continue
        most = sorted(ahead.items(), key=lambda item: (-len(item[1]), min(item[1])))
        named = [
            f"{engine} on {listed([name for _, name in sorted(rows)])} ({span([ratio for ratio, _ in rows], 2)})"
            for engine, rows in most
        ]
        parts.append(
            f"With {with_} an engine is faster on {count} of these {len(peers.rows)} networks: {'; '.join(named)}."
        )
    return "- **Slower than an engine** (the engine's time as a share of ours). " + " ".join(parts)


def half_precision() -> str:
    """bfloat16 on a CPU that has no instructions for it."""
    best = {r["contender"]: r["best_ms"] for r in results_of("bfloat16-avx2.json")}
    plain, ours = best["eager_bf16"], best["ours_bf16"]
    return (
        f"With one thread, ResNet-18 in bfloat16 takes eager PyTorch {plain:.0f} ms and pykernels {ours:.0f} ms "
        "(`bench/results/bfloat16-avx2.json`; both restricted to AVX2)."
    )


def packed_weights() -> str:
    """What ResNet-18 costs in memory."""
    row = next(
        r for r in results_of(f"peers-models-{LATEST}.json") if (r["row"], r["contender"]) == ("resnet18_b1", "ours")
    )
    return (
        f"ResNet-18 holds {row['packed_mb']} MB of packed weights besides its 46.8 MB of plain ones (`packed_mb` in "
        f"`bench/results/peers-models-{LATEST}.json`), because Winograd's take four times the memory of the plain ones."
    )


def sweep() -> list[dict[str, Any]]:
    """The rows of `bench/zoo.py`, those that gain most first."""
    return sorted(results_of("zoo-avx2.json"), key=lambda row: -row["ratio"])


def sweep_in_short() -> str:
    """One sentence of `sweep`."""
    ratios = [row["ratio"] for row in sweep()]
    slower = [r for r in ratios if round(r, 2) < 1]
    text = (
        f"[{len(ratios)} networks of timm and torchvision against eager](docs/networks.md): "
        f"{sum(r >= 2 for r in ratios)} of them gain a factor of 2 or more, and "
    )
    if not slower:
        return f"{text}none is slower (`bench/results/zoo-avx2.json`)."
    are = "one is" if len(slower) == 1 else f"{len(slower)} are"
    return f"{text}{are} slower, by at most {100 * (1 - min(slower)):.0f} % (`bench/results/zoo-avx2.json`)."


def sweep_exceptions() -> str:
    """What `sweep` has that is not as it should be: answers that are off, and networks that are slower."""
    off = [row for row in sweep() if row["status"] != "ok"]
    slower = [row["name"] for row in sweep() if round(row["ratio"], 2) < 1]
    told = [
        f"{row['name']} (*) is the exception: with these random weights it multiplies rounding errors, so eager's "
        f"answer is off by {row['eager_error']:.1e} and ours by {row['error']:.1e}."
        for row in off
    ]
    if slower:
        told.append(f"Below 1 {'is' if len(slower) == 1 else 'are'} {listed(slower)}.")
    return " ".join(told)


def networks_table() -> list[str]:
    """A line for each network of `bench/zoo.py`, those that gain most first."""
    lines = [f"| {row['name']}{' *' * (row['status'] != 'ok')} | {row['ratio']:.2f} |" for row in sweep()]
    return ["| network | eager / ours |", "|---|---|", *lines]


def int8_table() -> list[str]:
    """A line for each network in int8, by the best calls."""
    found = results_of(f"peers-quantized-{LATEST}.json")
    best = {(r["row"], r["contender"], r["threads"]): r for r in found if r["status"] == "ok"}
    lines = [
        "| network | our float32 / int8, 1 thread | best engine / ours, 1 thread | 2 threads | error: ours, theirs |",
        "|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(r["row"] for r in found):
        ours = {t: best[row, "q8_ours", t] for t in (1, 2)}
        cells = [name_of(row), f"{best[row, 'ours', 1]['best_ms'] / ours[1]['best_ms']:.2f}"]
        for threads in (1, 2):
            times = {e: best[row, e, threads] for e in INT8_ENGINES if (row, e, threads) in best}
            if not times:
                cells.append("none ran")
                continue
            fastest = min(times, key=lambda e: times[e]["best_ms"])
            cells.append(f"{times[fastest]['best_ms'] / ours[threads]['best_ms']:.2f} ({INT8_ENGINES[fastest]})")
        errors = [best[row, e, 1]["error"] for e in ("q8_ours", *INT8_ENGINES) if (row, e, 1) in best]
        cells.append(f"{errors[0]:.1%}, {min(errors[1:]):.1%}" if len(errors) > 1 else f"{errors[0]:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def accuracy_table() -> list[str]:
    """A line for each model of `examples/int8_accuracy.py`: its score in float32, and what every other form loses.

    Both are means over the folds; of several the least and the largest loss follow. Below, what that means.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for r in results_of("int8-accuracy.json"):
        rows.setdefault(f"{r['task']}, {r['unit']}", {}).setdefault(r["form"], []).append(r["score"])
    forms = list(next(iter(rows.values())))
    lines = [f"| model | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    for name, scores in rows.items():
        exact = scores[forms[0]]
        digits = _digits(exact[0])
        cells = [f"{fmean(exact):.{digits}f}"]
        for form in forms[1:]:
            lost = [a - b for a, b in zip(scores[form], exact, strict=True)]
            spread = f" ({min(lost):+.{digits}f} to {max(lost):+.{digits}f})" if len(lost) > 1 else ""
            cells.append(f"{fmean(lost):+.{digits}f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    folds = max(len(scores[forms[0]]) for scores in rows.values())
    told = (
        "The first column of figures is float32's score, larger is better; the others say what is gained or lost: "
        f"means over {folds} folds, each trained from scratch and tested on the rest, then the least and the largest."
    )
    return [*lines, "", *textwrap.wrap(told, 120, break_long_words=False, break_on_hyphens=False)]


def tuning_table() -> list[str]:
    """A line for each network of `bench/tuning.py`: the error with neither option, with one, and with both."""
    forms = "neither", "equalize", "correct_bias", "both"
    heads = ("neither", "`equalize`", "`correct_bias`", "both")
    lines = [f"| activation | s | `per_channel` | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for r in results_of("int8-tuning.json"):
        cells = (f"{r[form]:.2%}" for form in forms)
        lines.append(f"| {r['activation']} | {r['spread']:g} | {r['per_channel']} | {' | '.join(cells)} |")
    return lines


#: `bench/weights.py`'s contenders, as a table names them.
WEIGHTS = {
    "torch": "torch", "torch dynamic": "torch dynamic", "torchao weight-only": "torchao weight-only",
    "float": "ours, float", "dynamic": "ours, dynamic", "weight-only": "ours, weight-only",
}  # fmt: skip


def weights_table() -> list[str]:
    """A line for each subject of `bench/weights.py`: times in ms, and the errors of our two int8 forms."""
    found = {(r["row"], r["contender"]): r for r in results_of(f"weights-{LATEST}.json")}
    lines = [f"| one thread, ms | {' | '.join(WEIGHTS.values())} | errors |", "|---" * (len(WEIGHTS) + 2) + "|"]
    for row in dict.fromkeys(row for row, _ in found):
        times = (f"{found[row, c]['best_ms']:.3g}" if (row, c) in found else "" for c in WEIGHTS)
        errors = ", ".join(f"{found[row, c]['error']:.2%}" for c in ("dynamic", "weight-only"))
        lines.append(f"| {row} | {' | '.join(times)} | {errors} |")
    return lines


def _digits(score: float) -> int:
    """Of a score in points of a hundred, or in bits."""
    return 2 if abs(score) > 10 else 4


def passages() -> dict[str, str]:
    """Name -> the Markdown that README and docs have between its marks."""
    latest, before = Peers(LATEST), Peers(BEFORE)
    prose = {
        "half precision": half_precision(),
        "provenance": provenance(latest),
        "faster and slower": f"{gains(latest)}\n{losses(latest)}",
        "sweep": sweep_in_short(),
        "sweep's exceptions": sweep_exceptions(),
        "packed weights": packed_weights(),
        "memory": (
            f"- **Memory.** The optimised model keeps its weights twice: as they are, and packed. {packed_weights()} "
            '`pk.optimize(model, keep="packed")` keeps only the packed form; then '
            "`state_dict()`, training and conversions of those weights raise an error."
        ),
        "provenance of the older table": provenance(before),
    }
    tables = {
        "peers": peers_table(latest),
        "the older table": peers_table(before),
        "networks": networks_table(),
        "int8": int8_table(),
        "int8 accuracy": accuracy_table(),
        "weights": weights_table(),
        "int8 tuning": tuning_table(),
    }
    return {name: wrapped(text) for name, text in prose.items()} | {name: "\n".join(t) for name, t in tables.items()}


def results_of(name: str) -> list[dict[str, Any]]:
    """The rows of one file."""
    found: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())["results"]
    return found


def wrapped(text: str) -> str:
    """``text`` in lines of at most 120 characters, a point of a list by itself."""
    points = (
        textwrap.wrap(
            line, 120, subsequent_indent="  " * line.startswith("- "), break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    )
    return "\n".join(line for point in points for line in point)


def counted(number: int, what: str) -> str:
    """ "one round", "two rounds"."""
    words = {1: "one", 2: "two", 3: "three"}
    return f"{words.get(number, number)} {what}{'s' * (number != 1)}"


def listed(names: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def span(values: list[float], digits: int) -> str:
    """From the least to the most; one of them where both are written the same."""
    low, high = (f"{f(values):.{digits}f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def day_of(date: str) -> str:
    """ "2026-11-30T02:44:38+00:00" -> "30 November 2026"."""
    return f"{datetime.fromisoformat(date):%d %B %Y}".removeprefix("0")


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


MARKED = re.compile(r"(<!-- figures: (.+?) -->\n).*?(\n<!-- end of figures -->)", re.DOTALL)


def with_passages(text: str, made: dict[str, str]) -> str:
    """A page's text with what is between its marks written anew. KeyError for a name that there is not."""
    return MARKED.sub(lambda m: f"{m[1]}\n{made[m[2]]}\n{m[3]}", text)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    check = parser.parse_args().check
    made, pages = passages(), [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wanted = {page: with_passages(page.read_text(), made) for page in pages}
    wanted[ROOT / "docs/images/speed.svg"] = picture(Peers(LATEST))
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
