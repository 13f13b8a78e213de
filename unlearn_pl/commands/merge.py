"""`unlearn-pl merge`: two or more LoRA adapters, or full checkpoints, of one base model into one."""

from pathlib import Path

from unlearn_pl.analysis.anatomy import MergeReports
from unlearn_pl.checkpoints.merge import CheckpointOptions, merge_checkpoints
from unlearn_pl.commands.merge_table import print_methods
from unlearn_pl.errors import InputError
from unlearn_pl.files import check_outputs
from unlearn_pl.merging.adapters import read_adapters
from unlearn_pl.merging.factors import delta_angle, delta_norm, norm, sign_conflict
from unlearn_pl.merging.merge import MergedAdapter, refuse_dense
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.load import blamed_on, load_base, load_skeleton, refuse_quantised
from unlearn_pl.models.tokenizer import FILES, find_tokenizer

DEFAULTS = CheckpointOptions()


def merge(
    base: str,
    adapters: list[str] | None = None,
    output: str | None = None,
    checkpoints: list[str] | None = None,
    save_model: str | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
    options: CheckpointOptions = DEFAULTS,
) -> None:
    """Merge LoRA adapters of one base model into one adapter, or full checkpoints into one checkpoint.

    `unlearn-pl merge --list` prints all methods. Names without an ending merge A with A and B with B, so all adapters
    must have started from the same A (the same seed); cat, task_arithmetic, average, slerp and the names ending in _svd
    or _dense merge the weight deltas B A. Checkpoints are merged by their differences to the base's weights, tensor by
    tensor from the disk, in folders that `from_pretrained` would read alike. The ties kinds take means, others sums:
    weights of 1 1 then give about the scale of both together. Beside an output of adapters that is called `adapter` are
    written `anatomy.json` (signs in conflict, trimmed mass and sizes of the deltas by layer) and `spectrum.json`.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Two or more PEFT adapter folders.
        output: Folder for the merged PEFT adapter, or for the merged checkpoint.
        checkpoints: Two or more model folders with safetensors files, instead of adapters.
        save_model: Folder for the merged model too: base weights with the merged adapter in them, and the tokenizer.
        tokenizer: Folder or hub name of the tokenizer, saved with the merged adapter and model. Needed where an
            adapter's folder holds another one than the base's; if not given, the base's is saved with the model.
        overwrite: Replace the output folders if they exist.
        options: How they are merged, and full weights read and written.
    """
    if adapters is not None and checkpoints is None:
        outputs = {"output": output, "save_model": save_model}
        print(merge_folders(base, adapters, outputs, tokenizer, overwrite, options))
    elif checkpoints is not None and adapters is None:
        if tokenizer is not None:
            raise InputError(f"is for adapters; merged checkpoints get the base's, got {tokenizer}", "tokenizer")
        if save_model is not None or output is None:
            raise InputError("full checkpoints give one model folder, which is output; leave save_model out", "output")
        merged = merge_checkpoints(base, checkpoints, output, options, overwrite=overwrite)
        print(f"merged {len(checkpoints)} checkpoints by {merged.settings.method.name}: wrote the model {output}")
    else:
        raise InputError("either these or checkpoints must be given, and not both", "adapters")


def listing() -> None:
    """Print the table of methods."""
    print_methods()


def merge_folders(
    base: str,
    adapters: list[str],
    outputs: dict[str, str | None],
    tokenizer: str | None,
    overwrite: bool,
    options: CheckpointOptions,
) -> str:
    """Merge adapters into the folders ``output`` and ``save_model``, of which one may be None; what is printed."""
    settings = options.settings(len(adapters))
    output, save_model = outputs["output"], outputs["save_model"]
    check_adapter_outputs(base, adapters, outputs, overwrite, options)
    if output is not None:
        refuse_dense(settings)
    read = read_adapters(adapters, settings)
    asked = save_model is not None or tokenizer is not None or any(map(holds_tokenizer, adapters))
    with blamed_on("base"):
        cutter = find_tokenizer(base, adapters, tokenizer, options.trust_remote_code) if asked else None
        if save_model is None:
            model = load_skeleton(base, options.trust_remote_code)
        else:
            model = load_base(base, options.dtype or "float32", options.trust_remote_code)
    if save_model is not None:
        refuse_quantised(model, "save_model")
        refuse_broken(model, "save_model")
    merged = MergedAdapter.of(model, read, settings)
    merged.save(
        output, save_model=save_model, base=model, tokenizer=cutter,
        beside_adapter=tokenizer is not None, overwrite=overwrite,
    )  # fmt: skip
    if output is not None and Path(output).name == "adapter":  # and not among files that may be anybody's
        MergeReports.of(merged).write(Path(output).parent)
    written = [f"the adapter {output}"] * (output is not None) + [f"the model {save_model}"] * (save_model is not None)
    return f"{summary(merged)}\nwrote {' and '.join(written)}"


def check_adapter_outputs(
    base: str, adapters: list[str], outputs: dict[str, str | None], overwrite: bool, options: CheckpointOptions
) -> None:
    """Raise InputError for folders that cannot be written, and for options that are for other ones."""
    if not any(outputs.values()):
        raise InputError("a folder for the merged adapter is needed, or save_model for a merged model", "output")
    check_outputs(outputs, [base, *adapters], overwrite)
    if options.shard_gb is not None:
        raise InputError(f"is for checkpoints, got {options.shard_gb} with adapters", "shard_gb")
    if options.dtype is not None and outputs["save_model"] is None:
        raise InputError(f"is for save_model or checkpoints; an adapter is float32, got {options.dtype}", "dtype")


def holds_tokenizer(folder: str) -> bool:
    """Whether a tokenizer was saved in the folder."""
    return any((Path(folder) / name).is_file() for name in FILES)


def summary(merged: MergedAdapter) -> str:
    """One line: the method and the sizes of the weight deltas before and after."""
    adapters, settings = merged.adapters, merged.settings
    norms = " and ".join(f"{delta_norm(adapter.factors, adapter.scaling):.4g}" for adapter in adapters)
    weights = " ".join(f"{weight:g}" for weight in settings.weights)
    density = "" if settings.options.density is None else f", density {settings.options.density:g}"
    scale = "" if settings.scale == 1 else f", scale {settings.scale:g}"
    text = f"merged by {settings.method.name} (weights {weights}{density}{scale}): delta norms {norms} -> "
    text += f"{norm(merged.deltas):.4g}"
    if len(adapters) == 2:
        one, other = adapters
        angle = delta_angle(one.factors, one.scaling, other.factors, other.scaling)
        text += "" if angle is None else f"; the two deltas are {angle:.1f} degrees apart"
        if settings.method.space == "factors":
            text += f"; {sign_conflict(one.factors, other.factors):.1%} of the factor entries differ in sign"
    return text
