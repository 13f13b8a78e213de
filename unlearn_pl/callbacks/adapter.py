"""SaveAdapter: the trained adapter, in PEFT's own format, when a fit ends."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from unlearn_pl.models.lora import save_adapter


class SaveAdapter(Callback):
    """Writes `adapter/` into the run folder (`--trainer.default_root_dir`) when the fit ends; an older one there is
    replaced. The command line always adds it."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder = adapter_folder(trainer)
            save_adapter(pl_module.model, folder, **training_facts(trainer, pl_module))
            rank_zero_info(f"adapter: {folder} (optimizer step {trainer.global_step})")
        trainer.strategy.barrier("save_adapter")


def adapter_folder(trainer: Trainer) -> Path:
    """Where the adapter of a run is."""
    return Path(trainer.default_root_dir) / "adapter"


def training_facts(trainer: Trainer, pl_module: LightningModule) -> dict[str, object]:
    """What an adapter file cannot say itself: the step it comes from and the A factors it started with."""
    return {"step": trainer.global_step, "lora_init_sha256": pl_module.initial_factors, "seed": pl_module.seed}
