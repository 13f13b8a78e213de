"""SaveAdapter: the trained adapter, in PEFT's own format, when a fit ends."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from unlearn_pl.analysis.spectrum import FILE as SPECTRUM_FILE
from unlearn_pl.analysis.spectrum import adapter_spectrum
from unlearn_pl.errors import InputError
from unlearn_pl.files import refuse_existing, write_json
from unlearn_pl.merging.adapters import read_adapter
from unlearn_pl.models.lora import adapter_state, save_adapter
from unlearn_pl.training.divergence import LAST_GOOD, Diverged


class SaveAdapter(Callback):
    """Writes `adapter/` and `spectrum.json` (norm, ranks and singular values of its delta by module and layer) into the
    run folder (`--trainer.default_root_dir`) when the fit ends; older ones there are replaced. A fit that a signal or
    an error ends, and `--trainer.fast_dev_run`, write none; one that diverges writes its last finite weights into
    `last_good/`. The command line always adds it."""

    def __init__(self) -> None:
        self._saved = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = False
        if trainer.is_global_zero and not is_dry(trainer):
            refuse_existing(adapter_folder(trainer), True, "default_root_dir")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a fit that goes on from its very end trains nothing, and Lightning then leaves on_train_end out
        if self._saved or is_dry(trainer):
            return
        if trainer.global_step > 0:
            self._save(trainer, pl_module)
        elif 0 not in (trainer.max_epochs, trainer.max_steps):  # nothing was what was asked for
            raise InputError(
                f"nothing was trained, and no adapter was written: the fit came to its end before the first optimizer "
                f"step{why_ended(trainer)} (the Trainer's max_time, limit_train_batches)"
            )

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Keep the weights that the step which diverged was to change."""
        if not isinstance(exception, Diverged) or is_dry(trainer) or not trainer.is_global_zero:
            return
        if not broken_tensors(pl_module):
            folder = Path(trainer.default_root_dir) / LAST_GOOD
            save_adapter(pl_module.model, folder, **training_facts(trainer, pl_module))

    def _save(self, trainer: Trainer, pl_module: Any) -> None:
        self._saved = True
        if is_dry(trainer):
            return
        if trainer.is_global_zero:
            folder = adapter_folder(trainer)
            if broken := broken_tensors(pl_module):
                raise InputError(
                    f"the adapter holds NaN or infinite numbers ({broken[0]} and {len(broken) - 1} more tensors) "
                    f"and was not written; a lower learning_rate may help"
                )
            (folder.parent / SPECTRUM_FILE).unlink(missing_ok=True)  # of an older adapter
            save_adapter(pl_module.model, folder, **training_facts(trainer, pl_module))
            write_spectrum(folder)
            rank_zero_info(f"adapter: {folder} (optimizer step {trainer.global_step}{why_ended(trainer)})")
        trainer.strategy.barrier("save_adapter")


def broken_tensors(pl_module: Any) -> list[str]:
    """The factors of the adapter that hold NaN or infinite numbers."""
    return [name for name, value in adapter_state(pl_module.model).items() if not value.isfinite().all()]


def is_dry(trainer: Trainer) -> bool:
    """Whether this is a `--trainer.fast_dev_run`, which is to leave no trace."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def adapter_folder(trainer: Trainer) -> Path:
    """Where the adapter of a run is."""
    return Path(trainer.default_root_dir) / "adapter"


def write_spectrum(folder: Path) -> None:
    """`spectrum.json` beside the adapter in ``folder``; a warning instead if it is more than a product B A."""
    try:
        write_json(folder.parent / SPECTRUM_FILE, adapter_spectrum(read_adapter(folder)))
    except InputError as error:
        rank_zero_warn(f"{SPECTRUM_FILE}: none, {error.reason}")


def training_facts(trainer: Trainer, pl_module: LightningModule) -> dict[str, object]:
    """What an adapter file cannot say itself: the step it comes from and the A factors it started with."""
    return {"step": trainer.global_step, "lora_init_sha256": pl_module.initial_factors, "seed": pl_module.seed}


def why_ended(trainer: Trainer) -> str:
    """What ended a training other than the number of its epochs, as an addition to its step."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f", ended by max_steps {trainer.max_steps}"
    if not trainer.should_stop:
        return ""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return ", ended by max_time"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return ", ended by EarlyStopping"
    return ", ended by a callback"
