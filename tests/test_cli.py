"""The command line as users meet it: mistakes are one line and exit code 2; help and version are quick."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lightning_runs import write_rows

from unlearn_pl.__main__ import VERBS, main
from unlearn_pl.errors import one_line, printable
from unlearn_pl.parsing import completed

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command line in this process; it must exit with 2 and one line, which is returned."""
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unlearn-pl: error:")]
    assert len(lines) == 1
    return lines[0].removeprefix("unlearn-pl: error: ")


@pytest.fixture
def config(base_folder: str, tmp_path: Path) -> str:
    """A complete configuration of a small fit."""
    rows = write_rows(tmp_path, forget=4, retain=4)
    term = {"class_path": "NPO", "init_args": {"weight": 0.5}}
    keep = {"class_path": "RetainNLL", "init_args": {"weight": 0.5}}
    content = {
        "model": {
            "base": base_folder,
            "objectives": {"ga": term, "gd": keep},
            "lora": {"rank": 2},
            "warmup": 0,
            "reference_cache": {"folder": str(tmp_path / "cache")},
        },
        "data": {**rows, "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "run"),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path / "run"), "name": "", "version": ""},
            },
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--model.objectives.ga.wieght=1",
            r"ga\.wieght: no option 'wieght' \(did you mean weight\?\); NPO takes weight, beta, reduction",
        ),
        ("--model.objectives.ga.weight=abc", r"--model\.objectives\.ga\.weight: must be float, got abc"),
        ("--model.objectives.ga.reduction=sum", r"must be one of 'sequence_sum', 'sequence_mean'.* got sum"),
        ("--model.objectives.ga.beta=0", r"--model\.objectives\.ga\.beta: must be above 0, got 0"),
        (
            "--model.objectives.gb.weight=1",
            r"a new slot needs a class first: one of NPO, SimNPO, GradAscent, RetainNLL",
        ),
        ("--model.objectives.ga=NPOO", r"no class NPOO \(did you mean NPO\?\)"),
        ("--modle.base=x", r"--modle\.base: no such argument \(did you mean model\.base\?\)"),
        ("--model.base=./nowhere", r"--model\.base: \./nowhere is not a folder"),
        ("--model.lora.rnk=2", r"no option 'rnk' \(did you mean rank\?\); Lora takes rank, alpha"),
        ("--model.warmup=soon", r"--model\.warmup: must be int or float or 'epoch', got soon"),
        ("--data.forget=nowhere.jsonl", r"--data\.forget: .*nowhere\.jsonl"),
        ("--data.batch_size=0", r"--data\.batch_size: must be at least 1, got 0"),
        ("--model.objectives.gd=null", r"model\.objectives: must be one of NPO, SimNPO, GradAscent, .*, got null"),
        ("--trainer.callbacks+=Nope", r"--trainer\.callbacks: no class Nope"),
        ("--config=nowhere.yaml", r"--config: .*nowhere\.yaml"),
    ],
)
def test_a_mistake_is_one_line(
    config: str, argument: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(message, fails(["fit", "--config", config, argument], capsys, monkeypatch))
    assert not Path(config).with_name("run").joinpath("adapter").exists()


def test_a_list_of_words_is_explained(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["fit", "--config", config, "--model.lora.target_modules", "q_proj", "v_proj"]
    expected = "v_proj: a value that belongs to no argument; a list is written '[a, b]'"
    assert fails(given, capsys, monkeypatch) == expected


def test_a_mistake_in_a_config_is_named_with_its_line(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(config)
    path.write_text(path.read_text().replace("rank:", "rnk:"))
    line = 1 + [text.strip().startswith("rnk:") for text in path.read_text().splitlines()].index(True)
    assert fails(["fit", "--config", config], capsys, monkeypatch).startswith(
        f"{config}, line {line}: model.lora.rnk: no option 'rnk'"
    )


OWN = """from unlearn_pl import Objective
class Half(Objective):
    pass
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class_path: NPO", "class_path: own_half.Half", "own_half.Half is abstract: it lacks a method"),
        ("class_path: NPO", "class_path: own_torn.Torn", r"own_torn\.py, line 1: not Python: '\(' was never closed"),
        ("seed_everything: 42", "seed_everything: null", "line 1: seed_everything: must be int, got null"),
        ("lora:", "learning_rate: null\n  lora:", r"line \d+: model\.learning_rate: must be float, got null"),
        ("lora:", "learning_rate: 1\n  learning_rate: 2\n  lora:", r"model\.learning_rate is given twice, on lines"),
    ],
)
def test_what_a_fit_cannot_take_is_one_line(
    old: str, new: str, message: str, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(config)
    monkeypatch.syspath_prepend(str(path.parent))
    for name, text in (("half", OWN), ("torn", "x = (\n")):
        path.with_name(f"own_{name}.py").write_text(text)
    text = path.read_text()
    path.write_text(text.replace(old, new) if old in text else f"{new}\n{text}")
    told = fails(["fit", "--config", config], capsys, monkeypatch)
    assert re.search(message, told)
    assert "\n" not in told


def test_a_bad_row_is_named(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(config).with_name("forget.jsonl")
    rows = path.read_text().splitlines()
    rows[2] = json.dumps(json.loads(rows[2]) | {"output": ""})
    path.write_text("\n".join(rows))
    message = fails(["fit", "--config", config], capsys, monkeypatch)
    assert re.search(r"--data\.forget: .*forget\.jsonl, line 3: field 'output' is empty", message)


CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = [
    "run",
    str(CONFIGS / "demo.yaml"),
    f"--over={CONFIGS / 'demo/over.yaml'}",
    f"--under={CONFIGS / 'demo/under.yaml'}",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "'fitt' is no command; the commands are run, sweep, fit,"),
        (["merge", "--base=x", "--adapters", "a", "b", "--output=o", "--method=tis"], "ties"),
        (["merge", "--base=x", "--adapters", "a", "b"], "output"),
        (["evaluate", "--model=./nowhere", "--data.forget=f", "--data.retain=r", "--output=o"], "nowhere"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run"], "name"),
        (["run", "--name=x", "--over=nowhere.yaml", "--under=y"], "--over: nowhere.yaml is not a file"),
        ([*DEMO, "--balance.grid=1"], "--balance.grid: must be at least 2, got 1"),
        ([*DEMO, "--prepare.synthetic=null"], "--prepare: needs either 'synthetic' or 'subset'"),
        ([*DEMO, "--merging.density=2"], "--merging.density: must be in (0, 1], got 2.0"),
        ([*DEMO, "--merging.method=tis"], "--merging.method: must be one of"),
        ([*DEMO, "--seed=-1"], "--seed: must be from 0 to 4294967295, got -1"),
        (["merge", "--base=x", "--adapters", "a", "b", "--output=o", "--seed=-1"], "--seed: must be from 0"),
        (
            ["fit", "--config", str(CONFIGS / "demo/over.yaml"), "--seed_everything=-1"],
            "--seed_everything: must be from",
        ),
    ],
)
def test_mistakes_of_the_other_commands(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(arguments, capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--fast", "--name", "x"], ["--fast=true", "--name", "x"]),
        ([], []),
        (["--fast"], ["--fast=true"]),
        (["--fast", "false"], ["--fast", "false"]),
        (["--fast=false", "--name"], ["--fast=false", "--name"]),
        (["--columns.id=#", "--columns.task==A # B"], ['--columns.id="#"', "--columns.task==A # B"]),
    ],
)
def test_a_switch_needs_no_value_and_a_value_is_no_comment(given: list[str], read: list[str]) -> None:
    assert completed(given, {"fast"}) == read


def test_switches_of_all_verbs_are_known(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model.gradient_checkpointing` alone is taken: what is wrong is only the path behind it."""
    given = ["fit", "--config", config, "--model.gradient_checkpointing", "--data.forget=nowhere.jsonl"]
    assert fails(given, capsys, monkeypatch).startswith("--data.forget: nowhere.jsonl does not exist")
    given = ["merge", "--base=./nowhere", "--overwrite", "--adapters", "a", "b", "--output=o"]
    assert "expected one argument" not in fails(given, capsys, monkeypatch)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unlearn_pl", *arguments], capture_output=True, text=True, timeout=300)


def test_version_and_help_import_nothing_heavy() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; from unlearn_pl.__main__ import main; main(); "
    code += "print(sorted({'torch', 'lightning', 'transformers', 'jsonargparse'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in VERBS)
    began = time.perf_counter()
    assert run_command("--version").stdout.startswith("unlearn_pl 0.")
    assert time.perf_counter() - began < 5, "0.15 s on an idle machine"


@pytest.mark.parametrize("verb", ["fit", "merge", "evaluate", "run"])
def test_help_of_a_command_explains_its_fields(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", verb, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    expected = {
        "fit": ["The model that memorised the documents", "Fixes the order of the pairs", "--seed_everything"],
        "merge": ["Two or more PEFT adapter folders", "Share of the entries that is kept"],
        "evaluate": [
            "Documents of the membership attack",
            "A row that has not ended by then, or by the end of the model's positions, is cut",
        ],
        "run": ["Name of a fit -> its configuration", "Stop after this stage", "Documents of the membership attacks"],
    }
    assert all(phrase in text for phrase in expected[verb])
    assert "Args:" not in text


@pytest.mark.parametrize(
    ("verb", "shown", "left"),
    [
        ("validate", "val/ga", {"config_validate.yaml"}),
        ("test", "test/ga", {"config_test.yaml"}),
        ("predict", "Predicting", {"config_predict.yaml", "predictions.jsonl"}),
    ],
)
def test_the_other_verbs_of_lightning(
    verb: str,
    shown: str,
    left: set[str],
    config: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unlearn_pl.training.predict.NEW_TOKENS", 3)
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", verb, "--config", config])
    main()
    output = capsys.readouterr()
    assert shown in output.out + output.err
    assert left <= {path.name for path in Path(config).with_name("run").iterdir()}


def test_fit_leaves_exactly_these_files(config: str) -> None:
    done = run_command("fit", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "tokens_per_second" in done.stdout
    folder = Path(config).with_name("run")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    adapter = {f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json")}
    assert files == adapter | {
        "spectrum.json",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
        "checkpoints/epoch=0-step=2.ckpt",
    }
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["model"]["seed"] == resolved["data"]["seed"] == 42


@pytest.mark.parametrize("verb", ["fit", "run", "sweep"])
def test_a_file_that_is_nested_too_deeply_is_one_line(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep.yaml").write_text("seed: " + "[" * 5000 + "]" * 5000)
    words = [verb, "--config", str(tmp_path / "deep.yaml")] if verb == "fit" else [verb, str(tmp_path / "deep.yaml")]
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("unlearn-pl: error: ")
    assert "nested" in line


def test_a_word_that_is_longer_than_any_path_loses_its_middle() -> None:
    assert printable(f"got {'a' * 99 + 'b' * 900 + 'c' * 20}!") == f"got {'a' * 99}b ... {'c' * 19}!"
    assert printable(f"{'p' * 599} is a path") == f"{'p' * 599} is a path"


def test_what_a_library_says_is_told_without_python_s_names() -> None:
    told = TypeError("value [] doesn't match any type in (<class 'int'>,\n <class 'NoneType'>)")
    assert one_line(told) == "a value in it is of the wrong type (value [] doesn't match any type in (int, null))"
    shape = ValueError("not enough values to unpack (expected 2, got 1)")
    assert one_line(shape).startswith("a value in it is of the wrong type (not enough")
