"""Parts: the files of one run folder as they are read; what cannot be read is noted with the reason."""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from unlearn_pl.errors import one_line
from unlearn_pl.report.run import Missing
from unlearn_pl.report.shape import misfit

ABSENT = "no such file"


class Parts:
    """Reads files below ``root``; ``missing`` grows by each that is not there or not what a run writes."""

    def __init__(self, root: Path):
        self.root, self.missing = root, list[Missing]()

    def note(self, part: str, path: Path, reason: str) -> None:
        """Say that ``part`` cannot be shown."""
        self.missing.append(Missing(part=part, path=path.relative_to(self.root).as_posix(), reason=reason))

    def json(self, part: str, path: Path, shape: Any, absent: str = ABSENT) -> Any:
        """The content of a JSON file of ``shape``; None if it does not count."""
        return self._parsed(part, path, strict, shape, absent)

    def yaml(self, part: str, path: Path) -> Any:
        """The content of a YAML file that holds a mapping; None if it does not count."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return self._parsed(part, path, lambda text: yaml.load(text, loader), dict, ABSENT)  # a safe one  # nosec B506

    def lines(self, part: str, path: Path, shape: Any) -> list[Mapping[str, Any]]:
        """The rows of a file with one JSON object a line, those alone that are whole and of ``shape``."""
        if (text := self._text(part, path, ABSENT)) is None:
            return []
        rows, bad = [], []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = strict(line)
                reason = misfit(row, shape)
            except (ValueError, RecursionError) as error:
                row, reason = None, f"not JSON: {one_line(error)}"
            if reason is None:
                rows.append(row)
            else:
                bad.append(f"line {number}: {reason}")
        self._note_rows(part, path, len(rows), bad)
        return rows

    def columns(self, part: str, path: Path) -> dict[str, list[tuple[int, float]]]:
        """Column of a metrics file -> points (step, value); cells without a finite number are no points."""
        if (text := self._text(part, path, ABSENT)) is None:
            return {}
        reader = csv.DictReader(text.splitlines())
        if "step" not in (reader.fieldnames or ()):
            self.note(part, path, "no column step: not the metrics of a run")
            return {}
        found: dict[str, list[tuple[int, float]]] = {
            name: [] for name in reader.fieldnames or () if name not in ("epoch", "step")
        }
        bad: list[str] = []
        whole = 0
        for row in _rows(reader, bad):
            whole += 1
            for name, points in found.items():
                value = _number(row[name])
                if value is not None and math.isfinite(value):
                    points.append((int(row["step"]), value))
                elif row[name]:
                    bad.append(f"step {row['step']}: {name} is {row[name]:.20}")
        self._note_rows(part, path, whole, bad)
        return {name: points for name, points in found.items() if points}

    def _parsed(self, part: str, path: Path, parse: Any, shape: Any, absent: str) -> Any:
        if (text := self._text(part, path, absent)) is None:
            return None
        try:
            value = parse(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            self.note(part, path, f"not {path.suffix[1:].upper()}: {one_line(error)}")
            return None
        if reason := misfit(value, shape):
            self.note(part, path, f"not what a run writes: {reason}")
            return None
        return value

    def _text(self, part: str, path: Path, absent: str) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self.note(part, path, absent)
        except UnicodeDecodeError as error:
            self.note(part, path, f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}")
        except OSError as error:
            self.note(part, path, error.strerror or type(error).__name__)
        return None

    def _note_rows(self, part: str, path: Path, whole: int, bad: list[str]) -> None:
        if bad:
            more = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
            self.note(f"some of {part}", path, f"{bad[0]}{more}; the other {whole} rows are shown")


HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""What is half a character where the other half is not beside it."""


def strict(text: str) -> Any:
    """JSON without NaN and infinities, which Python's own reader takes though JSON has no such numbers; halves of
    characters, which no file can hold, become question marks in a diamond."""
    value = json.loads(text, parse_constant=_refuse)
    return whole(value) if HALF.search(text) else value


def whole(value: Any) -> Any:
    """``value`` with no half of a character in any of its strings."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole(one) for one in value]
    return {whole(key): whole(one) for key, one in value.items()} if isinstance(value, dict) else value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _rows(reader: "csv.DictReader[str]", bad: list[str]) -> Iterator[dict[str, str]]:
    """The rows that have every column; a kill may have cut the last one."""
    try:
        for row in reader:
            if None in row or None in row.values() or not row["step"].isdecimal():
                bad.append(f"line {reader.line_num}: not a whole row")
            else:
                yield row
    except csv.Error as error:
        bad.append(f"line {reader.line_num}: {one_line(error)}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
