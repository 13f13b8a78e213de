"""Files, `datasets` sources and rows in memory as records; whatever is wrong with one is said in one line.

Every format yields ``(place, row)`` pairs, ``place`` being ``rows.jsonl, line 3`` or ``row 3`` counted from one, and
goes through the same checks afterwards. No reader skips a row, so the n-th record comes from the n-th row.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearn_pl.data.records import FIELDS, NEEDED, Record, record_from_row, some_of, text_field
from unlearn_pl.errors import InputError, json_kind, one_line

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
Source = str | Path | Iterable[Record | Mapping[str, Any]]


def read_records(source: Source, columns: Mapping[str, str] | None = None, name: str = "source") -> list[Record]:
    """Read the rows of one set.

    Args:
        source: A .jsonl, .json, .csv or .parquet file, a folder that ``datasets`` saved,
            ``hf:OWNER/NAME[/CONFIG][:SPLIT]`` for anything that ``datasets.load_dataset`` takes, or rows in memory:
            records, mappings, or a ``datasets.Dataset``.
        columns: Our field -> their column (``{"input": "question", "output": "answer"}``). Where no such column
            exists, ``=TEXT`` gives every row that text and ``#`` gives each the source with the row's number:
            ``{"task": "=Task1", "id": "#"}``.
        name: What the caller calls ``source``; it opens every message.

    Raises InputError on whatever cannot be used, naming the file and the row.
    """
    check_columns(columns)
    called = str(source) if isinstance(source, (str, Path)) else name
    records: list[Record] = []
    first_place: dict[str, str] = {}
    with blaming(name):
        for number, (place, row) in enumerate(rows_of(source), start=1):
            # The source is a part, so that a forget and a retain set numbered in this way share no id.
            row = renamed(row, columns or {}, place, row_id=f"{called}#{number}")
            record = record_from_row(row, place)
            if record.id in first_place:
                other = first_place[record.id]
                raise InputError(f"{place}: id {record.id!r} is that of {other} already; ids must differ")
            first_place[record.id] = place.rpartition(", ")[2]
            records.append(record)
        if not records:
            raise InputError(f"{called} is empty; it must hold at least one row")
    return records


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Give an InputError from inside, which tells the place, the ``name`` of the parameter if it bears none yet."""
    try:
        yield
    except InputError as error:
        raise InputError(error.reason, error.name or name) from error


def keep(source: Source, name: str) -> str | Path | list[Record | Mapping[str, Any]]:
    """A source that can be read more than once: rows in memory become a list. Raises InputError on what is none."""
    return source if isinstance(source, (str, Path)) else list(checked_rows(source, name))


def checked_rows(source: Any, name: str | None = None) -> Iterable[Any]:
    """``source`` if it gives rows: a single row, columns or splits by name, and a pandas frame (columns) do not."""
    if isinstance(source, (Record, Mapping)) or not isinstance(source, Iterable) or hasattr(source, "iloc"):
        allowed = "a path, hf:OWNER/NAME or rows (of a frame: frame.to_dict('records'))"
        raise InputError(f"must be {allowed}, got {type(source).__name__}", name)
    return source


def read_documents(source: str | Path, name: str = "source") -> list[str]:
    """Read whole documents (the members or non-members of a membership attack): the field ``document`` of each row.

    Takes the files and folders of ``read_records``. Raises InputError on whatever cannot be used, naming file and row;
    ``name`` is what the caller calls ``source``.
    """
    with blaming(name):
        documents = [text_field(row, "document", place, ("document",)) for place, row in rows_of(source)]
        if not documents:
            raise InputError(f"{source} is empty; it must hold at least one document")
    return documents


def check_columns(columns: Mapping[str, str] | None) -> None:
    """Raise InputError if the mapping names a field that records do not have."""
    for field in columns or {}:
        if field not in FIELDS:
            raise InputError(f"a key must be one of {', '.join(FIELDS)}, got {field!r}", "columns")


