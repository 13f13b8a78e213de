"""`unlearn-pl merge`: two or more LoRA adapters of one base model into one."""

from itertools import combinations
from pathlib import Path

from unlearn_pl.errors import InputError
from unlearn_pl.files import refuse_existing
from unlearn_pl.merging.adapters import merge_facts, merge_parents, save_merged
from unlearn_pl.merging.factors import delta_norm, sign_conflict
from unlearn_pl.merging.methods import MergeSettings, merge_settings
from unlearn_pl.merging.parents import Parent, read_parent, read_parents
from unlearn_pl.models.load import load_base, load_tokenizer


def merge(
    base: str,
    adapters: list[str],
    output: str,
    method: str = "ties",
    weights: list[float] | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int = 42,
    svd_rank: int | None = None,
    save_model: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Merge LoRA adapters of one base model into one adapter, as PEFT's combination types do.

    linear, ties, dare_linear, dare_ties and magnitude_prune merge A with A and B with B, so all adapters must have
    started from the same A (the same seed). cat, svd and the others ending in svd merge the weight deltas B A. The ties
    kinds take means, the others sums: weights of 1 1 then give about the scale of both adapters together.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Two or more PEFT adapter folders.
        output: Folder for the merged PEFT adapter.
        method: linear, cat, svd, ties, ties_svd, dare_linear, dare_linear_svd, dare_ties, dare_ties_svd,
            magnitude_prune or magnitude_prune_svd.
        weights: One number for each adapter; 1 each if not given. May be negative for cat, svd, dare_linear_svd and
            magnitude_prune_svd.
        density: Share of the entries that is kept before merging, in (0, 1]; 0.8 if not given. Only for the ties, dare
            and magnitude_prune kinds.
        majority_sign: How the ties kinds elect the sign of an entry: total (of the magnitudes, the default) or
            frequency.
        seed: Seed of the random pruning of the dare kinds.
        svd_rank: Rank of the merged adapter for the methods ending in svd; the largest rank of the adapters if not
            given.
        save_model: Folder for the merged model too: base weights with the merged adapter in them, and the tokenizer.
        dtype: Number type in which the base is loaded, merged and saved: float32, bfloat16 or float16.
        overwrite: Replace the output folders if they exist.
    """
    settings = merge_settings(len(adapters), method, weights, density, majority_sign, seed, svd_rank)
    check_outputs(output, save_model, [base, *adapters], overwrite)
    parents = read_parents(adapters, settings)
    tokenizer = load_tokenizer(base) if save_model is not None else None
    model = merge_parents(load_base(base, dtype), parents, settings)
    save_merged(model, output, merge_facts(parents, settings), save_model, tokenizer, overwrite)
    print(summary(parents, settings, read_parent(output)))
    print(f"wrote the adapter {output}" + (f" and the model {save_model}" if save_model is not None else ""))


def check_outputs(output: str, save_model: str | None, inputs: list[str], overwrite: bool) -> None:
    """Raise InputError if an output exists, or if writing it would replace an input or the other output."""
    outputs = {"--output": output} | ({"--save-model": save_model} if save_model is not None else {})
    for argument, path in outputs.items():
        refuse_existing(path, overwrite, argument)
        inside = [name for name in inputs if Path(name).resolve().is_relative_to(Path(path).resolve())]
        if inside:
            raise InputError(f"{argument}: {path} would replace {inside[0]}, which is read; give another folder")
    for one, other in combinations([Path(path).resolve() for path in outputs.values()], 2):
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise InputError(f"--save-model: must be apart from --output, got {save_model} and {output}")


def summary(parents: list[Parent], settings: MergeSettings, merged: Parent) -> str:
    """One line: the method and the sizes of the weight deltas before and after."""
    norms = " and ".join(f"{delta_norm(parent.factors, parent.scaling):.4g}" for parent in parents)
    weights = " ".join(f"{weight:g}" for weight in settings.weights)
    density = "" if settings.density is None else f", density {settings.density:g}"
    text = f"merged by {settings.method.name} (weights {weights}{density}): delta norms {norms} -> "
    text += f"{delta_norm(merged.factors, merged.scaling):.4g}"
    if settings.method.space == "factors" and len(parents) == 2:
        text += f"; {sign_conflict(parents[0].factors, parents[1].factors):.1%} of the factor entries differ in sign"
    return text
