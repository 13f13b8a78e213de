"""Every shipped YAML goes through the real parser, and its classes are built."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.parsing import function_parser, join_lists
from unlearn_pl.recipe.run import run
from unlearn_pl.sweep.command import fit_arguments
from unlearn_pl.sweep.draw import count
from unlearn_pl.sweep.file import read_sweep

ROOT = Path(__file__).parent.parent
FITS = sorted((ROOT / "configs").glob("*/*.yaml"))
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")


class Built(UnlearnCLI):
    """Parses and builds everything, runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FITS, ids=name_of)
def test_fit_config(path: Path) -> None:
    built = Built(["fit", "--config", name_of(path)])
    assert built.model.objectives.keys() == ({"ga"} if path.stem == "npo" else {"ga", "gd", "gk"})
    assert str(built.trainer.default_root_dir) != "logs/fit", "every run has a folder of its own"


@pytest.mark.parametrize("path", FITS, ids=name_of)
def test_the_first_line_is_the_command_that_runs_it(path: Path) -> None:
    assert path.read_text().startswith(f"# unlearn-pl fit --config {name_of(path)}")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_config(path: Path) -> None:
    assert path.read_text().startswith(f"# unlearn-pl run {name_of(path)}")
    parser = function_parser(run, "run")
    config = parser.instantiate_classes(parser.parse_args(["--config", name_of(path)]))
    assert config.name == path.stem
    assert config.fits
    assert all(Path(fit).is_file() for fit in config.fits.values())
    made = (*config.merges.values(), *config.searches.values(), *config.comparisons.values())
    assert all(set(merge.of) <= set(config.fits) for merge in made)


@pytest.mark.parametrize(
    ("preset", "gd", "gk", "positions"),
    [("zjuklab", RetainKL, RetainNLL, "released"), ("zjuklab_paper", RetainNLL, RetainKL, "padded")],
)
def test_presets_are_table_3(preset: str, gd: type, gk: type, positions: str) -> None:
    """ga/gd/gk .4/.4/.2 at batch 1 and .3/.3/.4 at batch 2; the released code has KL in gd, the paper in gk. The
    released code has the KL of its padding, and clips nothing."""
    for name, weights, batch_size in (("over", (0.4, 0.4, 0.2), 1), ("under", (0.3, 0.3, 0.4), 2)):
        built = Built(["fit", "--config", f"configs/{preset}/{name}.yaml"])
        terms = built.model.objectives
        assert tuple(term.weight for term in terms.values()) == weights
        assert [type(terms[slot]) for slot in ("ga", "gd", "gk")] == [NPO, gd, gk]
        assert {term.positions for term in terms.values() if isinstance(term, RetainKL)} == {positions}
        assert built.trainer.gradient_clip_val is None
        assert built.datamodule.batch_size == batch_size
        assert (built.model.lora.rank, built.model.lora.alpha, built.model.lora.dropout) == (32, 32, 0.05)
        assert (built.model.learning_rate, built.model.seed, built.datamodule.seed) == (1e-4, 42, 42)
        assert built.datamodule.encoding.joiner == ""
        assert built.trainer.accumulate_grad_batches * built.datamodule.micro_batches == 4
        assert built.trainer.max_epochs == 5


def test_the_7b_model_is_one_override() -> None:
    name = "allenai/OLMo-7B-0724-Instruct-hf"
    assert Built(["fit", "--config", "configs/zjuklab/over.yaml", f"--model.base={name}"]).model.base == name


def test_command_line_overrides_reach_what_is_linked_and_interpolated() -> None:
    arguments = [
        "--seed_everything=7",
        "--data.max_length=99",
        "--trainer.default_root_dir=logs/other",
        "--model.objectives.ga.weight=0.9",
    ]
    built = Built(["fit", "--config", "configs/demo/over.yaml", *arguments])
    assert (built.model.seed, built.datamodule.seed, built.model.max_length) == (7, 7, 99)
    assert built.trainer.logger.save_dir == "logs/other"
    assert built.model.objectives["ga"].weight == 0.9
    assert built.model.objectives["gk"].weight == 0.2


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_the_command_of_a_sweep_is_one_that_we_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered by W&B's own functions for one trial, then handed to our parser; `unlearn-pl sweep` renders the same."""
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    sweep: dict[str, Any] = yaml.safe_load(path.read_text())
    first = {
        name: spec.get("value", spec.get("values", [spec.get("min")])[0]) for name, spec in sweep["parameters"].items()
    }
    trial = {name: {"value": value} for name, value in first.items()}
    pieces = wandb_sweeps.create_sweep_command_args({"args": trial}) | {"env": ["env"], "interpreter": ["python"]}
    command = [
        text for part in sweep["command"] for text in (pieces[part[2:-1]] if part.startswith("${") else [str(part)])
    ]
    assert command[:4] == ["env", "python", "-m", "unlearn_pl"]
    built = Built(command[4:])
    for name, value in first.items():
        assert setting(built, name) == value
    assert built.trainer.default_root_dir == "logs/sweep/trial1"
    prefix, score = sweep["metric"]["name"].split("/")
    assert (prefix, score) in (("evaluation", "aggregate"), ("merged", "aggregate")), "a loss depends on what is swept"
    assert fit_arguments(read_sweep(path), first, Path("x"), csv=False)[:-1] == command[4:]


def setting(built: Built, flag: str) -> Any:
    """What a flag has become."""
    parts = flag.split(".")
    if parts[:2] == ["model", "objectives"]:
        return getattr(built.model.objectives[parts[2]], parts[3])
    if flag == "trainer.callbacks.density":
        return next(one.settings.options.density for one in built.trainer.callbacks if isinstance(one, MergeAfterFit))
    return built.model.seed if flag == "seed_everything" else getattr(built.model, parts[1])


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_the_first_lines_of_a_sweep_are_commands_that_run_it(path: Path) -> None:
    first = path.read_text().split("name:")[0]
    assert first.startswith(f"# wandb sweep {name_of(path)}")
    ours = re.search(r"unlearn-pl sweep (\S+)((?: --\w+ \d+)*)", first)
    assert ours is not None
    assert ours[1] == name_of(path)
    assert count(read_sweep(path), int(ours[2].split()[1]) if ours[2] else None) > 1


def test_lists_and_dashes_as_a_user_types_them() -> None:
    typed = ["--adapters", "a", "b", "--weights", "1", "-0.5", "--save-model", "out", "--density=0.8"]
    joined = ['--adapters=["a", "b"]', "--weights=[1, -0.5]", "--save_model", "out", "--density=0.8"]
    assert join_lists(typed, ["adapters", "weights"]) == joined
