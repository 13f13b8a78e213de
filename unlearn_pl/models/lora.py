"""LoRA adapters: attaching, switching off for the reference, saving and opening in PEFT's own format."""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn_pl.errors import InputError, memory_fault, one_line
from unlearn_pl.files import new_folder, write_json
from unlearn_pl.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, is_adapter_folder
from unlearn_pl.models.adapter_kind import refuse_kind, refuse_untrainable
from unlearn_pl.models.arrival import check_values, refuse_partial_adapter
from unlearn_pl.models.body import parts_beside_text
from unlearn_pl.models.codes import compute_plainly, is_coded
from unlearn_pl.models.fast.lora import LoraLinear
from unlearn_pl.models.load import quantisation
from unlearn_pl.models.quantised import check_gradients
from unlearn_pl.provenance import provenance

FACTS_FILE = "unlearn_pl.json"
ADAPTER_FILES = (WEIGHTS_FILE, "adapter_model.bin")
TARGETS = "lora.target_modules"


@dataclass(frozen=True)
class Lora:
    """Size and place of the adapter (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 32
    """Rank of each weight delta; at least 1."""
    alpha: float = 32
    """The delta is scaled by alpha / rank; above 0."""
    dropout: float = 0.05
    """Dropout on the adapter's input during training, in [0, 1)."""
    target_modules: str | list[str] = field(default="all-linear")
    """`all-linear` (every linear layer that reads text, but the vocabulary head), a list of module names such as
    [q_proj, v_proj], or a regular expression for whole names."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"must be at least 1, got {self.rank}", "rank")
        if self.alpha <= 0:
            raise InputError(f"must be above 0, got {self.alpha}", "alpha")
        if not 0 <= self.dropout < 1:
            raise InputError(f"must be in [0, 1), got {self.dropout}", "dropout")


def attach_lora(model: PreTrainedModel, lora: Lora, seed: int, fast: bool = True) -> PeftModel:
    """``model`` with a fresh, trainable adapter in float32 and everything else frozen; B is zero, so it starts as the
    base model.

    The A factors are a function of ``seed`` alone. Two adapters that are to be merged in factor space must start
    from the same A, so the over- and the under-forgetting run share it. Without ``fast`` the layers are PEFT's own.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        exclude_modules=parts_beside_text_pattern(model, lora),
        task_type="CAUSAL_LM",
    )
    use_layers(config, model, fast)
    try:
        with torch.random.fork_rng(devices=[]), default_float32(), without_pefts_warnings():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
            draw_factors(adapted, seed)
    except Exception as error:  # PEFT raises whatever a module that it cannot adapt makes fail
        raise InputError(f"{one_line(error)}{advice(lora, error)}", TARGETS) from error
    refuse_routers(adapted)
    refuse_unreadable(adapted)
    check_gradients(adapted)
    if config.target_parameters:
        warnings.warn(EXPERTS.format(targets=lora.target_modules), stacklevel=2)
    return adapted


EXPERTS = (
    "lora.target_modules {targets}: adapts experts, which are bare parameters and not linear layers; such an "
    "adapter can be trained and evaluated, but not merged. A list of attention layers, such as [q_proj, k_proj, "
    "v_proj, o_proj], makes one that can"
)


def parts_beside_text_pattern(model: PreTrainedModel, lora: Lora) -> str | None:
    """What no gradient reaches and is left alone: vision towers and the like, unless a user's pattern names modules."""
    names = [re.escape(name) for name in parts_beside_text(model)]
    own_pattern = isinstance(lora.target_modules, str) and lora.target_modules != "all-linear"
    return rf"({'|'.join(names)})(\..*)?" if names and not own_pattern else None


def advice(lora: Lora, error: Exception) -> str:
    """What to do about PEFT's ``error``, where that is not plain from it."""
    if "ParamWrapper" in str(error):
        return f"; {EXPERTS.format(targets=lora.target_modules)}, with dropout too"
    if isinstance(lora.target_modules, str) and lora.target_modules != "all-linear":
        name = lora.target_modules
        return f"; the text {name} is a regular expression for whole module names, a list such as [q_proj] names ends"
    return ""


def refuse_unreadable(model: PeftModel) -> None:
    """Raise InputError if PEFT would not find its own tensors again: of some families (Laguna) it renames modules when
    an adapter is opened, and not when it is saved."""
    kept = get_peft_model_state_dict(model, save_embedding_layers=False)
    lost = set_peft_model_state_dict(model, dict(kept)).unexpected_keys
    if lost:
        raise InputError(
            f"PEFT could not open the adapter of this base again: {len(lost)} tensors would be lost (first {lost[0]}); "
            "name the attention layers, such as [q_proj, k_proj, v_proj, o_proj]",
            TARGETS,
        )


@torch.no_grad()
def refuse_routers(model: PeftModel) -> None:
    """Raise InputError if an adapter is on a layer that is a linear one by its class alone: routers give a tuple, and
    grouped layers (DeepSeek-V4) take their input in pieces."""
    if quantisation(model) is not None and not any(map(is_coded, model.modules())):
        return
    for name, layer in model.named_modules():
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else None
        if isinstance(base, nn.Linear) and not is_coded(base) and not computes_linearly(base):
            raise InputError(
                f"{name} ({type(base).__name__}) does not compute what a linear layer does; name the attention layers, "
                "such as [q_proj, k_proj, v_proj, o_proj]",
                TARGETS,
            )


