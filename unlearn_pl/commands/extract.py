"""`unlearn-pl extract`: the difference between two checkpoints as a LoRA adapter."""

from unlearn_pl.checkpoints.extract import Extraction, extract_adapter


def extract(
    base: str, tuned: str, output: str, rank: int = 32, trust_remote_code: bool = False, overwrite: bool = False
) -> None:
    """Write what training changed in a model's linear layers as a LoRA adapter of the base model.

    Of each layer's difference the adapter holds the best approximation of the given rank. Differences elsewhere
    (embeddings, norms, biases) cannot be held: a warning says how large they are.

    Args:
        base: Folder of the base model (safetensors files).
        tuned: Folder of the model that was trained from it, whole.
        output: Folder for the PEFT adapter.
        rank: Rank of the adapter, at most the smallest side of a linear layer.
        trust_remote_code: Run the Python code that the base model brings along.
        overwrite: Replace the output folder if it exists.
    """
    found = extract_adapter(base, tuned, rank, output, overwrite=overwrite, trust_remote_code=trust_remote_code)
    print(summary(found, rank))
    print(f"wrote the adapter {output}")


def summary(found: Extraction, rank: int) -> str:
    """One line: how much of the difference the adapter holds."""
    changed = sum(norm > 0 for norm in found.norms.values())
    text = f"extracted rank {rank} from {changed} of {len(found.norms)} linear layers that differ: relative error "
    text += f"{found.relative_error:.4g}"
    if found.others:
        text += f"; {len(found.others)} other tensors differ ({found.share_of_others:.2%} of the norm), not held"
    return text
