"""`unlearn-pl merge`: two or more LoRA adapters, or full checkpoints, of one base model into one."""

import math
from itertools import combinations
from pathlib import Path

from unlearn_pl.checkpoints.folder import SHARD_BYTES
from unlearn_pl.checkpoints.merge import merge_checkpoints
from unlearn_pl.commands.merge_table import print_methods
from unlearn_pl.errors import InputError
from unlearn_pl.files import refuse_existing
from unlearn_pl.merging.adapters import MergedAdapter, merge_parents, refuse_dense, save_merged
from unlearn_pl.merging.factors import delta_angle, delta_norm, sign_conflict
from unlearn_pl.merging.merge import norm
from unlearn_pl.merging.methods import MergeSettings, merge_settings
from unlearn_pl.merging.parents import read_parents
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.load import load_base, load_skeleton, refuse_quantised
from unlearn_pl.models.tokenizer import FILES, find_tokenizer


def merge(
    base: str,
    adapters: list[str] | None = None,
    output: str | None = None,
    checkpoints: list[str] | None = None,
    method: str = "ties",
    weights: list[float] | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    vote: str | None = None,
    epsilon: float | None = None,
    outliers: float | None = None,
    scale: float = 1.0,
    seed: int = 42,
    svd_rank: int | None = None,
    save_model: str | None = None,
    dtype: str | None = None,
    shard_gb: float | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Merge LoRA adapters of one base model into one adapter, or full checkpoints into one checkpoint.

    `unlearn-pl merge --list` prints all methods. Names without an ending merge A with A and B with B, so all adapters
    must have started from the same A (the same seed); cat, task_arithmetic, average, slerp and the names ending in _svd
    or _dense merge the weight deltas B A. Checkpoints are merged by their differences to the base's weights, tensor by
    tensor from the disk, in folders that `from_pretrained` would read alike. The ties kinds take means, others sums:
    weights of 1 1 then give about the scale of both together.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Two or more PEFT adapter folders.
        output: Folder for the merged PEFT adapter, or for the merged checkpoint.
        checkpoints: Two or more model folders with safetensors files, instead of adapters.
        method: A name from `unlearn-pl merge --list`.
        weights: One number for each adapter or checkpoint; 1 each if not given. May be negative where that subtracts.
        density: Share of the entries that is kept before merging, in (0, 1]; 0.8 if not given. Only for methods that
            prune. Under the sce kinds, which prune nothing: the share that their weights are found from.
        majority_sign: How the ties kinds elect the sign of an entry: total (of the magnitudes, the default) or
            frequency.
        vote: What a weight does under the ties kinds: plain (all vote alike, the mean divides by their number: PEFT's
            rule, and the default, also for checkpoints) or weighted (weight x entry votes, the mean divides by the
            weights: mergekit's rule; for weight deltas and checkpoints).
        epsilon: How far the drop rates of the della kinds spread, in [0, 1); 0.1 if not given.
        outliers: Share of the largest entries that breadcrumbs drops, in [0, 1); 0.01 if not given.
        scale: Factor of the merged delta.
        seed: Seed of the random pruning of the dare and della kinds.
        svd_rank: Rank of the merged adapter for the methods ending in svd; the largest rank of the adapters if not
            given.
        save_model: Folder for the merged model too: base weights with the merged adapter in them, and the tokenizer.
        dtype: Number type of a merged model: float32, bfloat16 or float16. If not given, float32 for adapters and that
            of the base's tensors for checkpoints.
        shard_gb: Largest file of a merged checkpoint, in 10^9 bytes; 5 if not given. Only with checkpoints.
        tokenizer: Folder or hub name of the tokenizer, saved with the merged adapter and model. Needed where an
            adapter's folder holds another one than the base's; if not given, the base's is saved with the model.
        trust_remote_code: Run the Python code that a base model brings along.
        overwrite: Replace the output folders if they exist.
    """
    if (adapters is None) == (checkpoints is None):
        raise InputError("--adapters: either these or --checkpoints must be given, and not both")
    folders = adapters or checkpoints or []
    settings = merge_settings(
        len(folders), method, weights, density, majority_sign, seed, svd_rank, epsilon, outliers, scale,
        checkpoints=adapters is None, vote=vote,
    )  # fmt: skip
    if adapters is None:
        if tokenizer is not None:
            raise InputError(f"--tokenizer: is for --adapters; merged checkpoints get the base's, got {tokenizer}")
        merge_full(base, folders, output, settings, save_model, dtype, shard_gb, overwrite, trust_remote_code)
        return
    check_outputs(output, save_model, [base, *adapters], overwrite)
    if shard_gb is not None:
        raise InputError(f"--shard-gb: is for --checkpoints, got {shard_gb} with --adapters")
    if dtype is not None and save_model is None:
        raise InputError(f"--dtype: is for --save-model or --checkpoints; an adapter is float32, got {dtype}")
    if output is not None:
        refuse_dense(settings)
    parents = read_parents(adapters, settings)
    asked = save_model is not None or tokenizer is not None or any(map(holds_tokenizer, adapters))
    cutter = find_tokenizer(base, adapters, tokenizer, trust_remote_code) if asked else None
    if save_model is None:
        model = load_skeleton(base, trust_remote_code)
    else:
        model = load_base(base, dtype or "float32", trust_remote_code)
        refuse_quantised(model, "--save-model")
        refuse_broken(model, "--save-model")
    merged = merge_parents(model, parents, settings)
    save_merged(merged, output, save_model, model, cutter, overwrite, beside_adapter=tokenizer is not None)
    print(summary(merged))
    written = [f"the adapter {output}"] * (output is not None) + [f"the model {save_model}"] * (save_model is not None)
    print(f"wrote {' and '.join(written)}")


def holds_tokenizer(folder: str) -> bool:
    """Whether a tokenizer was saved in the folder."""
    return any((Path(folder) / name).is_file() for name in FILES)


def listing() -> None:
    """Print the table of methods."""
    print_methods()


def merge_full(
    base: str,
    checkpoints: list[str],
    output: str | None,
    settings: MergeSettings,
    save_model: str | None,
    dtype: str | None,
    shard_gb: float | None,
    overwrite: bool,
    trust_remote_code: bool,
) -> None:
    """The merge of full checkpoints."""
    if save_model is not None or output is None:
        raise InputError("--output: full checkpoints give one model folder, which is --output; leave --save-model out")
    if shard_gb is not None and not 0 < shard_gb < math.inf:
        raise InputError(f"--shard-gb: must be a number above 0, got {shard_gb}")
    shard_bytes = SHARD_BYTES if shard_gb is None else int(shard_gb * 1e9)
    check_outputs(output, None, [base, *checkpoints], overwrite)
    facts = {"merge": {**settings.facts(), "checkpoints": checkpoints}}
    merge_checkpoints(
        base, checkpoints, output, settings.method.kernel, settings.weights, settings.options, settings.seed,
        settings.scale, dtype, shard_bytes, facts, overwrite, trust_remote_code,
    )  # fmt: skip
    print(f"merged {len(checkpoints)} checkpoints by {settings.method.name}: wrote the model {output}")


def check_outputs(output: str | None, save_model: str | None, inputs: list[str], overwrite: bool) -> None:
    """Raise InputError if an output exists, or if writing it would replace an input or the other output."""
    named = {"--output": output, "--save-model": save_model}
    outputs = {argument: path for argument, path in named.items() if path is not None}
    if not outputs:
        raise InputError("--output: a folder for the merged adapter is needed, or --save-model for a merged model")
    for argument, path in outputs.items():
        refuse_existing(path, overwrite, argument)
        inside = [name for name in inputs if Path(name).resolve().is_relative_to(Path(path).resolve())]
        if inside:
            raise InputError(f"{argument}: {path} would replace {inside[0]}, which is read; give another folder")
    for one, other in combinations([Path(path).resolve() for path in outputs.values()], 2):
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise InputError(f"--save-model: must be apart from --output, got {save_model} and {output}")


def summary(merged: MergedAdapter) -> str:
    """One line: the method and the sizes of the weight deltas before and after."""
    parents, settings = merged.parents, merged.settings
    norms = " and ".join(f"{delta_norm(parent.factors, parent.scaling):.4g}" for parent in parents)
    weights = " ".join(f"{weight:g}" for weight in settings.weights)
    density = "" if settings.options.density is None else f", density {settings.options.density:g}"
    scale = "" if settings.scale == 1 else f", scale {settings.scale:g}"
    text = f"merged by {settings.method.name} (weights {weights}{density}{scale}): delta norms {norms} -> "
    text += f"{norm(merged.deltas):.4g}"
    if len(parents) == 2:
        one, other = parents
        angle = delta_angle(one.factors, one.scaling, other.factors, other.scaling)
        text += "" if angle is None else f"; the two deltas are {angle:.1f} degrees apart"
        if settings.method.space == "factors":
            text += f"; {sign_conflict(one.factors, other.factors):.1%} of the factor entries differ in sign"
    return text
