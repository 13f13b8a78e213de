"""The gradient of an optimizer step does not depend on how its rows are laid out, or the fit says that it does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_server import CommandServer
from layouts import EXACT, ONE_BATCH, TIED, Layout, Recorded, apart, check_rows, record, write_setting
from lightning_runs import module, trainer, write_rows
from transformers import LlamaForCausalLM

from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO, GradAscent
from unlearn_pl.objectives.retain import RetainKL, RetainNLL

SAME = 1e-5


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[], LlamaForCausalLM], base_folder: str
) -> Path:
    return write_setting(tmp_path_factory.mktemp("layout"), tiny_model(), base_folder, EXACT)


@pytest.fixture(scope="module")
def whole(server: CommandServer, config: Path) -> Recorded:
    """One process, one batch of all pairs."""
    return record(partial(server.run, config.parent), config, ONE_BATCH)


@pytest.mark.parametrize("layout", [Layout(1, 2, 4, micro_batches=2), Layout(2, 2, 4)], ids=str)
def test_processes_and_accumulation_give_the_gradient_of_one_batch(
    server: CommandServer, config: Path, whole: Recorded, layout: Layout
) -> None:
    """The other layouts are rows of `make test-scale`."""
    parts = record(partial(server.run, config.parent), config, layout)
    check_rows(whole, parts)
    assert apart(whole.gradients[0], parts.gradients[0]) < SAME
    assert "depend on which rows" not in parts.told


def test_a_term_of_the_micro_batch_is_told_and_differs(
    server: CommandServer, tmp_path: Path, tiny_model: Callable[[], LlamaForCausalLM], base_folder: str
) -> None:
    """So the comparison above sees what it looks for; the line names what to set in place of each."""
    config = write_setting(tmp_path, tiny_model(), base_folder, TIED)
    one, two = (
        record(partial(server.run, config.parent), config, ONE_BATCH),
        record(partial(server.run, config.parent), config, Layout(1, 2, 8)),
    )
    assert apart(one.gradients[0], two.gradients[0]) > 1e-3
    assert "which rows share one" not in one.told
    assert two.told.count("which rows share one") == 1
    wanted = (
        "objectives.ga.reduction=sequence_mean, objectives.gd.reduction=step_mean, objectives.gk.reduction=step_mean"
    )
    assert wanted in two.told


@pytest.mark.parametrize("kind", [RetainNLL, RetainKL, GradAscent])
def test_in_one_batch_the_step_is_the_batch_to_the_bit(base_folder: str, tmp_path: Path, kind: type[Objective]) -> None:
    """So the configurations of the demo could change from one to the other without another number."""
    rows = write_rows(tmp_path)
    factors = []
    for reduction in ("batch_mean", "step_mean"):
        own = module(base_folder, objectives={"ga": NPO(0.4), "own": kind(0.2, reduction=reduction)})  # type: ignore[call-arg]
        trainer(tmp_path / reduction, max_epochs=4).fit(own, ForgetRetainData(**rows, batch_size=3))
        factors.append({name: value.detach().clone() for name, value in own.trained().items()})
    assert all(factors[0][name].equal(factors[1][name]) for name in factors[0])


@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:.*but have no `val_dataloader`")
def test_a_step_of_unknown_rows_is_refused(base_folder: str, tmp_path: Path) -> None:
    """Lightning's overfit_batches draws its own rows; a loader from elsewhere tells nothing of the rows to come."""
    rows = write_rows(tmp_path)
    terms = {"ga": NPO(), "gd": RetainNLL(reduction="step_mean")}
    with pytest.raises(
        InputError, match=r"^objectives\.gd\.reduction: step_mean is of the order of the data, which over"
    ):
        trainer(tmp_path / "run", overfit_batches=1).fit(
            module(base_folder, objectives=terms), ForgetRetainData(**rows)
        )
    data = ForgetRetainData(**rows, tokenizer=base_folder)
    data.setup()
    own = module(base_folder, objectives=terms)
    with pytest.raises(InputError, match=r"^objectives\.gd\.reduction: step_mean needs the rows of ForgetRetainData$"):
        trainer(tmp_path / "run", limit_val_batches=0).fit(own, data.train_dataloader())


def test_padded_means_take_no_other_reduction() -> None:
    with pytest.raises(InputError, match=r"^reduction: not with positions padded, which divides by rows x max_length"):
        RetainKL(positions="padded", reduction="step_mean")
