"""StopOnSignal: a fit that SIGTERM or SIGINT ends saves where it was, and says how to go on from there."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.stopping import STOP, Stopped
from unlearn_pl.training.zero import is_zero

SECONDS_FOR_CHILDREN = 30.0


class SignalConnector(_SignalConnector):
    """Lightning's, but for its own handlers, which hang where several processes train. The one under SLURM also saves
    amid a step, where no fit can go on from: the signal that asks for it (SIGUSR1) is one more that ends the fit."""

    def register_signal_handlers(self) -> None:
        environment = self.trainer._accelerator_connector.cluster_environment
        slurm = environment if isinstance(environment, SLURMEnvironment) else None
        if slurm is not None:
            slurm.auto_requeue = False
        super().register_signal_handlers()
        STOP.install()
        if slurm is not None and slurm.requeue_signal is not None:
            signal.signal(slurm.requeue_signal, STOP)


class StopOnSignal(Callback):
    """Ends the fit after the batch, or the validation, in which SIGTERM or SIGINT came to any of its processes, and
    writes `checkpoints/interrupted.ckpt` into the run folder; when a later fit there ends well, that file goes. The
    command line always adds it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._remove(trainer)  # of an earlier run in this folder

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        STOP.deferring = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        end_if_told(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning would break the validation off, where no fit can go on from
        self._held, trainer._signal_connector.received_sigterm = trainer.received_sigterm, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer._signal_connector.received_sigterm = self._held
        if STOP.deferring:  # within training
            end_if_told(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end_if_told(trainer)  # what came in an evaluation after the last batch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.deferring = False
        end_if_told(trainer)
        if trainer.received_sigterm:  # nobody looks any more
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        STOP.deferring = False
        stopped = isinstance(exception, SIGTERMException) and trainer.training
        if stopped and not is_dry(trainer) and not is_zero(trainer):  # which has no checkpoint to go on from
            trainer.save_checkpoint(interrupted_checkpoint(trainer.default_root_dir))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._remove(trainer)

    def _remove(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not is_dry(trainer):
            interrupted_checkpoint(trainer.default_root_dir).unlink(missing_ok=True)


def end_if_told(trainer: Trainer) -> None:
    """Let Lightning end the fit at the next place where it looks, if a process was told to stop. All processes must ask
    at once and decide alike, or one would wait for the others for ever."""
    if trainer.strategy.reduce_boolean_decision(STOP.noted is not None, all=False):
        trainer._signal_connector.received_sigterm = True
        signum = torch.tensor(STOP.noted or 0, device=trainer.strategy.root_device)
        STOP.note(int(trainer.strategy.reduce(signum, reduce_op="max")))


def interrupted_checkpoint(run_folder: str | Path) -> Path:
    """Where a fit that was told to stop leaves its state."""
    return Path(run_folder) / "checkpoints" / "interrupted.ckpt"


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """The latest checkpoint of this run to go on from."""
    paths = [str(interrupted_checkpoint(trainer.default_root_dir))]
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and not callback.save_weights_only:
            paths += [callback.last_model_path, *([] if callback.monitor else [callback.best_model_path])]
    files = [path for path in map(Path, paths) if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime) if files else None


@contextmanager
def stopped_well(trainer: Trainer, arguments: Sequence[str]) -> Iterator[None]:
    """Around a fit by the command line's ``arguments``: a signal is told with the command that goes on."""
    try:
        yield
    except SIGTERMException:  # all processes stopped at the same batch
        if is_child(trainer):
            sys.exit(0)  # the first process, which started this one, tells
        end_children(trainer)
        raise told(Stopped(STOP.noted or signal.SIGTERM), trainer, arguments) from None
    except Stopped as stop:
        told(stop, trainer, arguments)
        raise


@contextmanager
def none_left(trainer: Trainer) -> Iterator[None]:
    """Around a verb: whatever ends it leaves no process of its launch behind."""
    try:
        yield
    except BaseException:
        end_children(trainer, at_once=True)
        raise
    finally:
        end_children(trainer)


def is_child(trainer: Trainer) -> bool:
    """Whether Lightning started this process, and not torchrun, a scheduler or the user."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.global_rank > 0 and isinstance(environment, LightningEnvironment)


def told(stop: Stopped, trainer: Trainer, arguments: Sequence[str]) -> Stopped:
    """``stop`` with the step that the fit came to and the command that goes on from there."""
    stop.where = f" at optimizer step {trainer.global_step}"
    checkpoint = None if is_dry(trainer) else newest_checkpoint(trainer)
    if checkpoint is not None:
        again = ["unlearn-pl", *without_checkpoint(arguments), f"--ckpt_path={checkpoint}"]
        stop.advice = f"go on with: {shlex.join(again)}"
    return stop


def without_checkpoint(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments but for the checkpoint it went on from."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--ckpt_path="):
            skip = argument == "--ckpt_path"
            kept += [] if skip else [argument]
        else:
            skip = False
    return kept


def end_children(trainer: Trainer, at_once: bool = False) -> None:
    """Wait for the processes that Lightning started for this fit, then kill those that are left."""
    processes = getattr(trainer.strategy.launcher, "procs", None) or []
    children = list(processes)
    processes.clear()  # Lightning watches this list, and would kill this process for a child that failed
    for child in children:
        if not at_once:
            wait_for(child, SECONDS_FOR_CHILDREN)
        if child.is_alive() if isinstance(child, BaseProcess) else child.poll() is None:
            child.kill()
            wait_for(child)


def wait_for(child: Any, seconds: float | None = None) -> None:
    """Until the process, of subprocess or of multiprocessing (ddp_spawn, ddp_fork), ends, or so many seconds."""
    if isinstance(child, BaseProcess):
        child.join(seconds)
    else:
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
