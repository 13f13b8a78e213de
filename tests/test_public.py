"""The front door: the public names, what loading them costs, and what the wheel holds."""

import subprocess
import sys
import tomllib
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from typing import get_args

import pytest
from setuptools import find_packages

import unlearn_pl

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """What ``code`` prints in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.mark.parametrize("name", unlearn_pl.__all__)
def test_every_public_name_is_loaded_at_its_first_use(name: str) -> None:
    value = getattr(unlearn_pl, name)
    assert value is getattr(import_module(f"unlearn_pl.{unlearn_pl._HOME[name]}"), name)
    assert value.__doc__
    if (isinstance(value, type) and not get_args(value)) or isfunction(value):  # Passes is another name for a Mapping
        assert value.__module__ == f"unlearn_pl.{unlearn_pl._HOME[name]}", "a name's home is where it is defined"


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'unlearn_pl' has no attribute 'NPOO'"):
        _ = unlearn_pl.NPOO  # type: ignore[attr-defined]
    assert set(unlearn_pl.__all__) <= set(dir(unlearn_pl))


def test_the_import_is_quick_and_loads_no_other_module() -> None:
    """The best of five: the machine may be busy."""
    seconds = "import time, sys; start = time.perf_counter(); import unlearn_pl; print(time.perf_counter() - start)"
    assert min(float(python(seconds)) for _ in range(5)) < 0.1
    loaded = python("import sys, unlearn_pl; print([name for name in sys.modules if name.startswith('unlearn_pl')])")
    assert loaded == "['unlearn_pl']"


def test_a_name_comes_by_from_import() -> None:
    assert python("from unlearn_pl import NPO; print(NPO(weight=0.4).weight)") == "0.4"


def test_a_strict_type_checker_knows_every_public_name(tmp_path: Path) -> None:
    """With the package's own hints (py.typed); a name that is not there is an error."""
    names = ", ".join(unlearn_pl.__all__)
    file = tmp_path / "user.py"
    file.write_text(
        f"from unlearn_pl import {names}\n\n"
        f"names: list[object] = [{names}]\n"
        "module = UnlearningModule(base='folder', objectives={'forget': NPO(weight=0.5), 'keep': RetainNLL()})\n"
        "data = ForgetRetainData([Record(id='1', input='Who?', output='Ann.')], [{'id': '2'}], tokenizer='folder')\n"
        "rank: int = Lora(rank=4).rank\n"
        "rows: list[Record] = read_records('rows.jsonl')\n"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from unlearn_pl import NPOO\n")
    # as with an installed package, what is strict is the user's file alone; a cache of its own, warm from the last run
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file), str(wrong)]
    command += ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache" / "strict")]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    assert len(said) == 2, said
    assert 'wrong.py:1: error: Module "unlearn_pl" has no attribute "NPOO"' in said[0]


def test_the_wheel_holds_the_package_alone() -> None:
    """By setuptools' own search, with the settings of pyproject.toml; each folder with code is found."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = set(find_packages(str(ROOT), **tools["packages"]["find"]))
    assert {name.split(".")[0] for name in found} == {"unlearn_pl"}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "unlearn_pl").rglob("*.py")}
    assert found == {".".join(folder.parts) for folder in folders}
    assert tools["package-data"] == {"unlearn_pl": ["py.typed", "report/templates/*"]}
    assert (ROOT / "unlearn_pl" / "py.typed").is_file()
