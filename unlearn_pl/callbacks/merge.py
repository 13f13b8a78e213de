"""MergeAfterFit: the adapter just trained, merged with another one."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from unlearn_pl.callbacks.adapter import adapter_folder
from unlearn_pl.errors import InputError
from unlearn_pl.merging.adapters import merge_facts, merge_parents, save_merged
from unlearn_pl.merging.methods import merge_settings
from unlearn_pl.merging.parents import read_parent, read_parents
from unlearn_pl.models.load import load_base


class MergeAfterFit(Callback):
    """When the fit ends, merges its adapter with another one on rank 0, and writes `merged/adapter/` (a PEFT adapter)
    and `merged/model/` (the base with it merged in) into the run folder; older ones there are replaced.

    Args:
        with_adapter: Folder of the other adapter: of the same base, and for factor-space methods of the same seed.
        method: One of PEFT's combination types; `unlearn-pl merge --help` lists them.
        density: Share of entries that trimming keeps, in (0, 1]; 0.8 if not given, where the method trims.
        weights: Weight of this run's adapter and of the other.
        save_model: Whether to write the merged model too.
    """

    def __init__(
        self,
        with_adapter: str,
        method: str = "ties",
        density: float | None = None,
        weights: list[float] | None = None,
        save_model: bool = True,
    ):
        self.with_adapter, self.save_model = with_adapter, save_model
        self.settings = merge_settings(2, method, weights or [1.0, 1.0], density)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse an adapter that cannot be merged before training, not after it."""
        if not (Path(self.with_adapter) / "adapter_config.json").is_file():
            raise InputError(f"MergeAfterFit with_adapter: {self.with_adapter} is no PEFT adapter folder")
        start = read_parent(self.with_adapter).facts.get("lora_init_sha256", pl_module.initial_factors)
        if self.settings.method.space == "factors" and start != pl_module.initial_factors:
            raise InputError(
                f"MergeAfterFit with_adapter: {self.with_adapter} started from other A factors than this run, which "
                f"{self.settings.method.name} cannot mix; train with its --seed_everything, or merge with ties_svd"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._merge(trainer, pl_module)
        trainer.strategy.barrier("merge_after_fit")

    def _merge(self, trainer: Trainer, pl_module: Any) -> None:
        parents = read_parents([adapter_folder(trainer), self.with_adapter], self.settings)
        # a fresh base on the CPU: the trained one lives on a device and may be wrapped by the strategy
        model = merge_parents(load_base(pl_module.base, pl_module.dtype_name), parents, self.settings)
        folder = Path(trainer.default_root_dir) / "merged"
        save_merged(
            model,
            folder / "adapter",
            merge_facts(parents, self.settings),
            folder / "model" if self.save_model else None,
            pl_module.tokenizer,
            overwrite=True,
        )
        rank_zero_info(f"merged: {folder / 'adapter'}" + (f" and {folder / 'model'}" if self.save_model else ""))
