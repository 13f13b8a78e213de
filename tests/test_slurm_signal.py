"""What a scheduler's signals do to a fit."""

import signal

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

from unlearn_pl.callbacks.stop import SignalConnector
from unlearn_pl.stopping import STOP


def test_the_signal_that_asks_for_a_requeue_ends_a_fit_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's handler would save in the middle of a step, and hang with several processes."""
    for name, value in {"NTASKS": "1", "JOB_NAME": "fit", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    slurm = SLURMEnvironment(requeue_signal=signal.SIGUSR2)
    trainer = Trainer(accelerator="cpu", devices=1, plugins=[slurm], logger=False, enable_checkpointing=False)
    connector = SignalConnector(trainer)
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(one) for one in signals]
    try:
        connector.register_signal_handlers()
        assert [signal.getsignal(one) for one in signals] == [STOP] * 3
    finally:
        connector.teardown()
    assert [signal.getsignal(one) for one in signals] == before
