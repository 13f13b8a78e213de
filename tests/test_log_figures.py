"""The figures of a fit in TensorBoard (a stand-in for its writer); W&B is in test_end_to_end.py, offline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import module, trainer, write_rows

from unlearn_pl.callbacks.adapter import SaveAdapter
from unlearn_pl.callbacks.angles import AngleAnalysis
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.figures import LogFigures, balance_numbers, pixels_of
from unlearn_pl.callbacks.snapshot import WeightSnapshot
from unlearn_pl.cli import UnlearnCLI, place_of
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.inference.generation import Generation
from unlearn_pl.report.draw import image
from unlearn_pl.report.figure import Axis, Figure, Line, Panel

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is smaller than the logging")


class Board(TensorBoardLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[tuple[int, ...], int]] = {}
        self.numbers: dict[str, float] = {}

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, key: str, pixels: Any, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        assert pixels.dtype == np.uint8
        self.images[key] = pixels.shape, step

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers |= metrics

    def log_nothing(self, *_: Any, **__: Any) -> None:
        pass

    log_hyperparams = log_graph = finalize = save = after_save_checkpoint = log_nothing
    name = version = "board"
    save_dir = log_dir = root_dir = ""


def test_the_figures_of_the_fit_and_of_no_earlier_one(base_folder: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, forget=7)
    evaluate = EvaluateDuringFit(generation=Generation(max_new_tokens=2))
    callbacks = [WeightSnapshot(steps=[5]), AngleAnalysis(pivot=5), SaveAdapter(), evaluate, LogFigures()]
    boards = []
    for chosen in (callbacks, [SaveAdapter(), LogFigures()]):
        boards.append(Board())
        trainer(tmp_path, chosen, logger=boards[-1]).fit(module(base_folder), ForgetRetainData(**rows))
    whole, bare = boards
    shapes = {shape for shape, _ in whole.images.values()}
    assert all(len(shape) == 3 and shape[2] == 3 and min(shape[:2]) > 100 for shape in shapes)
    assert {step for _, step in whole.images.values()} == {14}
    assert {"figures/terms", "figures/angles", "figures/spectra"} <= whole.images.keys()
    assert "figures/spectra" in bare.images
    assert bare.images.keys().isdisjoint({"figures/terms", "figures/angles", "figures/training"})

    spectrum = json.loads((tmp_path / "spectrum.json").read_text())["overall"]
    assert bare.numbers["adapter/norm"] == spectrum["norm"]
    assert bare.numbers["adapter/stable_rank"] == spectrum["stable_rank"]
    angles = json.loads((tmp_path / "angles.json").read_text())["delta"]["overall"]["angles"]
    assert whole.numbers["angles/5/before_after"] == angles["before_after"]
    assert "angles/5/before_after" not in bare.numbers
    assert "evaluation/task_aggregate" in whole.numbers


def test_the_numbers_of_a_search_are_those_of_its_choice() -> None:
    found = {"chosen": {"mix": 0.25, "scale": 1.0, "holdout_auc": 0.5, "method": "cat", "mmlu": None}, "path": []}
    numbers = {name: value for name, value in balance_numbers(found).items() if value is not None}
    assert numbers == {"balance/mix": 0.25, "balance/scale": 1.0, "balance/holdout_auc": 0.5}


def test_pictures_are_on_white() -> None:
    axis = Axis(title="x")
    line = Line(name="a", x=[0, 1], y=[0, 1])
    figure = Figure(key="k", title="t", caption="c", panels=[Panel(title="p", x=axis, y=axis, series=[line])])
    pixels = pixels_of(image(figure))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels.min() < 128


def test_it_comes_last(base_folder: str, tmp_path: Path) -> None:
    """After a callback of the configuration that writes when the fit ends."""
    arguments = [f"--model.base={base_folder}", f"--trainer.default_root_dir={tmp_path}", "--data.forget=f"]
    terms = '{"ga": {"class_path": "NPO"}}'
    arguments += ["--data.retain=r", f"--model.objectives={terms}", "--trainer.accelerator=cpu"]
    cli = UnlearnCLI([*arguments, "--trainer.callbacks+=EvaluateDuringFit"], run=False)
    places = [place_of(callback) for callback in cli.trainer.callbacks]  # type: ignore[attr-defined]
    assert places == sorted(places)
    assert isinstance(cli.trainer.callbacks[-1], LogFigures)  # type: ignore[attr-defined]
