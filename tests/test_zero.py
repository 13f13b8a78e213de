"""What DeepSpeed is refused for, in one line, before anything is read; it runs on CUDA alone, so no test trains."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DeepSpeedStrategy

from unlearn_pl.errors import InputError
from unlearn_pl.training import zero
from unlearn_pl.training.supported import refuse_names, refuse_unsupported


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were there; nothing of it is called."""
    monkeypatch.setattr(zero, "find_spec", lambda name: object())


def trainer(stage: int | None = 2, config: dict[str, Any] | None = None, **options: Any) -> Any:
    """What of a trainer is looked at; all as it must be, but for what is given. Its strategy has a configuration such
    as Lightning makes of ``stage``, and no more: to make one whole, the package must be there."""
    strategy = object.__new__(DeepSpeedStrategy)
    strategy.config = {"zero_allow_untested_optimizer": True, "zero_optimization": {"stage": stage}} | (config or {})
    plain = {
        "strategy": strategy,
        "accelerator": CUDAAccelerator(),
        "precision": "32-true",
        "precision_plugin": None,
        "accumulate_grad_batches": 1,
        "gradient_clip_algorithm": None,
        "checkpoint_callbacks": [],
        "callbacks": [],
        "_accelerator_connector": SimpleNamespace(cluster_environment=LightningEnvironment()),
        "num_devices": 2,
        "num_nodes": 1,
    }
    return SimpleNamespace(**plain | options)


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_that_leave_the_base_whole_are_taken(stage: int) -> None:
    refuse_unsupported(trainer(stage))
    zero.refuse_fit_in_zero(trainer(stage), "fit", "float32")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stage": 3}, r"^strategy: of DeepSpeed, stages 1 and 2 .*, got stage 3$"),
        (
            {"config": {"zero_optimization": {"stage": 2, "offload_optimizer": {}}}},
            "got stage 2 with offload_optimizer$",
        ),
        ({"stage": 1, "config": {"optimizer": {}}}, "got stage 1 with optimizer$"),
        ({"stage": None}, "^strategy: .*, got stage None$"),
        ({"accelerator": CPUAccelerator()}, "^strategy: Lightning runs DeepSpeed on CUDA alone, got CPUAccelerator"),
        ({"precision": "bf16-mixed"}, "^precision: must be 32-true under DeepSpeed, .*, got bf16-mixed$"),
        (
            {"accumulate_grad_batches": 4},
            r"^accumulate_grad_batches: .*, got 4; data\.micro_batches gives the same grad",
        ),
        ({"gradient_clip_algorithm": "value"}, "^gradient_clip_algorithm: must be norm under DeepSpeed, got value$"),
        ({"checkpoint_callbacks": [object()]}, "^enable_checkpointing: must be false under DeepSpeed"),
    ],
)
def test_what_ddp_would_compute_otherwise_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        refuse_unsupported(trainer(**given))


def test_a_base_in_half_precision_and_other_verbs_are_refused() -> None:
    with pytest.raises(InputError, match=r"^dtype: must be float32 under DeepSpeed, as the adapter is, got bfloat16"):
        zero.refuse_fit_in_zero(trainer(), "fit", "bfloat16")
    with pytest.raises(InputError, match=r"^strategy: DeepSpeed trains alone; validate by ddp"):
        zero.refuse_fit_in_zero(trainer(), "validate", "float32")


@pytest.mark.parametrize("name", zero.NAMES)
def test_without_the_package_its_name_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_names(name, None)
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"^strategy: {name} needs the package deepspeed: pip install 'unlearn-pl\["):
        refuse_names(name, None)
