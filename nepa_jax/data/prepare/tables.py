"""Tables in text files, as spreadsheets, pandas and scripts write them."""

import codecs
import csv
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.left_out import LeftOut

DELIMITERS = ("\t", ",", ";", "|", " ")
SAMPLE = 100  # lines, by which the delimiter is found
MAX_CELL = 1 << 20  # characters

ODD_ROWS = "lines of the label file with another number of columns"

BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as that of UTF-16 does
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_table(path: Path, left_out: LeftOut) -> list[Sequence[str]]:
    """The rows of a text file, each with as many cells as most have.

    Cells are between commas, tabs, semicolons, bars or spaces, in quotes or not; lines end as
    they do on any system; the text is UTF-8, or UTF-16 with its mark. `left_out` is told the
    lines with more or less cells.

    Raises UserError if the file is no such text, or empty.
    """
    text = _read_text(path)
    try:
        rows = _rows(text, _delimiter(text))
    except csv.Error as error:
        raise UserError(
            f"--labels={path} is no table ({error}): save it as CSV in UTF-8"
        ) from error
    if not rows:
        raise UserError(f"--labels={path} is empty: write `FILE_NAME CLASS` in each line")
    width = Counter(map(len, rows)).most_common(1)[0][0]
    for row in rows:
        if len(row) != width:
            left_out.add(ODD_ROWS, " ".join(row))
    return [row for row in rows if len(row) == width]


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    coding = next((BOMS[mark] for mark in BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeError as error:
        raise UserError(
            f"--labels={path} is no text in UTF-8 (byte {getattr(error, 'start', 0):,}): "
            "save it as CSV in UTF-8"
        ) from error
    if "\0" in text or text.lstrip().startswith(("{", "[{", "<")):
        raise UserError(f"--labels={path} is no table in text: save it as CSV in UTF-8")
    return text


def _delimiter(text: str) -> str:
    """What parts the first lines into the same number of cells, of at least two."""
    lines = [line for line in text.splitlines()[: 2 * SAMPLE] if line.strip()][:SAMPLE]

    def agreeing(delimiter: str) -> int:
        widths = Counter(len(row) for row in _rows("\n".join(lines), delimiter))
        return max((count for width, count in widths.items() if width > 1), default=0)

    return max(DELIMITERS, key=agreeing)  # the first of the best


def _rows(text: str, delimiter: str) -> list[Sequence[str]]:
    if delimiter == " ":  # any blanks, also at the ends
        text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    cells = ([cell.strip() for cell in row] for row in rows)
    before = csv.field_size_limit(MAX_CELL)  # the whole process's
    try:
        return [row for row in cells if any(row)]
    finally:
        csv.field_size_limit(before)
