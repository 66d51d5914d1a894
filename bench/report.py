"""What the numbers look like: aligned Markdown tables and SVG plots, from the one JSON value scripts/bench keeps.

It computes ratios and verdicts, measures nothing. A section is {"title", "head", "rows", "plots"}; see bench/sections.py.
"""

import math
import statistics
from html import escape
from pathlib import Path

COLOURS = {"native": "#888888", "overlay": "#222222", "unionfs": "#d98c1f", "fo1": "#5aa9d6", "fo2": "#2b62a8",
           "cowfs": "#c8282d", "awake": "#e58a8d", "far": "#7d1013"}


def grid(head, rows):
    """A Markdown table with aligned columns: text columns left, the rest right."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    left = [n == 0 for n in range(len(head))]

    def line(row):
        return "| " + " | ".join(c.ljust(w) if lft else c.rjust(w) for c, w, lft in zip(row, widths, left)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if lft else ":") for w, lft in zip(widths, left)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def number(value):
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


# Copies are synced here by kernel overlayfs and cowfs alone (no FUSE peer calls fsync, seen with strace): the peers run in
# cowfs's volatile mode, and are compared there.
SYNCED = ("append", "chmod", "firstwrite")


def yardstick(line, whole):
    """Kernel overlayfs as it is mounted by default: volatile lines are held to its synced copies."""
    synced = line["workload"].partition("+")[0]
    return next((other["seconds"].get("overlay") for other in whole["table"] if other["workload"] == synced
                 and other["measured"] == line["measured"]), line["seconds"].get("overlay"))


def judge(line, base):
    """The verdict on cowfs for one line: target met? faster than every FUSE peer in the same mode?"""
    seconds = line["seconds"]
    ours = seconds.get("cowfs")
    if ours is None or not base:
        return ""
    verdict = "ok" if ours / base <= line["target"] else f"MISS x{ours / base / line['target']:.2f}"
    if verdict != "ok" and seconds.get("hollow", 0) / base > line["target"]:
        verdict += ", hollow misses too"
    beaten = [key for key in ("unionfs", "fo1", "fo2") if key in seconds and seconds[key] < ours]
    if beaten and line["workload"] not in SYNCED:
        verdict += ", behind " + ", ".join(beaten)
    return verdict


def main_table(whole):
    peers = whole["peers"]
    others = [key for key in peers if key not in ("native", "overlay")]
    head = ["workload", "native s", "overlay s", "native x"]
    head += [peers[key][0].replace(" (Debian)", "").replace("fuse-overlayfs", "f-o") + " x" for key in others] + ["at most", "verdict"]
    for key in ("fo1",):
        if key in others:
            head[4 + others.index(key)] = "f-o 1.x x"
    rows = []
    for line in whole["table"]:
        seconds, base = line["seconds"], yardstick(line, whole)
        times = {key: value / base if base else None for key, value in seconds.items()}
        rows.append([line["label"], number(seconds.get("native")), number(base), ratio(times.get("native"))]
                    + [ratio(times.get(key)) for key in others] + [f"{line['target']:g}", judge(line, base)])
    judged = [row[-1] for row in rows if row[-1]]
    text = grid(head, rows)
    if judged:
        met = sum(verdict.startswith("ok") for verdict in judged)
        text += f"\n\n{met} of {len(judged)} targets met; behind a FUSE peer in {sum('behind' in v for v in judged)}."
    bases = [(line, yardstick(line, whole)) for line in whole["table"] if "awake" in line["seconds"]]
    if bases:
        met = sum(bool(base) and line["seconds"]["awake"] / base <= line["target"] for line, base in bases)
        text += f" With `awake`: {met} of {len(bases)} met."
    own = [f"{line['seconds']['overlay'] / base:.2f}" for line in whole["table"] if "+volatile" in line["workload"]
           and line["seconds"].get("overlay") and (base := yardstick(line, whole))]
    if own:
        text += (f"\n\nVolatile lines: the peers are mounted so, and compared with kernel overlayfs as it is by default, its copies "
                 f"synced; its own volatile mode takes {', '.join(own)} of that. The FUSE peers never sync a copy: they are judged there.")
    if "hollow" in peers:
        text += ("\n\nhollow: a FUSE filesystem that holds names in memory, does nothing else, and is held to one processor together with "
                 "the program (where there is one program): what no daemon can go below, but for what a disk needs.")
    if whole.get("ready"):
        times = ", ".join(f"{peers[key][0]} {1000 * value:.1f} ms" for key, value in whole["ready"].items())
        text += f"\n\nMount to ready (the program has returned): {times}."
    if whole.get("wake"):
        text += (f"\n\nA question and its answer between two threads that sleep meanwhile, which is what a FUSE request costs before anything is "
                 f"done: {statistics.median(whole['wake']):.1f} us on this machine.")
    if whole.get("ask"):
        prices = ", ".join(f"{peers[key][0]} {price:.1f} us" for key, price in whole["ask"].items() if price)
        text += f"\n\nA request for which nothing is done (whether a file is a terminal): {prices}."
    return text


def count_table(whole):
    rows = []
    for entry in whole["count"]:
        requests = sorted(entry["requests"].items(), key=lambda item: -item[1])
        total = sum(count for _, count in requests)
        detail = ", ".join(f"{name} {count / entry['operations']:.2f}" for name, count in requests[:7])
        rows.append([entry["workload"], entry["peer"], entry["operations"], total, ratio(total / entry["operations"]), detail])
    return grid(["workload", "peer", "operations", "requests", "per operation", "by kind, per operation"], rows)


# ---- plots, by hand: no library is needed to draw a bar

def svg(width, height, parts):
    style = "text{font:12px sans-serif;fill:#222}.t{font-size:15px;font-weight:bold}.s{font-size:10px;fill:#666}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            f"<style>{style}</style><rect width=\"100%\" height=\"100%\" fill=\"white\"/>{''.join(parts)}</svg>\n")


def text(x, y, words, anchor="start", kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(str(words))}</text>'


def line(x1, y1, x2, y2, colour="#ccc", width=1.0, dash=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}" stroke-dasharray="{dash}"/>')


def bars(whole):
    """Ratio to kernel overlayfs, one group of bars a workload, on a logarithmic scale; a tick marks our target."""
    keys = [key for key in whole["peers"] if key not in ("overlay", "hollow")]
    values = [row["seconds"][key] / base for row in whole["table"] if (base := yardstick(row, whole))
              for key in keys if key in row["seconds"]]
    low, high = math.log10(max(0.05, min([0.1, *values]))), math.log10(max([10.0, *values]))
    left, right, bar, gap, top = 390, 860, 9, 9, 70

    def at(value):
        return left + (max(math.log10(value), low) - low) / (high - low) * (right - left)

    parts, y = [text(10, 24, "Seconds relative to kernel overlayfs (1.0); shorter is better", kind="t")], top
    for n, key in enumerate(keys):
        parts.append(f'<rect x="{10 + n * 147}" y="36" width="10" height="10" fill="{COLOURS[key]}"/>')
        parts.append(text(24 + n * 147, 45, whole["peers"][key][0]))
    body = []
    for row in whole["table"]:
        base = yardstick(row, whole)
        body.append(text(left - 8, y + bar * len(keys) / 2 + 4, row["label"], "end"))
        for n, key in enumerate(keys):
            if base and key in row["seconds"]:
                x = sorted((at(1.0), at(row["seconds"][key] / base)))
                body.append(f'<rect x="{x[0]:.1f}" y="{y + n * bar}" width="{max(x[1] - x[0], 1):.1f}" '
                            f'height="{bar - 1}" fill="{COLOURS[key]}"/>')
        target = at(max(row["target"], 10 ** low))
        body.append(line(target, y - 2, target, y + bar * len(keys) + 1, "#1a8a3a", 2))
        y += bar * len(keys) + gap
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in (1, 2, 5):
            value = step * 10.0 ** power
            if low <= math.log10(value) <= high:
                parts.append(line(at(value), top - 8, at(value), y, "#222" if value == 1 else "#ddd"))
                parts.append(text(at(value), top - 12, f"{value:g}", "middle", "s"))
    parts += body + [text(10, y + 16, f"green: target; {whole['machine']}; {whole['date']}", kind="s")]
    return svg(right + 30, y + 26, parts)


def curves(plot, whole):
    """Lines over a logarithmic x axis: `plot` has title, x, y and series {peer: [[x, y], ..]}."""
    points = [point for series in plot["series"].values() for point in series]
    if not points:
        return ""
    x0, x1 = (math.log10(f(p[0] for p in points)) for f in (min, max))
    y0, y1 = (math.log10(max(f(p[1] for p in points), 1e-9)) for f in (min, max))
    y0, y1, x1 = math.floor(y0), math.ceil(max(y1, y0 + 0.01)), max(x1, x0 + 0.01)
    left, right, top, bottom = 60, 560, 50, 330

    def at(x, y):
        return (left + (math.log10(x) - x0) / (x1 - x0) * (right - left),
                bottom - (math.log10(max(y, 1e-9)) - y0) / (y1 - y0) * (bottom - top))

    parts = [text(10, 24, plot["title"], kind="t"), text(left, 42, plot["y"], kind="s"), text(right, 360, plot["x"], "end")]
    for power in range(y0, y1 + 1):
        y = at(10 ** x0, 10.0 ** power)[1]
        parts += [line(left, y, right, y), text(left - 6, y + 4, f"{10.0 ** power:g}", "end", "s")]
    for x in sorted({point[0] for point in points}):
        parts.append(text(at(x, 1)[0], bottom + 16, f"{x:g}", "middle", "s"))
    for n, (key, series) in enumerate(plot["series"].items()):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*point) for point in series))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[key]}" stroke-width="2"/>')
        parts.append(f'<rect x="{right + 14}" y="{top + n * 20}" width="10" height="10" fill="{COLOURS[key]}"/>')
        parts.append(text(right + 30, top + 9 + n * 20, whole["peers"][key][0]))
    return svg(760, 372, parts)


def write(whole, out):
    """Writes bench.md and the plots beside bench.json; returns the text."""
    peers = ", ".join(f"{label} {version}".strip() for label, version in whole["peers"].values())
    made_small = f" Counts and sizes divided by {whole['divide']}." if whole["divide"] > 1 else ""
    parts = ["# Benchmark", f"{whole['machine']}. {whole['date']}. Load at the end {whole['load'][0]:.1f}. "
             f"{peers}. Medians of {whole['rounds']} rounds.{made_small}\n\nCommand: `{whole['command'].strip()}`"]
    if "table" in whole:
        parts += ["## Seconds relative to kernel overlayfs", main_table(whole)]
        (out / "bench.svg").write_text(bars(whole))
    if "count" in whole:
        parts += ["## FUSE requests per operation", count_table(whole)]
    for name, section in whole.items():
        if not (isinstance(section, list) and section and isinstance(section[0], dict) and "title" in section[0]):
            continue
        for n, part in enumerate(section):
            head = [whole["peers"].get(cell, [cell])[0] for cell in part["head"]]
            rows = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in part["rows"]]
            parts += [f"## {part['title']}", grid(head, rows)]
            if part.get("goal"):
                parts.append(f"Goal: {part['goal']}.")
            if part.get("plot"):
                (out / f"{name}-{n}.svg").write_text(curves({"title": part["title"], **part["plot"]}, whole))
    if whole["notes"]:
        parts += ["## Failures", "\n".join(f"- {' '.join(note.split())}" for note in whole["notes"])]
    document = "\n\n".join(parts) + "\n"
    Path(out / "bench.md").write_text(document)
    return document
