"""Data workers are forked only where that cannot hang: bound to the version of Python, as the fault is Python's."""

import multiprocessing
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning_runs import write_rows

from unlearn_pl.data import workers
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.workers import safe_workers


@pytest.fixture
def on(monkeypatch):
    def set_to(version, method="fork"):
        monkeypatch.setattr(workers, "sys", SimpleNamespace(version_info=version))
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: method)

    return set_to


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 11, 9)])
@pytest.mark.parametrize("method", ["fork", None])
def test_several_processes_of_an_old_python_have_none(on, version, method):
    """None is the default of the system, and that is to fork here."""
    if method is None and multiprocessing.get_all_start_methods()[0] != "fork":
        pytest.skip("this system does not fork by default")
    on(version, method)
    with pytest.warns(UserWarning, match=r"num_workers 3: .* before Python 3.11.10 \(this is 3.11.\d\)"):
        assert safe_workers(3, processes=2) == 0


@pytest.mark.parametrize(
    ("version", "method", "number", "processes"),
    [
        ((3, 11, 10), "fork", 2, 2), ((3, 12, 0), "fork", 2, 2), ((3, 11, 9), "forkserver", 2, 2),
        ((3, 11, 9), "spawn", 2, 2), ((3, 11, 9), "fork", 2, 1), ((3, 11, 9), "fork", 0, 2),
    ],
)  # fmt: skip
def test_all_others_have_as_many_as_asked_for(on, version, method, number, processes):
    on(version, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert safe_workers(number, processes) == number


@pytest.mark.parametrize(("processes", "found"), [(1, 2), (2, 0)])
def test_the_data_of_a_fit_ask(on, tmp_path, base_folder, processes, found):
    """By the number of processes that the trainer has, whose own warning of few workers is not meant."""
    on((3, 11, 7))
    data = ForgetRetainData(**write_rows(tmp_path), num_workers=2, tokenizer=base_folder)
    data.setup()
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=processes, global_rank=0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_workers 2: data workers of several processes")
        assert data.val_dataloader().num_workers == found
