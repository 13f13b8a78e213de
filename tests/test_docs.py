"""Every command that README and docs show is one that the command line takes, and README's Python block runs."""

import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from unlearn_pl.__main__ import LIGHTNING, VERBS
from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.data.readers import read_records
from unlearn_pl.models.tiny import TinyModel, build_tiny
from unlearn_pl.parsing import completed, function_parser, gathered, join_lists, list_arguments, switches

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:unlearn-pl|lightning|python -m (?:unlearn_pl|benchmarks\.\w+)) [^;`#|]*")
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")


class Parsed(UnlearnCLI):
    """Parses a command line of Lightning's verbs; builds and runs nothing."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def commands(page: Path) -> list[str]:
    """The commands in the indented blocks of a page, each on one line, shell variables filled in."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    text = re.sub(r"\[(--[^\]]*)\]", r"\1", text).replace(" ...", "=[collapse]")  # optional ones are given
    blocks = [line for line in text.splitlines() if line.startswith("    ")]
    found = [command for line in blocks for command in COMMAND.findall(line.split("  #")[0])]
    return [re.sub(r"\$\w+", "0", command).strip() for command in found if "--help" not in command]


SHOWN = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) >= 20
    assert {"README.md", "evaluation.md", "merging.md", "performance.md"} <= {page for page, _ in SHOWN}


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_command_is_taken(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "my_file.py").write_text(
        "from unlearn_pl import Lume\nclass MyBenchmark(Lume):\n    def __init__(self): super().__init__([], [])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    program, *args = words
    if program.startswith("benchmarks."):
        verb = program.removeprefix("benchmarks.")
        function = getattr(import_module(program), verb)
    else:
        verb, *args = args
        place = VERBS[verb][1]
        if args == ["--list"]:
            return
        if place == LIGHTNING:
            Parsed([verb, *args])
            return
        module, _, name = place.partition(":")
        function = getattr(import_module(f"unlearn_pl.{module}"), name)
    parser = function_parser(function, verb)
    if positional := getattr(import_module(function.__module__), "POSITIONAL", None):
        args = gathered(args, positional, switches(parser))
    elif args and not args[0].startswith("-"):
        args = ["--config", *args]
    parser.parse_args(completed(join_lists(args, list_arguments(function)), switches(parser)))


def test_make_has_the_targets_that_are_shown() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = {
        name for page in PAGES for name in re.findall(r"(?:^    |`)make (\w+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "check", "bench"} <= shown
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in shown)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.filterwarnings(
    "ignore:.*tensorboardX", "ignore:The number of training batches", "ignore:.*logging interval"
)
def test_the_python_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names that it takes for granted: a model and its tokenizer."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"From Python[^\n]*\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    texts = [f"Who lives in Alder Row {n}? Mara Quill, and the capital of France is Paris." for n in range(40)]
    model, tokenizer = build_tiny(texts, TinyModel(vocabulary=300, hidden=32, layers=1, heads=2, intermediate=32))
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "tokenizer": tokenizer}
    exec(compile(textwrap.dedent(block[1]), "README.md", "exec"), names)
    assert (tmp_path / "forgets/adapter_model.safetensors").is_file()
    assert [record.id for record in read_records([{"id": "1", "input": "a", "output": "b"}])] == ["1"]
