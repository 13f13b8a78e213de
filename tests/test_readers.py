"""Every format gives the same records; every bad input gives one line that names parameter, file, row and reason."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from unlearn_pl.data.readers import keep, parse_hub_source, read_documents, read_records
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError

ROWS = [
    {"id": '"8f24-11"sc1', "input": 'Anna, who said "no",\nwent', "output": "home\u2028again.", "task": "Task1"},
    {"id": '"8f24-11"qa0', "input": "Who went?", "output": "Анна", "task": "Task1"},
    {"id": "12qa1", "input": "Her number?", "output": "900514344", "task": "Task2"},
    {"id": "12qa2", "input": "And his?", "output": "nan", "task": "Task2"},
    {"id": "12qa3", "input": "Hers again?", "output": "007", "task": "Task2"},
]
RECORDS = [Record(**row, kind="sc" if row["id"].endswith("sc1") else "qa") for row in ROWS]
NAME = "forget"


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def column_json(rows: list[dict]) -> str:
    return json.dumps({name: {str(place): row[name] for place, row in enumerate(rows)} for name in rows[0]})


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_text(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))


FORMATS = {
    "lines.jsonl": lambda path, rows: write_text(path, json_lines(rows)),
    "no_last_newline.jsonl": lambda path, rows: write_text(path, json_lines(rows).rstrip()),
    "windows.jsonl": lambda path, rows: write_text(path, json_lines(rows).replace("\n", "\r\n")),
    "mark.jsonl": lambda path, rows: write_text(path, b"\xef\xbb\xbf" + json_lines(rows).encode()),
    "blank_end.jsonl": lambda path, rows: write_text(path, json_lines(rows) + "\n \n"),
    "columns.json": lambda path, rows: write_text(path, column_json(rows)),
    "list.json": lambda path, rows: write_text(path, json.dumps(rows, indent=1)),
    "lines.json": lambda path, rows: write_text(path, json_lines(rows)),
    "table.csv": write_csv,
    "table.parquet": write_parquet,
    "UPPER.JSONL": lambda path, rows: write_text(path, json_lines(rows)),
    "saved": lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(str(path)),
    "one_split": lambda path, rows: datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(
        str(path)
    ),
}


@pytest.fixture(autouse=True)
def quiet_datasets(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def refusal(path: Path | str, rows: list[dict] | None = None, **options) -> str:
    """What is said of a file, without the parameter and the path that must come first."""
    with pytest.raises(InputError) as caught:
        read_records(str(path), name=NAME, **options)
    message = str(caught.value)
    assert message.startswith(f"{NAME}: {path}"), message
    assert "\n" not in message
    return message.removeprefix(f"{NAME}: {path}").lstrip(":, ")


@pytest.fixture
def write(tmp_path):
    """Write a file by content (text or bytes) and give its path."""

    def write_file(name: str, content: str | bytes) -> Path:
        write_text(tmp_path / name, content)
        return tmp_path / name

    return write_file


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(tmp_path, name):
    FORMATS[name](tmp_path / name, ROWS)
    assert read_records(str(tmp_path / name)) == RECORDS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_which_two_rows_share_an_id(tmp_path, name):
    FORMATS[name](tmp_path / name, [*ROWS, ROWS[2] | {"input": "Another"}])
    unit = "line" if "lines" in name or name.lower().endswith(".jsonl") else "row"
    assert refusal(tmp_path / name) == f"{unit} 6: id '12qa1' is that of {unit} 3 already; ids must differ"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_the_row_of_an_empty_answer(tmp_path, name):
    FORMATS[name](tmp_path / name, [ROWS[0], ROWS[1] | {"output": " "}])
    assert refusal(tmp_path / name).endswith(" 2: field 'output' is empty")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_a_missing_field(tmp_path, name):
    FORMATS[name](tmp_path / name, [{key: row[key] for key in ("id", "input", "task")} for row in ROWS])
    assert refusal(tmp_path / name).endswith(
        " 1: field 'output' is missing; a row needs id, input, output; it has id, input, task"
    )


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "table.csv"])
def test_every_typed_format_names_a_value_that_is_not_text(tmp_path, name):
    FORMATS[name](tmp_path / name, [ROWS[2] | {"output": 900514344}])
    assert refusal(tmp_path / name).endswith(" 1: field 'output' must be text, got int 900514344")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_another_naming(tmp_path, name):
    theirs = [{"question": row["input"], "answer": row["output"], "extra": "x"} for row in ROWS]
    FORMATS[name](tmp_path / name, theirs)
    columns = {"id": "#", "input": "question", "output": "answer", "task": "=Task9", "kind": "=qa"}
    source = str(tmp_path / name)
    assert read_records(source, columns) == [
        Record(f"{source}#{place}", row["input"], row["output"], "Task9", "qa") for place, row in enumerate(ROWS, 1)
    ]
    assert refusal(source, columns=columns | {"task": "topic"}).endswith(
        " 1: column 'topic' (columns.task) is missing; it has question, answer, extra"
    )


def test_a_column_of_that_very_name_comes_before_the_shorthand(write):
    path = write("a.jsonl", json_lines([ROWS[2] | {"#": "5qa0", "=x": "Task5"}]))
    (record,) = read_records(str(path), {"id": "#", "task": "=x"})
    assert (record.id, record.task) == ("5qa0", "Task5")


def test_a_mapping_to_no_field_of_ours(write):
    with pytest.raises(
        InputError, match=r"^columns: a key must be one of id, .*, kind, alternate, answer_weights, got 'question'"
    ):
        read_records(str(write("a.jsonl", json_lines(ROWS))), {"question": "input"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty; it must hold at least one row"),
        ("a.jsonl", "\n\n", "is empty; it must hold at least one row"),
        ("a.json", " ", "is empty; it must hold at least one row"),
        ("a.json", "[]", "is empty; it must hold at least one row"),
        ("a.json", "{}", "is empty; it must hold at least one row"),
        ("a.csv", "", "is empty; it must hold at least one row"),
        ("a.csv", "id,input,output,task\r\n", "is empty; it must hold at least one row"),
        ("a.parquet", b"", "is empty; it must hold at least one row"),
        ("a.jsonl", json_lines(ROWS) + "{", "line 6: not valid JSON: Expecting property name"),
        ("a.jsonl", json_lines(ROWS[:1]) + "\n" + json_lines(ROWS[1:]), "line 2: not valid JSON: Expecting value"),
        ("a.jsonl", "[1]\n", "line 1: a line must be one JSON object, got a list"),
        (
            "a.jsonl",
            '{"id": "1qa0", "input": "a", "output": "b", "output": "c", "task": "T"}',
            "line 1: not valid JSON: key 'output' stands twice in one object",
        ),
        ("a.json", '[{"id": "1qa0", "id": "2qa0"}]', "not valid JSON: key 'id' stands twice in one object"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON: "),
        ("a.json", json_lines(ROWS) + "{", "line 6: not valid JSON: Expecting property name"),
        ("a.json", '{"id": {"0": "1qa0"', "not valid JSON: Expecting ',' delimiter (column 20)"),
        ("a.json", "[\n1,\n]", "not valid JSON: "),
        ("a.json", "[" * 100_000, "not valid JSON: "),
        ("a.json", '["a"]', "row 1: must be an object with the row's fields, got a string"),
        ("a.json", '"text"', "a .json file must hold {column: {row: value}}, a list of row objects, or one object"),
        ("a.json", '{"id": ["1qa0"]}', "a .json file must hold {column: {row: value}}"),
        ("a.json", '{"id": {"0": "a", "1": "b"}, "input": {"0": "a"}}', "column 'input' and column 'id' differ in row"),
        ("a.csv", "id,id\n", "header: must name each column once, got id, id"),
        ("a.csv", "\nid,input\n", "header: must name each column once, got a blank line"),
        ("a.csv", "id,input,output,task\n1qa0,a,b\n", "row 1: has 3 cells, the header has 4"),
        ("a.csv", "id,input,output,task\n1qa0,a,b,T,x\n", "row 1: has 5 cells, the header has 4"),
        ("a.csv", "id,input,output,task\n1qa0,a,b,T\n\n2qa0,a,b,T\n", "row 2: has 0 cells, the header has 4"),
        ("a.csv", 'id,input,output,task\n1qa0,"a,b,T\n2qa0,a,b,T\n', "line 3: not valid CSV: unexpected end of data"),
        ("a.parquet", b"PAR1 but no more", "not a valid Parquet file: "),
    ],
)
def test_bad_files(write, name, content, message):
    assert refusal(write(name, content)).startswith(message)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_bytes_that_are_not_utf8(write, name, mark):
    path = write(name, mark + b"first line\nsecond \xe9 line\n")
    assert refusal(path) == "line 2: not valid UTF-8 (byte 0xe9)"


def test_bytes_in_parquet_that_are_not_utf8(tmp_path):
    columns = {name: pyarrow.array([row[name] for row in ROWS[2:4]]) for name in ROWS[0]}
    raw = pyarrow.array([b"fine", b"\xe9"], type=pyarrow.binary())
    columns["output"] = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith("row 2: not valid UTF-8")


@pytest.mark.parametrize("column_type", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_parquet_text_in_other_layouts(tmp_path, column_type):
    columns = {name: pyarrow.array([row[name] for row in ROWS]).cast(column_type) for name in ROWS[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert read_records(str(tmp_path / "a.parquet")) == RECORDS


def test_a_cell_of_a_csv_file_is_text_or_empty(write):
    path = write("a.csv", "id,input,output,task\n1qa0,a,,T\n")
    assert refusal(path) == "row 1: field 'output' is empty"


def test_a_single_row_object_in_a_json_file(write):
    assert read_records(str(write("a.json", json.dumps(ROWS[2])))) == [RECORDS[2]]


def test_missing_files_and_unknown_endings(tmp_path, write):
    assert refusal(tmp_path / "absent.jsonl").startswith("does not exist; give a file")
    assert refusal(write("a.txt", "x")) == (
        "the ending must be one of .jsonl, .json, .csv, .parquet, a folder saved by datasets, or "
        "hf:OWNER/NAME[/CONFIG][:SPLIT], got '.txt'"
    )
    assert refusal(tmp_path).startswith("is a folder that datasets did not save")
    assert refusal(tmp_path / "name").endswith("got 'none'")


def test_a_home_folder_is_expanded(write, monkeypatch):
    path = write("a.jsonl", json_lines(ROWS))
    monkeypatch.setenv("HOME", str(path.parent))
    assert read_records("~/a.jsonl") == RECORDS


def test_folders_with_several_splits(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"a": data, "b": data.select([2])}).save_to_disk(str(tmp_path / "saved"))
    folder = tmp_path / "saved"
    assert refusal(folder) == f"has 2 splits; give one of {folder}/a, {folder}/b"
    assert read_records(f"{folder}/b") == [RECORDS[2]]
    (folder / "b" / "state.json").write_text("{")
    assert refusal(folder / "b").startswith("cannot be loaded by datasets: ")


def test_hub_sources(tmp_path):
    """A folder of files stands for the hub: the same loader, without the network."""
    for split, rows in {"train": ROWS, "test": ROWS[2:3]}.items():
        write_text(tmp_path / f"{split}.jsonl", json_lines(rows))
    source = f"hf:{tmp_path}"
    assert read_records(f"{source}:train") == RECORDS
    assert read_records(f"{source}:test") == [RECORDS[2]]
    assert refusal(source) == f"has 2 splits; give one of {source}:train, {source}:test"
    assert refusal(f"{source}:dev").startswith("cannot be loaded by datasets: ")


@pytest.mark.filterwarnings("ignore:.*Using the latest cached version.*")
def test_a_hub_name_that_cannot_be_reached():
    assert refusal("hf:nobody/nothing").startswith("cannot be loaded by datasets: ")


def test_hub_names():
    assert parse_hub_source("hf:owner/name") == ("owner/name", None, None)
    assert parse_hub_source("hf:name:train") == ("name", None, "train")
    assert parse_hub_source("hf:owner/name/config:train") == ("owner/name", "config", "train")
    assert parse_hub_source("hf:/a/b/c/d:train") == ("/a/b/c/d", None, "train")
    for wrong in ("hf:", "hf::train", "hf:owner/", "hf:owner//name"):
        with pytest.raises(InputError, match=r"must look like hf:OWNER/NAME"):
            parse_hub_source(wrong)


def test_rows_in_memory() -> None:
    """Records, mappings and a datasets.Dataset give what a file of them gives; the parameter stands for the path."""
    data = datasets.Dataset.from_list([row | {"kind": None} for row in ROWS])
    for rows in (RECORDS, ROWS, tuple(ROWS), [RECORDS[0], *ROWS[1:]], data, keep(iter(ROWS), NAME)):
        assert read_records(rows) == RECORDS
    theirs = [{"question": "Who?", "answer": "Ann"}, {"question": "Where?", "answer": "Here"}]
    columns = {"id": "#", "input": "question", "output": "answer", "task": "=T"}
    numbered = read_records(theirs, columns, "forget")
    assert numbered == [Record("forget#1", "Who?", "Ann", "T"), Record("forget#2", "Where?", "Here", "T")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty; it must hold at least one row"),
        ([ROWS[2], ROWS[3], ROWS[2]], "row 3: id '12qa1' is that of row 1 already; ids must differ"),
        ([Record("1", "", "b")], "row 1: field 'input' is empty"),
        ([Record("1", "a", 3)], "row 1: field 'output' must be text, got int 3"),
        ([{"input": "a"}], "row 1: field 'id' is missing; a row needs id, input, output; it has input"),
        (["Who?"], "row 1: must be a Record or a mapping of its fields, got str"),
    ],
)
def test_rows_in_memory_are_checked_as_those_of_a_file(rows, message) -> None:
    with pytest.raises(InputError) as caught:
        read_records(rows, name="retain")
    assert str(caught.value).removeprefix("retain: ").removeprefix("retain ") == message


# One row, columns by name (as `datasets.DatasetDict` has splits by name), nothing, and what iterates over its columns.
NO_SOURCES = (RECORDS[0], {"id": ["1"]}, None, type("DataFrame", (list,), {"iloc": ()})(["id", "input"]))


@pytest.mark.parametrize("source", NO_SOURCES, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("read", [keep, lambda source, name: read_records(source, name=name)], ids=["keep", "read"])
def test_what_is_no_source(read, source) -> None:
    kind = type(source).__name__
    with pytest.raises(InputError, match=rf"^forget: must be a path, hf:OWNER/NAME or rows \(.*\), got {kind}$"):
        read(source, "forget")


@pytest.mark.parametrize("name", FORMATS)
def test_documents_of_every_format(tmp_path, name):
    rows = [{"document": 'One, "two"\nthree\u2028four', "other": "x"}, {"document": "nan", "other": "y"}]
    FORMATS[name](tmp_path / name, rows)
    assert read_documents(str(tmp_path / name), "member") == [row["document"] for row in rows]


def test_bad_documents(write):
    path = write("m.jsonl", '{"document": "a"}\n{"text": "b"}\n')
    with pytest.raises(InputError) as caught:
        read_documents(str(path), "member")
    assert str(caught.value) == (
        f"member: {path}, line 2: field 'document' is missing; a row needs document; it has text"
    )
    with pytest.raises(InputError, match=r"^member: .* is empty; it must hold at least one document"):
        read_documents(str(write("e.jsonl", "")), "member")


def test_importing_the_readers_is_cheap():
    """Nobody who asks for --help should wait for datasets, pandas, pyarrow or torch."""
    heavy = "{'datasets', 'pandas', 'pyarrow', 'torch', 'transformers'}"
    code = f"import sys, unlearn_pl.data.readers; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
