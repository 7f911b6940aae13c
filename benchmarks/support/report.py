"""A run's results as a table, as Markdown and as a plot.

Everything here reads the dictionary that compare.py writes as JSON, and nothing else, so that a
table can be made again from a file. A ratio is a peer's time divided by ours: above 1, ours is the
faster one.
"""

import math
import statistics
from pathlib import Path
from typing import Any

Results = dict[str, Any]

# Processors taken by other programs while a shape was timed; above it the figures are doubtful.
DISTURBED = 0.1

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def summarise(entry: Results, ours: str) -> None:
    """Add medians and ratios to one shape's entry, in place.

    Parameters
    ----------
    entry : dict
        ``{"shape": ..., "peers": {name: {"rounds": [block, ...]} or {"failed": reason}}}``.
    ours : str
        The peer that the others are divided by, round by round, before the median is taken.
    """
    own = entry["peers"].get(ours, {}).get("rounds", [])
    for figures in entry["peers"].values():
        rounds = figures.get("rounds")
        if not rounds:
            continue
        figures["median_us"] = statistics.median(block["median_us"] for block in rounds)
        if own:
            figures["ratio"] = statistics.median(
                theirs["median_us"] / mine["median_us"]
                for theirs, mine in zip(rounds, own, strict=True)
            )
    if own and "limits" in entry:
        _summarise_limits(entry["limits"], own)


def _summarise_limits(limits: Results, own: list[Results]) -> None:
    """Add to a shape's limits what share of them ours reached, and the least time they allow."""
    compute = [limits["flop"] / (block["gflops"] * 1e3) for block in limits["rounds"]]
    bytes_read = limits["weight_bytes"] * limits["weight_reads"]
    read = [bytes_read / (block["gbytes_s"] * 1e3) for block in limits["rounds"]]
    # Reading goes on while the arithmetic units work: the longer of the two, not their sum.
    floors = [max(pair) for pair in zip(compute, read, strict=True)]
    times = [block["median_us"] for block in own]
    for name, least in (("fma_share", compute), ("limit_share", floors)):
        limits[name] = statistics.median(a / b for a, b in zip(least, times, strict=True))
    limits["floor_us"] = statistics.median(floors)


def rivals(results: Results) -> list[str]:
    """Name the peers that ran, without ours and its variants under other environments."""
    own = results["ours"].partition("@")[0]
    return [name for name in _others(results) if name.partition("@")[0] != own]


def best_rival(results: Results, entry: Results) -> tuple[str, float] | None:
    """Find the fastest peer of a shape and its ratio; None where nothing can be compared."""
    ratios = [
        (entry["peers"][name]["ratio"], name)
        for name in rivals(results)
        if "ratio" in entry["peers"].get(name, {})
    ]
    return (min(ratios)[1], min(ratios)[0]) if ratios else None


def geometric_means(results: Results) -> dict[str, float]:
    """Average the ratios over the shapes: one figure a peer, and "best" for the best of each."""
    ratios: dict[str, list[float]] = {}
    for entry in results["shapes"]:
        for name in _others(results):
            if "ratio" in entry["peers"].get(name, {}):
                ratios.setdefault(name, []).append(entry["peers"][name]["ratio"])
        best = best_rival(results, entry)
        if best:
            ratios.setdefault("best", []).append(best[1])
    return {
        name: math.exp(statistics.fmean(math.log(ratio) for ratio in values))
        for name, values in ratios.items()
    }


def header(results: Results) -> list[str]:
    """Title the columns of `rows`."""
    peers = [f"{name} us (x)" for name in _others(results)]
    shares = ["% of FMA peak", "% of limit"] if _limited(results) else []
    return ["shape", f"{results['ours']} us", *peers, "best peer", *shares]


def row(results: Results, entry: Results) -> list[str]:
    """Format one shape."""
    peers = entry["peers"]
    cells = [entry["shape"], _time(peers.get(results["ours"], {}))]
    for name in _others(results):
        figures = peers.get(name, {})
        ratio = f" ({figures['ratio']:.2f})" if "ratio" in figures else ""
        cells.append(_time(figures) + ratio)
    best = best_rival(results, entry)
    cells.append(f"{best[0]} {best[1]:.2f}" if best else "-")
    if _limited(results):
        limits = entry.get("limits", {})
        for name in ("fma_share", "limit_share"):
            cells.append(f"{100 * limits[name]:.0f}" if name in limits else "-")
    return cells


def means_row(results: Results) -> list[str]:
    """Format the last line."""
    means = geometric_means(results)
    cells = [f"{means[name]:.2f}" if name in means else "-" for name in _others(results)]
    best = f"{means['best']:.2f}" if "best" in means else "-"
    shares = ["-", "-"] if _limited(results) else []
    return ["geometric mean", "1.00", *cells, best, *shares]


def title(results: Results) -> str:
    """Say what was measured where."""
    return f"GRU {results['task']}, float32, {_threads(results)}, {results['machine']['cpu']}"


def summary(results: Results) -> str:
    """Compare ours with the best peer of each shape, in one line."""
    found = [(best_rival(results, entry), entry["shape"]) for entry in results["shapes"]]
    ratios = [(best[1], best[0], shape) for best, shape in found if best]
    if not ratios:
        return "There is no peer to compare with."
    least, name, shape = min(ratios)
    return (
        f"Time of the best peer divided by ours: least {least:.2f} ({shape}, {name}), "
        f"geometric mean {geometric_means(results)['best']:.2f}."
    )


