"""The tables of gpu.py, from the dictionary that it writes as JSON, and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import records

Results = dict[str, Any]
Rows = list[list[str]]
OURS = "gpu-fastgru"


def tables(results: Results) -> list[tuple[str, str, Rows]]:
    """List what was measured: title, what the cells are, rows of which the first is the header."""
    makers = (_peers, _options, _paths, _cudnn, _memory, _barrier)
    return [table for make in makers for table in make(results.get("sections", {}))]


def text(results: Results) -> str:
    """Lay all tables out for a terminal."""
    parts = [_title(results)]
    for title, note, rows in tables(results):
        parts.append(f"{title}: {note}\n{records.text_table(rows)}")
    return "\n\n".join([*parts, *_remarks(results)])


def markdown(results: Results) -> str:
    """Write all tables, and what they were taken on, for docs/."""
    parts = [f"# {_title(results)}"]
    for title, note, rows in tables(results):
        lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"## {title}\n\n{note}\n\n{table}")
    machine = results["machine"]
    where = f"{machine['cpu']}, {results['created'][:10]}, commit {machine['commit'] or 'unknown'}"
    return "\n\n".join([*parts, *_remarks(results), f"{where}.", f"`{results['command']}`"]) + "\n"


def save(results: Results, folder: Path) -> None:
    """Write <date>-gpu.json and .md into the folder; the same files for the same day."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{results['created'][:10]}-gpu"
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(markdown(results))


def _title(results: Results) -> str:
    device = results["peers"].get("gpu-probe", {}).get("versions", {}).get("device", "no device")
    return f"fastgru on {device}"


def _remarks(results: Results) -> list[str]:
    lines = []
    for name, peer in results["peers"].items():
        if "missing" in peer:
            lines.append(f"Not measured: {name} ({peer['missing']}).")
        else:
            versions = (f"{k} {v}" for k, v in peer["versions"].items() if k != "path")
            lines.append(f"{name}: {', '.join(versions)}.")
    skipped = results["skipped"]
    if skipped:
        lines.append(f"Left out, or out of time: {'; '.join(skipped)}.")
    return lines


def _peers(sections: Results) -> list[tuple[str, str, Rows]]:
    return _compared(
        "Forward, beside others",
        "microseconds a call; in brackets the time divided by ours (above 1: ours is faster)",
        sections.get("peers", []),
    )


def _options(sections: Results) -> list[tuple[str, str, Rows]]:
    return _compared(
        "What cuDNN does not serve",
        "microseconds a call; gpu-fastgru-plain is the same shape without the option; in brackets "
        "the time divided by ours with it",
        sections.get("options", []),
    )


def _compared(title: str, note: str, entries: list[Results]) -> list[tuple[str, str, Rows]]:
    if not entries:
        return []
    names = list(dict.fromkeys(name for entry in entries for name in entry["peers"]))
    rows = [["case", *names]]
    for entry in entries:
        rows.append([entry["case"], *(_figure(entry["peers"].get(name)) for name in names)])
    means = [
        _mean([entry["peers"].get(name, {}).get("ratio") for entry in entries]) for name in names
    ]
    return [(title, note, [*rows, ["geometric mean", *means]])]


def _figure(peer: Results | None) -> str:
    if peer is None:
        return "-"
    if "median_us" not in peer:
        return "WRONG" if peer.get("wrong") else "failed"
    ratio = f" ({peer['ratio']:.2f})" if "ratio" in peer else ""
    return f"{peer['median_us']:.0f}{ratio}"


def _mean(ratios: list[float | None]) -> str:
    found = [ratio for ratio in ratios if ratio is not None]
    if not found:
        return "-"
    return f"{math.exp(sum(map(math.log, found)) / len(found)):.2f}"


def _paths(sections: Results) -> list[tuple[str, str, Rows]]:
    cells = sections.get("paths", [])
    if not cells:
        return []
    batches = sorted({cell["batch"] for cell in cells})
    lines: dict[tuple[str, int], dict[int, str]] = {}
    best: dict[tuple[str, int], int] = {}
    for cell in cells:
        key, found = (cell["dtype"], cell["units"]), cell.get("found", {})
        steps, resident = found.get("steps"), found.get("resident")
        if steps is None:
            words = "failed"
        elif resident is None:
            words = f"{steps:.2f} / -"
        else:
            words = f"{steps:.2f} / {resident:.2f}"
            if found["tile"] < cell["batch"]:
                words += f" ({found['tile']})"
            if resident < steps:
                best[key] = max(best.get(key, 0), cell["batch"])
        lines.setdefault(key, {})[cell["batch"]] = words
    rows = [["dtype, units", *(f"B={batch}" for batch in batches), "best up to B"]]
    for key, line in lines.items():
        rows.append(
            [
                f"{key[0]} {key[1]}",
                *(line.get(b, "-") for b in batches),
                str(best.get(key, "never")),
            ]
        )
    note = "microseconds a step, step by step / in one launch, of our own kernels, forward; in "
    note += "brackets the rows that are multiplied at a time, where there is no room for all"
    return [("Step by step or persistent", note, rows)]


def _cudnn(sections: Results) -> list[tuple[str, str, Rows]]:
    cells = sections.get("cudnn", [])
    if not cells:
        return []
    batches = sorted({cell["batch"] for cell in cells})
    lines: dict[tuple[str, str, int], dict[int, str]] = {}
    refused: dict[str, int] = {}
    for cell in cells:
        key, found = (cell["math"], cell["algorithm"], cell["units"]), cell["found"]
        if found["status"] == "ok":
            mark = "" if found["repeats"] else " !"
            times = (found[name] for name in ("forward", "rows_first", "training"))
            words = " / ".join(f"{time:.2f}" for time in times) + mark
        else:
            number = refused.setdefault(found["status"], len(refused) + 1)
            words = f"[{number}]"
        lines.setdefault(key, {})[cell["batch"]] = words
    rows = [["math, algorithm, units", *(f"B={batch}" for batch in batches)]]
    rows += [
        [" ".join(map(str, key)), *(line.get(b, "-") for b in batches)]
        for key, line in lines.items()
    ]
    note = (
        "microseconds a step: inference, the same with rows first, forward and backward; ! where "
    )
    note += "two runs differ in a bit"
    for status, number in refused.items():
        note += f"; [{number}] {status}"
    return [("cuDNN's algorithms", note, rows)]


def _memory(sections: Results) -> list[tuple[str, str, Rows]]:
    parts = []
    if "memory" in sections:
        found = sections["memory"]
        rows = [["MiB", *next(iter(found.values()))]]
        rows += [
            [name, *(f"{size:.1f}" for size in sizes.values())] for name, sizes in found.items()
        ]
        parts.append(("Memory of the device", "in use by everybody", rows))
    if "repeats" in sections:
        rows = [["case", "forward", "training"]]
        for entry in sections["repeats"]:
            found = entry["found"]
            words = ["failed", "failed"]
            if "forward" in found:
                words = ["same" if found[name] else "DIFFERENT" for name in ("forward", "training")]
            rows.append([entry["case"], *words])
        parts.append(("Two runs", "bit by bit", rows))
    return parts


def _barrier(sections: Results) -> list[tuple[str, str, Rows]]:
    found = sections.get("barrier")
    if not found:
        return []
    rows = [["blocks", "microseconds"], [str(found["blocks"]), f"{found['microseconds']:.2f}"]]
    return [("A grid barrier", "as the persistent kernels wait for each other", rows)]
