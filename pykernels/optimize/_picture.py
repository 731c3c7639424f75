"""The report as a picture: SVG, written without any other package."""

from __future__ import annotations

from html import escape

from pykernels.optimize._report import ITSELF, OURS, TORCH, Ran, Report

_COLOURS = {OURS: "#1f7a8c", TORCH: "#e09f3e", ITSELF: "#9a8c98"}
_WIDTH, _LABEL, _ROW, _TOP = 860, 330, 15, 64
_MOST_ROWS = 120


def picture(report: Report) -> str:
    """One row for each step, in the order in which they run, with a bar as long as its share."""
    steps = report.counted()
    timed = any(s.seconds for s in steps)
    sizes = [float((s.seconds if timed else s.flops) or 0) for s in steps]
    total, rows = sum(sizes), list(zip(steps, sizes, strict=True))
    hidden: list[tuple[Ran, float]] = []
    if len(rows) > _MOST_ROWS:
        least = sorted(sizes, reverse=True)[_MOST_ROWS]
        hidden = [r for r in rows if r[1] <= least]
        rows = [r for r in rows if r[1] > least]
    longest = max([size for _, size in rows], default=0.0) or 1.0
    height = _TOP + _ROW * (len(rows) + bool(hidden)) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15">{escape(_title(report, timed, total))}</text>',
        *_legend(report, timed),
    ]
    for i, (step, size) in enumerate(rows):
        y = _TOP + _ROW * i
        text = f"{step.where}: {step.what}" if step.where else step.what
        width = max(1.0, (_WIDTH - _LABEL - 90) * size / longest)
        told = "unknown" if (step.seconds if timed else step.flops) is None else _size(size, timed)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(_short(text))}</text>',
            f'<rect x="{_LABEL}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 4}" fill="{_COLOURS[step.who]}">'
            f"<title>{escape(f'{text}, {step.who}: {told}')}</title></rect>",
            f'<text x="{_LABEL + width + 5:.1f}" y="{y + 11}" fill="#555555">{told}</text>',
        ]
    if hidden:
        y, rest = _TOP + _ROW * len(rows) + 11, sum(size for _, size in hidden)
        parts.append(f'<text x="{_LABEL}" y="{y}" fill="#555555">{len(hidden)} more: {_size(rest, timed)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _title(report: Report, timed: bool, total: float) -> str:
    what = f"{total * 1e3:.2f} ms" if timed else f"{total / 1e9:.2f} billion operations"
    return f"{len(report.counted())} steps, {what}"


def _legend(report: Report, timed: bool) -> list[str]:
    parts: list[str] = []
    x = 12
    for who, colour in _COLOURS.items():
        share = report.share("time" if timed else "operations", who)
        if any(s.who == who for s in report.counted()):
            label = who if share is None else f"{who} {share:.0%}"
            parts.append(f'<rect x="{x}" y="36" width="11" height="11" fill="{colour}"/>')
            parts.append(f'<text x="{x + 16}" y="46">{escape(label)}</text>')
            x += 40 + 7 * len(label)
    return parts


def _short(text: str) -> str:
    return text if len(text) <= 52 else f"...{text[-49:]}"


def _size(size: float, timed: bool) -> str:
    if timed:
        return f"{size * 1e3:.2f} ms" if size >= 1e-3 else f"{size * 1e6:.0f} us"
    return f"{size / 1e6:.1f} M" if size else "0"
