"""The table of all merge methods, on the terminal."""

from rich.console import Console
from rich.table import Table

from unlearn_pl.merging.kernels import KERNELS, PARAMETERS, Kernel
from unlearn_pl.merging.methods import CHECKPOINT_METHODS, METHODS, Method

OTHER_NAMES = """
Where signs are elected, --vote plain is PEFT's rule for weights (also on checkpoints, if not said otherwise), and
weighted is mergekit's. In mergekit's names `average` here is its linear, `linear` and `task_arithmetic` are its
task_arithmetic, `slerp` is its nuslerp with a base (its slerp mixes whole weights), its epsilon is half of ours.
Its dare_ties does not divide by the weights, all our ties kinds do; its sce also leaves out the entries that were not
selected, which the authors' release merges (the same at density 1)."""


def print_methods() -> None:
    """Print a line a kernel: its names by what is merged, its parameters, what it does to scale, its paper."""
    console = Console(width=170)
    table = Table("Kernel", "A and B apart", "deltas B A", "checkpoints", "Parameters", "Two equal ones, 1 1", "Paper")
    for kernel in KERNELS.values():
        table.add_row(*kernel_row(kernel))
    console.print(table)
    print(
        "Names in the second and third column merge adapters (--adapters), those in the fourth full checkpoints.\n"
        "Deltas: names ending in _svd are cut to --svd-rank; those ending in _dense are kept whole, for --save-model;\n"
        "the others are exact, at the sum of the ranks. All take --scale (default 1), a factor of the merged delta.\n"
        + OTHER_NAMES
    )


def kernel_row(kernel: Kernel) -> list[str]:
    """The cells of one kernel."""
    spaces = {
        "factors": names(kernel, METHODS, "factors"),
        "delta": names(kernel, METHODS, "delta"),
        "checkpoint": names(kernel, CHECKPOINT_METHODS, "checkpoint"),
    }
    parameters = [
        f"--{name.replace('_', '-')} {PARAMETERS[name].range}, {PARAMETERS[name].default}" for name in kernel.parameters
    ]
    if kernel.takes_weights:
        parameters.insert(0, "--weights" + (" above 0" if kernel.why_unsigned else " (negative subtracts)"))
    if kernel.random:
        parameters.append("--seed, 42")
    scale = [method.scale for method in METHODS.values() if method.kernel is kernel]
    return [kernel.name, *spaces.values(), "\n".join(parameters), "\n".join(dict.fromkeys(scale)), kernel.paper]


def names(kernel: Kernel, methods: dict[str, Method], space: str) -> str:
    """The names of a kernel in a space, a dash without any."""
    found = [name for name, method in methods.items() if method.kernel is kernel and method.space == space]
    return "\n".join(found) or "-"