def computes_linearly(layer: nn.Linear) -> bool:
    """Whether a layer of a class below ``nn.Linear``, with a forward of its own, gives what is added to: one tensor of
    its size."""
    if type(layer).forward is nn.Linear.forward:
        return True
    try:
        found = layer(torch.zeros(1, layer.in_features).to(layer.weight))
    except Exception:  # it takes other inputs; each fails in its own way
        return False
    return isinstance(found, Tensor) and found.shape == (1, layer.out_features)


def use_layers(config: PeftConfig, model: nn.Module, fast: bool = True) -> None:
    """Let PEFT put layers of this project in the place of linear ones, which adapter files do not name; its own layers
    without ``fast``, and on weights that are stored in codes of other kinds, which those know how to read."""
    coded = any(map(is_coded, model.modules()))
    if coded:
        compute_plainly(model)
    if not (fast and isinstance(config, LoraConfig)):
        return
    if coded:
        from unlearn_pl.models.coded_lora import LAYERS  # needs the package that made the codes

        config._register_custom_module({**LAYERS, nn.Linear: LoraLinear})
    elif quantisation(model) is None:
        config._register_custom_module({nn.Linear: LoraLinear})


@contextmanager
def without_pefts_warnings() -> Iterator[None]:
    """Inside the block PEFT says nothing of missing tensors, which are refused here, nor that a pattern fits no module,
    which it says of every pattern for a parameter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys .*(gate_up_proj|down_proj)")
        yield


@contextmanager
def default_float32() -> Iterator[None]:
    """Inside the block new tensors are float32, whatever Lightning's precision has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def draw_factors(model: PeftModel, seed: int) -> None:
    """Draw each A anew in float32. It is what PEFT drew, if the base is float32; in another type it was rounded."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, a in layer.lora_A.items():
                b = layer.lora_B[name]
                drawn = nn.Linear(a.in_features, a.out_features, bias=False, device="cpu")
                nn.Linear(b.in_features, b.out_features, bias=False, device="cpu")  # PEFT's draws, in their order
                nn.init.kaiming_uniform_(drawn.weight, a=math.sqrt(5))
                a.weight.copy_(drawn.weight)


def open_adapter(model: PreTrainedModel, folder: str | Path, trainable: bool = False, fast: bool = True) -> PeftModel:
    """``model`` with a saved adapter, all of which comes from its file; without ``fast`` in PEFT's own layers.

    Raises InputError if ``folder`` holds none, if a tensor of it is missing, surplus, of another size or not finite,
    or if what it changes is not in the model's layers; and if it is to be trained although it changes the base.
    """
    where = f"adapter: {folder}"
    if not is_adapter_folder(folder):
        raise InputError(f"{where} has no {CONFIG_FILE}; a PEFT adapter folder is needed")
    if not any((Path(folder) / name).is_file() for name in ADAPTER_FILES):  # PEFT would ask the hub
        raise InputError(f"{where} has no {' or '.join(ADAPTER_FILES)}; a PEFT adapter folder has one")
    base = {} if quantisation(model) else model.state_dict()
    try:
        config = PeftConfig.from_pretrained(str(folder), inference_mode=not trainable)
        refuse_kind(config, where)
        use_layers(config, model, fast)
        if trainable:
            refuse_untrainable(config, where)
        renamed = getattr(model, "_checkpoint_conversion_mapping", {})
        weights = load_peft_weights(str(folder), device="cpu", key_mapping=renamed)
        check_values(where, weights, base, getattr(config, "modules_to_save", None))
        with without_pefts_warnings():
            opened = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
        arrived = set_peft_model_state_dict(opened, weights)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{where} does not fit this base model: it has no tensor {error}") from error
    except Exception as error:  # torn and foreign files raise whatever they make fail
        if memory_fault(error):
            raise
        raise InputError(f"{where} does not fit this base model: {one_line(error)}") from error
    expected = get_peft_model_state_dict(opened, save_embedding_layers=False).keys()
    refuse_partial_adapter(where, expected, arrived.missing_keys, arrived.unexpected_keys)
    if trainable:
        check_gradients(opened)
    return opened


@contextmanager
def reference(model: PeftModel) -> Iterator[None]:
    """Inside the block ``model`` is the base model: adapter off, eval mode, no gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(training)


def without_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the block ``model`` has its adapter off, if it has one."""
    return reference(model) if isinstance(model, PeftModel) else nullcontext()


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """A copy on the CPU of the adapter's factors, under the names that an adapter file has."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would ask the hub
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def initial_factors_hash(model: PeftModel) -> str:
    """Hash of the A factors, to be taken before training: equal for adapters that may be merged in factor space."""
    digest = hashlib.sha256()
    for name, value in sorted(adapter_state(model).items()):
        if ".lora_A." in name:
            digest.update(name.encode())
            digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str | Path, **facts: Any) -> None:
    """Write the adapter as PEFT does, and ``facts`` with versions and commit beside it; an older one is replaced."""
    config = model.peft_config[model.active_adapter]
    for name in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save"):
        value = getattr(config, name, None)
        if isinstance(value, (list, set, tuple)):
            setattr(config, name, sorted(value))  # a set is written in another order by every process
    with new_folder(folder, True, "trainer.default_root_dir") as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)
        write_json(temporary / FACTS_FILE, provenance(**facts))
