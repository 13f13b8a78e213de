"""Where a command computes, of GPUs that are made up here."""

import pytest
import torch

from unlearn_pl.errors import InputError
from unlearn_pl.models.device import find_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(("rank", "card"), [(None, "cuda:0"), ("0", "cuda:0"), ("1", "cuda:1")])
def test_each_process_of_a_machine_has_a_card_of_its_own(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, card: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert find_device("auto") == torch.device(card)


@pytest.mark.usefixtures("two_cards")
def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="device: auto: there are 2 GPUs, and this is process 3; start one for each"):
        find_device("auto")


def test_without_a_card_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "7")
    assert find_device("auto") == torch.device("cpu")
