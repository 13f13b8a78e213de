"""The adapters that go into a merge: read from their folders and checked, alone and against each other."""

import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of
from unlearn_pl.merging.factors import Factors, embeddings_of, factors_of, shared_start
from unlearn_pl.merging.methods import MergeSettings
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.models.mergeable import why_unmergeable

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# PEFT puts it before the base model's module names.
PREFIX = "base_model.model."

# Ends the names of the base's own weights in an adapter file: PEFT stores those of an adapted vocabulary head too.
BASE_COPY = ".base_layer.weight"
SAME_START = 0.5


@dataclass(frozen=True)
class Parent:
    """A LoRA adapter folder."""

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


def read_parents(folders: Sequence[str | Path], settings: MergeSettings) -> list[Parent]:
    """Read every adapter, then check them against each other and the method. Needs no base model.

    Warns if they name different base models, or if their A factors look unrelated and the method needs them alike.
    Raises InputError for an adapter that cannot be merged by this method, with the reason.
    """
    parents = [read_parent(folder) for folder in folders]
    check_alike(parents)
    check_sizes(parents, settings)
    if settings.method.space == "factors":
        check_shared_start(parents)
    return parents


def read_parent(folder: str | Path) -> Parent:
    """One adapter. Raises InputError if it is not a plain LoRA of linear layers and embeddings, in PEFT's format, all
    finite."""
    folder = Path(folder).expanduser()
    where = f"--adapters: {folder}"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{where} has no {name}; a PEFT adapter folder has {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = _read_object(folder / CONFIG_FILE, where)
    check_config(config, where)
    state = _read_tensors(folder / WEIGHTS_FILE, where)
    copies = {name: state.pop(name) for name in list(state) if name.endswith(BASE_COPY)}
    factors = factors_of(state, where)
    ranks = by_pattern(config.get("rank_pattern"), factors, config["r"])
    for module, (a, _) in factors.items():
        if a.shape[0] != ranks[module]:
            raise InputError(f"{where}: {CONFIG_FILE} says rank {ranks[module]} of {module}, it has {a.shape[0]}")
    facts = _read_object(folder / FACTS_FILE, where) if (folder / FACTS_FILE).is_file() else {}
    return Parent(folder, config, factors, facts, embeddings_of(state), copies)


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise InputError unless A, B and the scaling are all there is to the adapter."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: must be a LoRA adapter, its peft_type is {config.get('peft_type')}")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)) or config[name] <= 0:
            raise InputError(f"{where}: {name} in {CONFIG_FILE} must be a number above 0, got {config.get(name)}")
    if (reason := why_unmergeable(config)) is not None:
        raise InputError(f"{where} cannot be merged: {reason}")


def check_alike(parents: Sequence[Parent]) -> None:
    """Same modules with the same inputs and outputs in all; different names of the base are a warning."""
    first = parents[0]
    for other in parents[1:]:
        for name in first.copies.keys() & other.copies.keys():
            if not torch.equal(first.copies[name], other.copies[name]):
                raise InputError(
                    f"--adapters: must fit the same base; {name}, which is stored with the adapter, differs between "
                    f"{first.folder} and {other.folder}"
                )
        odd = sorted(first.factors.keys() ^ other.factors.keys())
        if odd:
            raise InputError(
                f"--adapters: must adapt the same modules; {len(odd)} are in only one of {first.folder} and "
                f"{other.folder}, such as {odd[0]}"
            )
        for module, (a, b) in first.factors.items():
            size, other_size = (a.shape[1], b.shape[0]), _in_out(other.factors[module])
            if size != other_size:
                raise InputError(
                    f"--adapters: must fit the same base; {module} has (in, out) {size} in {first.folder} and "
                    f"{other_size} in {other.folder}"
                )
    bases = {str(parent.config.get("base_model_name_or_path")) for parent in parents}
    if len(bases) > 1:
        warnings.warn(f"the adapters name different base models, the given one is used: {sorted(bases)}", stacklevel=2)


def check_sizes(parents: Sequence[Parent], settings: MergeSettings) -> None:
    """Ranks that the method can merge, and a density that leaves at least one entry of every tensor."""
    method, sizes = settings.method, [_in_out(pair) for pair in parents[0].factors.values()]
    for module in parents[0].factors:
        ranks, bound = [parent.ranks[module] for parent in parents], min(_in_out(parents[0].factors[module]))
        if method.equal_ranks and len(set(ranks)) > 1:
            raise InputError(
                f"--adapters: {method.name} needs equal ranks, got {ranks} of {module}; cat and the svd methods do not"
            )
        rank = settings.svd_rank or max(ranks)
        if method.truncates and rank > bound:
            source = "got" if settings.svd_rank else "and by default it is the largest rank of the adapters,"
            raise InputError(f"--svd-rank: must be at most {bound}, the smaller side of {module}, {source} {rank}")
    if settings.options.density is not None:
        tensors = (t for parent in parents for pair in parent.factors.values() for t in pair)
        entries = min(t.numel() for t in tensors) if method.space == "factors" else min(i * o for i, o in sizes)
        if int(settings.options.density * entries) < 1:
            raise InputError(
                f"--density: {settings.options.density} keeps nothing of the smallest tensor ({entries} entries); "
                f"at least {1 / entries:.2g} is needed"
            )


def check_shared_start(parents: Sequence[Parent]) -> None:
    """Merging A with A means something only if the adapters started from one A: the same module, seed and rank.

    With another A the merged product is unrelated to either delta. Training records a hash of the A it started from;
    where one is missing, the cosine between the final A factors stands in for it.
    """
    for one, other in itertools.combinations(parents, 2):
        starts = (one.facts.get("lora_init_sha256"), other.facts.get("lora_init_sha256"))
        advice = "train them with the same seed, or merge the weight deltas with ties_svd"
        if None not in starts:
            if starts[0] != starts[1]:
                raise InputError(
                    f"--adapters: {one.folder} and {other.folder} started from different A factors, which a merge in "
                    f"factor space cannot mix; {advice}"
                )
        elif (cosine := shared_start(one.linear, other.linear)) < SAME_START:
            warnings.warn(
                f"the A factors of {one.folder} and {other.folder} have a mean cosine of {cosine:.3f}: they probably "
                f"started from different ones, and a merge in factor space then makes no sense; {advice}",
                stacklevel=2,
            )


def _in_out(pair: Factors) -> tuple[int, int]:
    return pair.a.shape[1], pair.b.shape[0]


def _read_object(path: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{where}: {path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {path.name} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where}: {path.name} cannot be read: {error}") from error
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{where}: {name} holds NaN or infinite numbers")
    return state