def renamed(row: Row, columns: Mapping[str, str], where: str, row_id: str) -> Row:
    """The row under our field names by the mapping of ``read_records``; ``row_id`` is what ``#`` stands for."""
    answer = dict(row)
    for field, column in columns.items():
        if column in row:
            answer[field] = row[column]
        elif column.startswith("="):
            answer[field] = column[1:]
        elif column == "#":
            answer[field] = row_id
        else:
            raise InputError(f"{where}: column {column!r} (columns.{field}) is missing; it has {some_of(row)}")
    return answer


def rows_of(source: Source) -> Rows:
    """Pick the reader: by type, by ``hf:``, by folder, or by the file's ending."""
    if not isinstance(source, (str, Path)):
        return memory_rows(source)
    if str(source).startswith("hf:"):
        return hub_rows(str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_rows(path)
    if path.suffix.lower() not in READERS:
        allowed = f"{', '.join(READERS)}, a folder saved by datasets, or hf:OWNER/NAME[/CONFIG][:SPLIT]"
        raise InputError(f"{source}: the ending must be one of {allowed}, got {path.suffix or 'none'!r}")
    if not path.is_file():
        raise InputError(f"{source} does not exist; give a file, a folder saved by datasets, or hf:OWNER/NAME")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    return READERS[path.suffix.lower()](content, str(source))


def memory_rows(rows: Iterable[Record | Mapping[str, Any]]) -> Rows:
    """Records and mappings."""
    for number, row in enumerate(checked_rows(rows), start=1):
        if isinstance(row, Record):
            row = {field: value for field, value in vars(row).items() if field in NEEDED or value}
        if not isinstance(row, Mapping):
            raise InputError(f"row {number}: must be a Record or a mapping of its fields, got {type(row).__name__}")
        yield f"row {number}", dict(row)


def json_line_rows(content: bytes, where: str) -> Rows:
    """One JSON object a line. Blank lines are allowed at the end only."""
    # str.splitlines would also split at U+2028 and the like, which JSON allows inside of strings.
    for number, line in enumerate(decoded(content, where).rstrip().split("\n"), start=1):
        if line.strip() or number > 1:
            yield f"{where}, line {number}", json_object(line, f"{where}, line {number}")


def json_object(line: str, where: str) -> Row:
    """One JSON object from its text."""
    value = parsed(line, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a line must be one JSON object, got {json_kind(value)}")
    return value


def json_rows(content: bytes, where: str) -> Rows:
    """A .json file: ``{column: {row: value}}`` as pandas writes it, a list of row objects, or JSON lines."""
    text = decoded(content, where)
    if not text.strip():
        return iter(())
    first_line = text.strip().split("\n", 1)[0]
    try:
        value = json.loads(text, object_pairs_hook=different_keys)
    except (ValueError, RecursionError):
        if is_json_object(first_line):
            return json_line_rows(content, where)
        value = parsed(text, where)
    if isinstance(value, list):
        return list_rows(value, where)
    if isinstance(value, dict) and all(isinstance(column, dict) for column in value.values()):
        return column_rows(value, where)
    if isinstance(value, dict) and not any(isinstance(column, dict | list) for column in value.values()):
        return iter([(f"{where}, row 1", value)])
    expected = "{column: {row: value}}, a list of row objects, or one object a line"
    got = "another object" if isinstance(value, dict) else json_kind(value)
    raise InputError(f"{where}: a .json file must hold {expected}, got {got}")


def is_json_object(line: str) -> bool:
    """Whether the line alone is a JSON object."""
    try:
        return isinstance(json.loads(line, object_pairs_hook=different_keys), dict)
    except (ValueError, RecursionError):
        return False


def list_rows(values: list[Any], where: str) -> Rows:
    """A list of row objects."""
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise InputError(f"{where}, row {number}: must be an object with the row's fields, got {json_kind(value)}")
        yield f"{where}, row {number}", value


def column_rows(columns: dict[str, dict[str, Any]], where: str) -> Rows:
    """``{column: {row: value}}``, every column with the same row keys."""
    keys = list(next(iter(columns.values()), {}))
    for name, cells in columns.items():
        if odd := cells.keys() ^ set(keys):
            raise InputError(
                f"{where}: column {name!r} and column {next(iter(columns))!r} differ in row key {min(odd)!r}"
            )
    for number, key in enumerate(keys, start=1):
        yield f"{where}, row {number}", {name: cells[key] for name, cells in columns.items()}


def csv_rows(content: bytes, where: str) -> Rows:
    """Comma-separated values with a header line. Every cell stays the text it is: no numbers, no missing values."""
    lines = csv_lines(decoded(content, where), where)
    while lines and not lines[-1]:
        lines.pop()
    header = checked_header(lines[0], where) if lines else []
    for number, cells in enumerate(lines[1:], start=1):
        if len(cells) != len(header):
            raise InputError(f"{where}, row {number}: has {len(cells)} cells, the header has {len(header)}")
        yield f"{where}, row {number}", dict(zip(header, cells, strict=True))


def csv_lines(text: str, where: str) -> list[list[str]]:
    """The cells of every line, the header first."""
    # strict: a quote that never closes would otherwise swallow the rest of the file as one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: not valid CSV: {error}") from error


def checked_header(cells: list[str], where: str) -> list[str]:
    """The header of a CSV file, whose names must differ."""
    if not cells or len(set(cells)) < len(cells):
        raise InputError(f"{where}, header: must name each column once, got {', '.join(cells) or 'a blank line'}")
    return cells


def parquet_rows(content: bytes, where: str) -> Rows:
    """A Parquet file; a column that holds something else than text fails at its first row, as a field of that type."""
    import pyarrow
    import pyarrow.parquet

    if not content:
        return
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{where}: not a valid Parquet file: {one_line(error)}") from error
    for number in range(table.num_rows):
        try:
            row = {name: table.column(place)[number].as_py() for place, name in enumerate(table.column_names)}
        except UnicodeDecodeError as error:
            raise InputError(f"{where}, row {number + 1}: not valid UTF-8: {error.reason}") from error
        yield f"{where}, row {number + 1}", row


def hub_rows(source: str) -> Rows:
    """What ``datasets.load_dataset`` gives for ``hf:NAME[/CONFIG][:SPLIT]``."""
    import datasets

    name, config, split = parse_hub_source(source)
    try:
        data = datasets.load_dataset(name, config, split=split)  # nosec B615
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{source} cannot be loaded by datasets: {one_line(error)}") from error
    return numbered(only_split(data, source, f"{source}:"), source)


def parse_hub_source(source: str) -> tuple[str, str | None, str | None]:
    """``hf:OWNER/NAME/CONFIG:SPLIT`` as (name, config, split); a name that starts with . or / is a folder of files."""
    name, _, split = source.removeprefix("hf:").partition(":")
    if name.startswith((".", "/", "~")):
        return str(Path(name).expanduser()), None, split or None
    parts = name.split("/")
    if not all(parts):
        raise InputError(f"must look like hf:OWNER/NAME[/CONFIG][:SPLIT], got {source!r}")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None, split or None


def folder_rows(path: Path) -> Rows:
    """A folder written by ``Dataset.save_to_disk``."""
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise InputError(f"{path} is a folder that datasets did not save; give a file in it, or hf:{path}")
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded by datasets: {one_line(error)}") from error
    return numbered(only_split(data, str(path), f"{path}/"), str(path))


def only_split(data: Any, where: str, prefix: str) -> Iterable[Row]:
    """The data itself, or the one split of a dictionary of splits; ``prefix`` and a split's name select that split."""
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise InputError(
            f"{where} has {len(data)} splits; give one of {', '.join(prefix + str(name) for name in data)}"
        )
    return next(iter(data.values()))


def numbered(rows: Iterable[Row], where: str) -> Rows:
    """Rows with their places."""
    for number, row in enumerate(rows, start=1):
        yield f"{where}, row {number}", row


def decoded(content: bytes, where: str) -> str:
    """Bytes as text, without the byte order mark that some editors write first."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object lacks the mark, as do its positions.
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{where}, line {line}: not valid UTF-8 (byte {error.object[error.start]:#04x})") from None


def parsed(text: str, where: str) -> Any:
    """The JSON value of a text."""
    try:
        return json.loads(text, object_pairs_hook=different_keys)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise InputError(f"{where}: not valid JSON: {error.msg} ({place})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {one_line(error)}") from error


def different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises ValueError if a key stands twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


READERS: dict[str, Callable[[bytes, str], Rows]] = {
    ".jsonl": json_line_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
