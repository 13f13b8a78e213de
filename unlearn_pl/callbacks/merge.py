"""MergeAfterFit: the adapter just trained, merged with another one."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from unlearn_pl.analysis.anatomy import MergeReports
from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.balance.search import find_balance
from unlearn_pl.callbacks.adapter import adapter_folder, is_dry
from unlearn_pl.errors import InputError, within
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.files import check_room, check_writable
from unlearn_pl.inference.generation import Generation
from unlearn_pl.merging.adapters import read_adapter, read_adapters
from unlearn_pl.merging.merge import MergedAdapter, refuse_dense
from unlearn_pl.merging.options import MergeOptions
from unlearn_pl.models.adapter_folder import is_adapter_folder
from unlearn_pl.models.load import refuse_quantised
from unlearn_pl.models.lora import save_adapter
from unlearn_pl.models.sharding import refuse_sharded

MERGED = "merged/"
"""Begins the names of the scores of the merged model."""


class MergeAfterFit(Callback):
    """When the fit ends, merges its adapter with another one on rank 0, and writes `merged/adapter/` (a PEFT adapter)
    and `merged/model/` (the base with it merged in) into the run folder, and `merged/anatomy.json` (signs in conflict,
    trimmed mass and sizes of the deltas by layer) and `merged/spectrum.json`; older ones there are replaced.

    With ``balance`` the merge is searched whose membership AUC is one half, on all ranks, with the rows of the fit;
    `merged/balance.json`, `.md` and `.png` show the search.

    With ``score`` the merged model is scored on the rows of the fit, on all ranks, and its scores are logged as
    `merged/<score>`, so that `merged/aggregate` can steer a sweep over density or weights.

    Args:
        with_adapter: Folder of the other adapter: of the same base, and for factor-space methods of the same seed.
        method: A name from `unlearn-pl merge --list`; not with balance.
        density: Share of entries that trimming keeps, in (0, 1]; 0.8 if not given, where the method trims.
        weights: Weight of this run's adapter and of the other.
        save_model: Whether to write the merged model too.
        balance: Where to search for the balanced merge; without it the merge is as given.
        over: Whether this run's adapter is the over-forgetting one; for balance.
        membership: Documents of the membership attack; for balance and score.
        choice: Multiple-choice questions; for balance and score.
        generation: How answers are generated; for balance and score.
        score: Whether to score the merged model.
    """

    def __init__(
        self,
        with_adapter: str,
        method: str | None = None,
        density: float | None = None,
        weights: list[float] | None = None,
        save_model: bool = True,
        balance: BalanceOptions | None = None,
        over: bool = False,
        membership: Membership | None = None,
        choice: Choice | None = None,
        generation: Generation | None = None,
        score: bool = False,
    ):
        if balance is not None and (method, density, weights) != (None, None, None):
            raise InputError("finds method, density and weights itself; leave them out", "MergeAfterFit.balance")
        if balance is None and not score and (membership, choice, generation) != (None, None, None):
            raise InputError("needed with membership, choice or generation, got none", "MergeAfterFit.balance")
        self.with_adapter, self.save_model, self.balance, self.over = with_adapter, save_model, balance, over
        self.score = score
        with within("MergeAfterFit"):
            self.settings = MergeOptions(method=method or "ties", weights=weights, density=density).settings(2)
            refuse_dense(self.settings)
        self.options = EvaluationOptions(
            membership=membership or Membership(), choice=choice or Choice(), generation=generation or Generation()
        )

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse what cannot be merged, read or written before training, not after it."""
        if pl_module.base_in_memory:
            refuse_sharded(pl_module.model, "MergeAfterFit of a base in memory", "base")
        if not is_adapter_folder(self.with_adapter):
            raise InputError(f"{self.with_adapter} is no PEFT adapter folder", "MergeAfterFit.with_adapter")
        start = read_adapter(self.with_adapter, "with_adapter").facts.get("lora_init_sha256", pl_module.initial_factors)
        if self.balance is not None or self.score:
            self._read_inputs(trainer)
        if self.save_model:
            refuse_quantised(pl_module.model, "MergeAfterFit with save_model")
        if self.balance is not None:
            refuse_quantised(pl_module.model, "MergeAfterFit balance")
        elif self.settings.method.space == "factors" and start != pl_module.initial_factors:
            raise InputError(
                f"{self.with_adapter} started from other A factors than this run, which {self.settings.method.name} "
                "cannot mix; train with its seed, or merge with ties_svd",
                "MergeAfterFit.with_adapter",
            )

        self._check_parents(pl_module)
        if not is_dry(trainer):
            self._check_outputs(trainer, pl_module)

    def _check_parents(self, pl_module: Any) -> None:
        """Merge's own checks, of the adapter as it is before training."""
        settings = self.settings if self.balance is None else MergeOptions(method="cat").settings(2)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "adapter"
            save_adapter(pl_module.model, own, lora_init_sha256=pl_module.initial_factors)
            try:
                read_adapters([own, self.with_adapter], settings)
            except InputError as error:
                message = error.reason.replace(str(own), "this run's adapter")
                raise InputError(f"MergeAfterFit: {message}") from error

    def _check_outputs(self, trainer: Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir) / "merged"
        check_writable(folder, "MergeAfterFit")
        # the old ones stay until the new ones are whole
        size = sum(weight.numel() * weight.element_size() for weight in pl_module.model.parameters())
        check_room(folder, size if self.save_model else 0, "MergeAfterFit")
        assert pl_module.tokenizer is not None  # loaded at the first use

    def _read_inputs(self, trainer: Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = EvaluationData(data.forget, data.retain, data.documents_per_task, data.columns)
        self.inputs = read_inputs(source, self.options)
        if self.balance is not None and not self.inputs.nonmembers:
            raise InputError("needed, the attack on them steers the search", "MergeAfterFit.membership.nonmember")

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if is_dry(trainer):
            return
        folder = Path(trainer.default_root_dir) / "merged"
        # a fresh base on the CPU: the trained one lives on a device and may be wrapped by the strategy
        if self.balance is not None or self.score or trainer.is_global_zero:
            base = pl_module.fresh_base()
            merged = self._merge(trainer, base) if self.balance is None else self._search(trainer, pl_module, base)
            if trainer.is_global_zero:
                model = folder / "model" if self.save_model else None
                merged.save(
                    folder / "adapter", save_model=model, base=base, tokenizer=pl_module.tokenizer, overwrite=True
                )
                if self.balance is None:  # the search writes them with its own files
                    MergeReports.of(merged).write(folder)
                rank_zero_info(f"merged: {folder / 'adapter'}" + (f" and {model}" if model else ""))
            if self.score:
                self._log_scores(trainer, pl_module, merged)
        trainer.strategy.barrier("merge_after_fit")

    def _log_scores(self, trainer: Trainer, pl_module: Any, merged: MergedAdapter) -> None:
        """Every rank computes a part; the scores that need what was not given are left out."""
        model = merged.open(pl_module.fresh_base().to(pl_module.device))  # saving has used the other one up
        results = evaluate(model, pl_module.tokenizer, self.inputs, self.options)
        found = {**results.headline, **results.terms}
        numbers = {MERGED + name: value for name, value in found.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, trainer.global_step)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in results.headline.items() if value is not None)
        rank_zero_info(f"merged model: {shown}")

    def _merge(self, trainer: Trainer, base: Any) -> MergedAdapter:
        parents = read_adapters([adapter_folder(trainer), self.with_adapter], self.settings)
        return MergedAdapter.of(base, parents, self.settings)

    def _search(self, trainer: Trainer, pl_module: Any, base: Any) -> MergedAdapter:
        """Every rank searches, as each computes a part of the losses and all decide alike."""
        assert self.balance is not None
        adapters = [str(adapter_folder(trainer)), self.with_adapter]
        found = find_balance(
            base.to(pl_module.device), pl_module.tokenizer, adapters if self.over else adapters[::-1], self.inputs,
            self.balance, evaluation=self.options, log=rank_zero_info,
        )  # fmt: skip
        if trainer.is_global_zero:
            facts = {"config": {"search": asdict(self.balance)}, "sha256": {"adapters": found.hashes}}
            found.write(Path(trainer.default_root_dir) / "merged", **facts)
            rank_zero_info(found.sentence())
        return found.merged
