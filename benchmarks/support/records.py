"""Tables and files of the benchmarks of fastgru itself: options.py, callers.py, accuracy.py."""

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import describe_machine

Rows = list[list[str]]


def new_record(task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Begin the dictionary that becomes the JSON file: when, how and on what it is taken.

    Parameters
    ----------
    task : str
    settings : dict

    Returns
    -------
    dict
    """
    return {
        "task": task,
        "created": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "settings": settings,
        "machine": describe_machine(),
    }


def text_table(rows: Rows) -> str:
    """Lay rows out for a terminal, the first of them a header and the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def save(record: dict[str, Any], rows: Rows, note: str, output: Path) -> None:
    """Write FOLDER/<date>-NAME.json and .md.

    Parameters
    ----------
    record : dict
        From `new_record`, with ``versions`` and the results.
    rows : list of list of str
        As in `text_table`.
    note : str
        What the columns are, for below the table.
    output : Path
        FOLDER/NAME.
    """
    machine = record["machine"]
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    text = [
        *("| " + " | ".join(row) + " |" for row in lines),
        "",
        f"{note} {machine['cpu']}, {record['created'][:10]}, "
        f"commit {machine['commit'] or 'unknown'}. Python {machine['python']}, {versions}.",
        "",
        f"`{record['command']}`",
        "",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{record['created'][:10]}-{output.name}"
    (output.parent / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    (output.parent / f"{stem}.md").write_text("\n".join(text))