def text_table(results: Results) -> str:
    """Lay the table out for a terminal."""
    lines = [header(results), *(row(results, entry) for entry in results["shapes"])]
    lines.append(means_row(results))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    out = []
    for cells in lines:
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        out.append("  ".join([cells[0].ljust(len(first)), *rest]))
    return "\n".join([title(results), *out, summary(results)])


def markdown(results: Results) -> str:
    """Write the table and what it was taken on, for docs/performance.md."""
    settings, machine = results["settings"], results["machine"]
    lines = [header(results), ["---", *["---:"] * (len(header(results)) - 1)]]
    lines += [row(results, entry) for entry in results["shapes"]]
    lines.append([f"**{cell}**" for cell in means_row(results)])
    versions = "; ".join(
        ", ".join(f"{k} {v}" for k, v in peer["versions"].items() if k not in ("path", "python"))
        for name, peer in results["peers"].items()
        if "versions" in peer and "@" not in name
    )
    missing = [
        f"Not measured: {name} ({peer['missing']})."
        for name, peer in results["peers"].items()
        if "missing" in peer
    ]
    if "missing" in results.get("limits", {}):
        missing.append(f"The machine's limits were not measured: {results['limits']['missing']}.")
    disturbed = [entry["shape"] for entry in results["shapes"] if entry["disturbance"] > DISTURBED]
    if disturbed:
        missing.append(f"Other programs disturbed: {', '.join(disturbed)}.")
    return "\n".join(
        [
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            summary(results),
            "",
            f"Microseconds a call, {results['task']}, float32, {_threads(results)}, medians of "
            f"{settings['rounds']} rounds; in brackets the peer's time divided by ours (above 1: "
            f"{results['ours']} is faster). {machine['cpu']}, {results['created'][:10]}, "
            f"commit {machine['commit'] or 'unknown'}.",
            "",
            *(_limits_in_words(results) if _limited(results) else []),
            f"Python {machine['python']}. Peers: {versions}.",
            *missing,
            "",
        ]
    )


def plot(results: Results, path: Path) -> None:
    """Draw the ratios as horizontal bars, one group a shape, on a logarithmic axis.

    Parameters
    ----------
    results : dict
    path : Path
        The PNG file to write. Needs matplotlib, which nothing else here does.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    others = [name for name in _others(results) if name in geometric_means(results)]
    groups = [entry for entry in results["shapes"] if best_rival(results, entry)]
    if not groups:
        raise ValueError("no ratio to plot: ours or every peer failed")
    step = len(others) + 1.2
    figure, axes = plt.subplots(
        figsize=(9, 1.6 + 0.17 * step * len(groups)), layout="constrained", dpi=120
    )
    low = top = 1.0
    for index, name in enumerate(others):
        places, ratios = [], []
        for group, entry in enumerate(groups):
            if "ratio" in entry["peers"].get(name, {}):
                places.append(group * step + index)
                ratios.append(entry["peers"][name]["ratio"])
        # Bars start at 1: to the right the peer is slower than ours, to the left it is faster.
        axes.barh(
            places,
            [ratio - 1.0 for ratio in ratios],
            left=1.0,
            height=0.85,
            color=_COLOURS[index % len(_COLOURS)],
            label=name,
        )
        for place, ratio in zip(places, ratios, strict=True):
            right = ratio >= 1.0
            axes.annotate(
                f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
                (ratio, place),
                xytext=(3 if right else -3, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
                fontsize=6,
            )
        low, top = min(low, *ratios), max(top, *ratios)
    axes.set_xscale("log")
    room = (top / low) ** 0.07  # for the figures beyond the bars' ends
    axes.set_xlim(low / room, top * room)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_yticks(
        [group * step + (len(others) - 1) / 2 for group in range(len(groups))],
        [f"{entry['shape']}\n{_time(entry['peers'][results['ours']])} us" for entry in groups],
        fontsize=8,
    )
    axes.set_ylim(len(groups) * step - 0.6, -1.0)
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"time of the peer / time of {results['ours']} (right of 1: ours is faster)")
    axes.set_title(title(results), fontsize=9)
    figure.legend(loc="outside upper center", ncols=min(len(others), 4), fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def _others(results: Results) -> list[str]:
    return [
        name
        for name, peer in results["peers"].items()
        if name != results["ours"] and "missing" not in peer
    ]


def _limited(results: Results) -> bool:
    return any("limit_share" in entry.get("limits", {}) for entry in results["shapes"])


def _limits_in_words(results: Results) -> list[str]:
    peaks = [
        block["gflops"]
        for entry in results["shapes"]
        for block in entry.get("limits", {}).get("rounds", [])
    ]
    ours = results["ours"]
    return [
        f"% of FMA peak: the matrix products' operations divided by {ours}'s time, of what these "
        f"processors did right after it ({min(peaks):.0f} to {max(peaks):.0f} GFLOP/s). "
        "% of limit: the least time in which they could have done these operations, or have read "
        "the recurrent weights in every step (of a single step all weights) from a buffer of that "
        f"size, whichever is longer, divided by {ours}'s time.",
        "",
    ]


def _threads(results: Results) -> str:
    count = results["settings"]["threads"]
    return f"{count} thread" + "s" * (count != 1)


def _time(figures: Results) -> str:
    if "median_us" not in figures:
        return "WRONG" if figures.get("wrong") else "failed" if "failed" in figures else "-"
    value = figures["median_us"]
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
