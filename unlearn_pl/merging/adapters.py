"""The adapters that go into a merge: read from their folders and checked, alone and against each other."""

import itertools
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn_pl.errors import InputError, json_kind, one_line
from unlearn_pl.files import sha256_of
from unlearn_pl.merging.factors import Factors, embeddings_of, factors_of, shared_start
from unlearn_pl.merging.folding import is_transposed
from unlearn_pl.merging.options import MergeSettings
from unlearn_pl.models.adapter_folder import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.models.mergeable import why_unmergeable

# Ends the names of the base's own weights in an adapter file: PEFT stores those of an adapted vocabulary head too.
BASE_COPY = ".base_layer.weight"
SAME_START = 0.5


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, read from its folder."""

    folder: Path
    config: dict[str, Any]
    factors: dict[str, Factors]
    facts: dict[str, Any]
    """What training wrote beside the adapter; empty for an adapter made elsewhere."""
    embeddings: frozenset[str] = frozenset()
    """The modules that are embeddings; all others are linear layers."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the base that PEFT stored with the adapter, as it does for a vocabulary head or an embedding."""

    @property
    def ranks(self) -> dict[str, int]:
        """The rank by module."""
        return {module: pair.a.shape[0] for module, pair in self.factors.items()}

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(self.ranks.values())

    @property
    def linear(self) -> dict[str, Factors]:
        """The factors of the linear layers."""
        return {module: pair for module, pair in self.factors.items() if module not in self.embeddings}

    @property
    def sha256(self) -> str:
        """Hash of the weights file."""
        return sha256_of(self.folder / WEIGHTS_FILE)

    @property
    def scaling(self) -> dict[str, float]:
        """By module, the factor of B A: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        alphas = by_pattern(self.config.get("alpha_pattern"), self.factors, self.config["lora_alpha"])
        power = 0.5 if self.config.get("use_rslora") else 1
        return {module: alphas[module] / rank**power for module, rank in self.ranks.items()}


def by_pattern(patterns: dict[str, Any] | None, modules: Iterable[str], default: Any) -> dict[str, Any]:
    """By module what `alpha_pattern` or `rank_pattern` of an adapter says, ``default`` where no pattern matches."""
    patterns = patterns or {}
    keys = {module: get_pattern_key(patterns, module.removeprefix(PREFIX)) for module in modules}
    return {module: patterns.get(key, default) for module, key in keys.items()}


def read_adapters(folders: Sequence[str | Path], settings: MergeSettings) -> list[Adapter]:
    """Read every adapter, then check them against each other and the method. Needs no base model.

    Warns if they name different base models, or if their A factors look unrelated and the method needs them alike.
    Raises InputError for an adapter that cannot be merged by this method, with the reason.
    """
    adapters = [read_adapter(folder) for folder in folders]
    check_alike(adapters)
    check_sizes(adapters, settings)
    if settings.method.space == "factors":
        check_shared_start(adapters)
    return adapters


def read_adapter(folder: str | Path, name: str = "adapters") -> Adapter:
    """One adapter. Raises InputError, about the parameter ``name``, if it is not a plain LoRA of linear layers and
    embeddings, in PEFT's format, all finite."""
    folder = Path(folder).expanduser()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InputError(
                f"{folder} has no {file}; a PEFT adapter folder has {CONFIG_FILE} and {WEIGHTS_FILE}", name
            )
    config = _read_object(folder / CONFIG_FILE, name)
    check_config(config, str(folder), name)
    try:
        with warnings.catch_warnings(action="ignore"):  # they come where it is used
            LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # its fields have no types at run time: each value fails in its own way
        raise InputError(f"{folder}: {CONFIG_FILE} is not what PEFT writes: {one_line(error)}", name) from error
    state = _read_tensors(folder / WEIGHTS_FILE, name)
    copies = {tensor: state.pop(tensor) for tensor in list(state) if tensor.endswith(BASE_COPY)}
    factors = factors_of(state, str(folder), name)
    ranks = by_pattern(config.get("rank_pattern"), factors, config["r"])
    for module, (a, _) in factors.items():
        if a.shape[0] != ranks[module]:
            raise InputError(
                f"{folder}: {CONFIG_FILE} says rank {ranks[module]} of {module}, it has {a.shape[0]}", name
            )
    facts = _read_object(folder / FACTS_FILE, name) if (folder / FACTS_FILE).is_file() else {}
    return Adapter(folder, config, factors, facts, embeddings_of(state), copies)


