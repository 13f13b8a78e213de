"""What of a module goes into a checkpoint, and how it comes back."""

import inspect
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftModel
from torch import Tensor

from unlearn_pl.errors import InputError, renamed
from unlearn_pl.models.identity import base_weights_hash
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training import resume
from unlearn_pl.training.arguments import from_plain
from unlearn_pl.training.checkpoint_file import read_checkpoint
from unlearn_pl.training.loss import PackedLoss


class CheckpointedModule(LightningModule):
    """A module whose checkpoints hold what is trained, and beside it what that belongs to: the hash of the base, the
    shape of the adapter, the settings of the fit and the arguments of the class."""

    model: PeftModel
    base: str
    dtype_name: str
    objectives: dict[str, Objective]
    packed_loss: PackedLoss
    initial_factors: str
    arguments: dict[str, Any]
    """Those of the class, by ``to_plain``."""

    def __init__(self) -> None:
        super().__init__()
        # checkpoints hold the adapter only; on_load_checkpoint checks that it is this one
        self.strict_loading = False
        self._base_weights_hash: str | None = None
        self._checkpoint_settings: dict[str, Any] | None = None  # of the checkpoint that this fit goes on from
        self._open_window: dict[str, Tensor] = {}  # and its gradients
        self._pack_size: int | None = None  # and the tokens of its packs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "model"):  # saved on an exception that came before it
            return
        trained, state = self.trained(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}
        checkpoint[resume.FACTS] = {
            "base": self._base_facts(),
            "adapter": resume.adapter_facts(self.model),
            "initial_factors": self.initial_factors,
            "settings": resume.settings_of(self),
            "arguments": self.arguments,
            "tokens_per_forward": self.packed_loss.tokens_per_forward,
        }
        checkpoint[resume.VALIDATION_DUE] = resume.validation_due(self.trainer)
        if self.trainer.fit_loop._should_accumulate():  # within a window
            checkpoint["gradients"] = {name: self._gradients(value) for name, value in trained.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        facts = resume.facts_of(checkpoint)
        resume.check_adapter(
            facts["adapter"], resume.adapter_facts(self.model), checkpoint["state_dict"], self.trained()
        )
        resume.check_base(facts["base"], self._base_facts())
        self.initial_factors = facts["initial_factors"]
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            resume.mend_epochs(checkpoint)
            resume.mend_validation(checkpoint)
            self._checkpoint_settings, self._open_window = facts["settings"], checkpoint.get("gradients", {})
            self._pack_size = facts.get("tokens_per_forward")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's takes a file of hyper-parameters too
        cls, checkpoint_path: str | Path, *, weights_only: bool = True, **arguments: Any
    ) -> Self:
        """The module of a checkpoint, with its adapter as it was saved there, on the CPU.

        ``arguments`` are those of the class that are to differ from the checkpoint's, or that it does not hold: a base,
        a tokenizer or an objective that were objects in memory. Raises InputError if the file is no checkpoint of a
        fit, or is of another base model.
        """
        parameters = inspect.signature(cls).parameters
        taken = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        for name in () if taken else arguments.keys() - parameters:  # Lightning's map_location, say
            raise InputError(f"{cls.__name__} has no such argument; it has {', '.join(parameters)}", name)
        checkpoint = read_checkpoint(checkpoint_path, weights_only, "checkpoint_path")
        module = cls(**from_plain(resume.facts_of(checkpoint)["arguments"], arguments))
        module.configure_model()
        with renamed("ckpt_path", "checkpoint_path"):
            module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        return module

    def go_on_within_window(self) -> set[str]:
        """Check the settings of the checkpoint that a fit goes on from, and put its gradients in their places; the
        settings that are others now."""
        changed: set[str] = set()
        if self._checkpoint_settings is not None:
            within = bool(self._open_window)
            changed = resume.check_settings(self._checkpoint_settings, resume.settings_of(self), within_window=within)
        trained = self.trained()
        for name, gradients in self._open_window.items():
            trained[name].grad = gradients[self.global_rank].to(trained[name].device).clone()
        self._open_window, self._checkpoint_settings = {}, None
        return changed

    def trained(self) -> dict[str, Tensor]:
        """The adapter's factors, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _base_facts(self) -> dict[str, str]:
        digest = resume.base_hash(self.model, self._base_weights())
        return {"name": self.base, "dtype": self.dtype_name, "sha256": digest}

    def _base_weights(self) -> str:
        """The hash of the base's weights, taken once."""
        if self._base_weights_hash is None:
            self._base_weights_hash = base_weights_hash(self.model)
        return self._base_weights_hash

    def _gradients(self, parameter: Tensor) -> Tensor:
        """[processes, ...]: each process adds up its own within a window."""
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gathered = self.all_gather(own)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(self.trainer.world_size, *parameter.shape)
