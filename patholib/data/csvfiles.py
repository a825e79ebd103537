"""CSV tables from users, read as text: no value is converted and no column is shifted."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from patholib.base import files
from patholib.base.errors import PathoError, nearest, shown

MOST_BYTES = 2**30  # of a table once it is unpacked
SEPARATORS = (",", ";", "\t", "|")
PACKED: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}  # by their first bytes


def stop_on(problems: list[tuple[str, str, str]], remedy: str, limit: int = 20) -> None:
    """Raises one PathoError for all problems, each (code, subject, reason); its code is that of the first."""
    if not problems:
        return
    code, subject, reason = problems[0]
    if len(problems) == 1:
        raise PathoError(code, subject, reason, remedy)
    counts = ", ".join(f"{n} {name}" for name, n in Counter(problem[0] for problem in problems).items())
    lines = [f"\n  [{name}] {shown(what)}: {why}" for name, what, why in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"\n  and {len(problems) - limit} more\n")
    raise PathoError(code, f"{len(problems)} problems", f"{counts}{''.join(lines)}", remedy)


def read_csv(path: Path, needed: Iterable[str] = ()) -> pd.DataFrame:
    """A table as text, "" where a cell is empty; the index is each row's line in the file.

    Fields are separated by the one of SEPARATORS that the header has most of; the file may be packed (gz, bz2, xz).
    "NA" and "0012" stay as written, and no row may have more or fewer fields than the header.
    Raises PathoError: `missing_file`, `unreadable`, `csv_format` (names the column, line or encoding).
    """
    path = Path(path)
    files.look_at_file(path)
    content = files.read_bytes(path)
    header, rows, lines = _parse_csv(path.name, _unpacked(path.name, content))
    bad = [
        ("csv_format", f"{path.name} line {line}", f"has {len(row)} fields, the header has {len(header)}")
        for row, line in zip(rows, lines, strict=True)
        if len(row) != len(header)
    ]
    stop_on(bad, "Correct these lines; a separator inside a value needs double quotes around the value")
    missing = [
        ("csv_format", f"{path.name} column {name}", f"is missing; {nearest(name, header)}")
        for name in needed
        if name not in header
    ]
    stop_on(missing, "Rename the column or add it")
    return pd.DataFrame(rows, columns=header, index=pd.Index(lines, name="line"), dtype=str)


def _unpacked(name: str, content: bytes) -> bytes:
    """The bytes of a table, whether it is packed or not."""
    opened = next((unpack for magic, unpack in PACKED.items() if content.startswith(magic)), None)
    if opened is None:
        return content
    try:
        with opened(io.BytesIO(content)) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise PathoError("csv_format", name, f"cannot be unpacked ({error})", "Download or pack it again") from error
    if len(content) > MOST_BYTES:
        raise PathoError("too_many_bytes", name, "is a table of more than 1 GiB", "Divide it")
    return content


def _parse_csv(name: str, content: bytes) -> tuple[list[str], list[list[str]], list[int]]:
    def refuse(where: str, reason: str, remedy: str):
        raise PathoError("csv_format", f"{name}{where}", reason, remedy)

    if content[:4] == b"PK\x03\x04":
        refuse("", "is a spreadsheet or a ZIP archive", "Save the sheet as CSV UTF-8, or unpack the archive")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        refuse("", "is UTF-16", "Save it as CSV UTF-8")
    if b"\0" in content:
        refuse(f" line {content[: content.index(0)].count(10) + 1}", "holds a NUL byte", "Write the file again")
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a byte order mark first; it is no part of a column name
    except UnicodeDecodeError as error:
        refuse(
            f" line {content[: error.start].count(10) + 1}",
            f"is not UTF-8 (byte 0x{content[error.start]:02x}; perhaps cp1252)",
            "Save it as CSV UTF-8",
        )
    rows, lines = [], []
    head = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=head.count), strict=True)
    try:
        for row in reader:
            if row:  # a blank line is no row
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        refuse(f" line {reader.line_num}", f"is not CSV ({error})", "Check the double quotes")
    if not rows:
        refuse("", "is empty", "Write a header line and one line per image")
    header = rows[0]
    for column, count in Counter(header).items():
        if count > 1 or not column.strip():
            refuse(
                f" column {column!r}",
                "is in the header twice" if count > 1 else "has no name",
                "Give every column a name of its own",
            )
    return header, rows[1:], lines[1:]
