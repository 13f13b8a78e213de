"""AngleAnalysis: the angles between the directions that training takes before and after a pivot step."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors.torch import load_file

from unlearn_pl.analysis.angles import angle_report
from unlearn_pl.callbacks.adapter import adapter_folder, is_dry
from unlearn_pl.callbacks.snapshot import WeightSnapshot, snapshot_folder
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.models.adapter_folder import WEIGHTS_FILE
from unlearn_pl.report.draw import draw
from unlearn_pl.report.figures.angles import angles


class AngleAnalysis(Callback):
    """Writes `angles.json` and `angles.png` into the run folder when the fit ends: norms of and angles between the
    weight displacements 0 -> pivot, pivot -> final and 0 -> final, overall and per layer, in factor and delta space.

    Needs a `WeightSnapshot` of each pivot step in the same run. Of several pivots the file holds a list, under
    `pivots`, of those that training went beyond.

    Args:
        pivot: The optimizer step at which the path is divided, or several such steps; the ZJUKLAB paper takes 165.
    """

    def __init__(self, pivot: int | list[int] = 165):
        self.pivot = pivot
        self.pivots = sorted({pivot} if isinstance(pivot, int) else set(pivot))
        if not self.pivots:
            raise InputError("at least one is needed, got none", "AngleAnalysis.pivot")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        taken = [step for callback in callbacks if isinstance(callback, WeightSnapshot) for step in callback.steps]
        for pivot in self.pivots:
            if pivot not in taken:
                raise InputError(
                    f"needs a WeightSnapshot of step {pivot} among the callbacks, got {taken}", "AngleAnalysis.pivot"
                )

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or is_dry(trainer):
            return
        target = Path(trainer.default_root_dir) / "angles.json"
        reports = [report for pivot in self.pivots if (report := self._report(trainer, pl_module, pivot)) is not None]
        if not reports:
            if trainer.global_step > 0:
                target.unlink(missing_ok=True)  # of an older run: not of this adapter
            return
        write_json(target, reports[0] if isinstance(self.pivot, int) else {"pivots": reports})
        draw(angles(reports, identity={"run": target.parent.name}), target.with_suffix(".png"))
        for report in reports:
            _, pivot, final = report["steps"]
            angle = report["delta"]["overall"]["angles"]["before_after"]
            told = "unknown" if angle is None else f"{angle:.1f} degrees"
            rank_zero_info(f"angles: {target}, 0->{pivot} to {pivot}->{final} {told}")

    def _report(self, trainer: Trainer, pl_module: Any, pivot: int) -> dict[str, Any] | None:
        """The angles at one pivot; None, and why, if there are none."""
        if trainer.global_step <= pivot:
            rank_zero_info(f"angles: none, training ended at step {trainer.global_step}, the pivot is {pivot}")
            return None
        steps = (0, pivot, trainer.global_step)
        folders = [snapshot_folder(trainer, 0), snapshot_folder(trainer, pivot), adapter_folder(trainer)]
        missing = [str(folder) for folder in folders if not (folder / WEIGHTS_FILE).is_file()]
        if missing:
            rank_zero_warn(f"AngleAnalysis: no angles, since {' and '.join(missing)} are missing")
            return None
        lora = pl_module.model.peft_config["default"]
        return angle_report([load_file(folder / WEIGHTS_FILE) for folder in folders], steps, lora.lora_alpha / lora.r)