def check_config(config: dict[str, Any], where: str, name: str = "adapters") -> None:
    """Raise InputError unless A, B and the scaling are all there is to the adapter."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: must be a LoRA adapter, its peft_type is {config.get('peft_type')}", name)
    for key in ("r", "lora_alpha"):
        if not is_positive(value := config.get(key)):
            raise InputError(f"{where}: {key} in {CONFIG_FILE} must be a number above 0, got {value!r:.80}", name)
    for key in ("rank_pattern", "alpha_pattern"):
        values = config.get(key) or {}
        if not isinstance(values, dict) or not all(is_positive(value) for value in values.values()):
            raise InputError(f"{where}: {key} in {CONFIG_FILE} must hold numbers above 0, got {values!r:.80}", name)
    for key in ("target_modules", "exclude_modules"):
        names = config.get(key) or []
        if not isinstance(names, str) and not (
            isinstance(names, list | set) and all(isinstance(n, str) for n in names)
        ):
            raise InputError(f"{where}: {key} in {CONFIG_FILE} must be names of layers, got {names!r:.80}", name)
    if (reason := why_unmergeable(config)) is not None:
        raise InputError(f"{where} cannot be merged: {reason}", name)


def is_positive(value: Any) -> bool:
    """Whether ``value`` is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Same modules with the same inputs and outputs in all; different names of the base are a warning."""
    for other in adapters[1:]:
        _check_pair(adapters[0], other)
    bases = {str(adapter.config.get("base_model_name_or_path")) for adapter in adapters}
    if len(bases) > 1:
        warnings.warn(f"the adapters name different base models, the given one is used: {sorted(bases)}", stacklevel=2)


def _check_pair(first: Adapter, other: Adapter) -> None:
    for copy in first.copies.keys() & other.copies.keys():
        if not torch.equal(first.copies[copy], other.copies[copy]):
            raise InputError(
                f"must fit the same base; {copy}, which is stored with the adapter, differs between {first.folder} and "
                f"{other.folder}",
                "adapters",
            )
    odd = sorted(first.factors.keys() ^ other.factors.keys())
    if odd:
        raise InputError(
            f"must adapt the same modules; {len(odd)} are in only one of {first.folder} and {other.folder}, such as "
            f"{odd[0]}",
            "adapters",
        )
    for module, pair in first.factors.items():
        size, other_size = _in_out(pair), _in_out(other.factors[module])
        if size != other_size:
            raise InputError(
                f"must fit the same base; {module} has (in, out) {size} in {first.folder} and {other_size} in "
                f"{other.folder}",
                "adapters",
            )


def check_sizes(adapters: Sequence[Adapter], settings: MergeSettings) -> None:
    """Raise InputError for ranks that the method cannot merge, and for a density that leaves nothing of a tensor."""
    method = settings.method
    for module, pair in adapters[0].factors.items():
        ranks, bound = [adapter.ranks[module] for adapter in adapters], min(_in_out(pair))
        if method.equal_ranks and len(set(ranks)) > 1:
            raise InputError(
                f"{method.name} needs equal ranks, got {ranks} of {module}; cat and the svd methods do not", "adapters"
            )
        rank = settings.svd_rank or max(ranks)
        if method.truncates and rank > bound:
            source = "got" if settings.svd_rank else "and by default it is the largest rank of the adapters,"
            raise InputError(f"must be at most {bound}, the smaller side of {module}, {source} {rank}", "svd_rank")
    if settings.options.density is not None:
        _check_density(adapters, settings, settings.options.density)


def _check_density(adapters: Sequence[Adapter], settings: MergeSettings, density: float) -> None:
    if settings.method.space == "factors":
        entries = min(t.numel() for adapter in adapters for pair in adapter.factors.values() for t in pair)
    else:
        entries = min(math.prod(_in_out(pair)) for pair in adapters[0].factors.values())
    if int(density * entries) < 1:
        raise InputError(
            f"{density} keeps nothing of the smallest tensor ({entries} entries); at least {1 / entries:.2g} is needed",
            "density",
        )


def check_shared_start(adapters: Sequence[Adapter]) -> None:
    """Merging A with A means something only if the adapters started from one A: the same module, seed and rank.

    With another A the merged product is unrelated to either delta. Training records a hash of the A it started from;
    where one is missing, the cosine between the final A factors stands in for it.
    """
    for one, other in itertools.combinations(adapters, 2):
        starts = (one.facts.get("lora_init_sha256"), other.facts.get("lora_init_sha256"))
        advice = "train them with the same seed, or merge the weight deltas with ties_svd"
        if None not in starts:
            if starts[0] != starts[1]:
                raise InputError(
                    f"{one.folder} and {other.folder} started from different A factors, which a merge in factor space "
                    f"cannot mix; {advice}",
                    "adapters",
                )
        elif (cosine := shared_start(one.linear, other.linear)) < SAME_START:
            warnings.warn(
                f"the A factors of {one.folder} and {other.folder} have a mean cosine of {cosine:.3f}: they probably "
                f"started from different ones, and a merge in factor space then makes no sense; {advice}",
                stacklevel=2,
            )


def check_base(base: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Raise InputError unless ``base`` has a layer of the right size for every adapted module (the adapters agree)."""
    modules = dict(base.named_modules())
    for name, (a, b) in adapters[0].factors.items():
        layer = modules.get(name.removeprefix(PREFIX))
        size = (b.shape[0], a.shape[1])
        if layer is None or isinstance(layer, nn.Embedding) != (name in adapters[0].embeddings):
            kind = "embedding" if name in adapters[0].embeddings else "linear layer"
            raise InputError(f"does not fit the adapters: it has no {kind} {name.removeprefix(PREFIX)}", "base")
        if layer_size(layer) != size:
            raise InputError(
                f"does not fit the adapters: {name.removeprefix(PREFIX)} has (out, in) {layer_size(layer)}, the "
                f"adapters are for {size}",
                "base",
            )


def layer_size(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer that LoRA can adapt, whatever the form in which its weights are stored."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return (columns, rows) if is_transposed(layer) else (rows, columns)


def _in_out(pair: Factors) -> tuple[int, int]:
    """Both sizes of the delta [out, in]."""
    return pair.a.shape[1], pair.b.shape[0]


def _read_object(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path.parent}: {path.name} is not JSON: {error}", name) from error
    if not isinstance(value, dict):
        raise InputError(f"{path.parent}: {path.name} must hold a JSON object, got {json_kind(value)}", name)
    return value


def _read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.parent}: {path.name} cannot be read: {error}", name) from error
    for tensor, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{path.parent}: {tensor} holds NaN or infinite numbers", name)
    return state
