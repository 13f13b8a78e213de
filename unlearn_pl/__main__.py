"""The command table: verb -> what runs it. Imports are inside, so that --version and --help are quick."""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIGHTNING = "cli:main"
"""Lightning's own command line, which takes the verb too; every other function is parsed by its signature."""

# verb -> (help, "module:function")
VERBS = {
    "run": ("a whole recipe: prepare, fit, merge, balance, evaluate, table", "recipe.run:run"),
    "sweep": ("trials of a W&B sweep file without a server, ranked", "sweep.run:sweep"),
    "fit": ("train an adapter that unlearns", LIGHTNING),
    "validate": ("the loss terms of a model or checkpoint on every pair of rows", LIGHTNING),
    "test": ("the same, under the name test", LIGHTNING),
    "predict": ("the greedy answer to every row's prompt", LIGHTNING),
    "merge": ("merge adapters or checkpoints of one base model; --list shows all methods", "commands.merge:merge"),
    "balance": ("search the merge of two adapters whose membership AUC is one half", "commands.balance:balance"),
    "compare-merges": (
        "score every merge method, as PEFT scales it and at one norm, also over densities",
        "commands.compare_merges:compare_merges",
    ),
    "extract": ("a LoRA adapter from the difference of two checkpoints", "commands.extract:extract"),
    "evaluate": (
        "score a model, with or without an adapter; --list shows all metrics",
        "commands.evaluate:evaluate",
    ),
    "report": ("one page on runs: verdict, tables, figures, every text side by side", "commands.report:report"),
}

TRAINING = (
    "--model.tokens_per_forward, --data.batch_size with more --trainer.accumulate_grad_batches, --model.lora.rank"
)
TRAINING += ", --model.gradient_checkpointing=true, --model.dtype=bfloat16"
SCORING = "--generation.batch_size, --membership.batch_size, --choice.batch_size, --dtype=bfloat16"
LESS_MEMORY = {
    **dict.fromkeys(("fit", "validate", "test", "predict", "sweep"), TRAINING),
    "run": f"{SCORING}; of a fit in its configuration {TRAINING.replace('--', '')}",
    **dict.fromkeys(("evaluate", "balance", "compare-merges"), SCORING),
    "merge": "--dtype=bfloat16, a smaller --shard_gb for checkpoints",
    "extract": "a smaller --rank",
}
"""verb -> what makes it need less memory, smaller numbers first."""


def main() -> None:
    """Run the command line; exit code 2 and one line if what the user gave cannot be used."""
    args = sys.argv[1:]
    if args in (["--version"], ["-V"]):
        from unlearn_pl import __version__

        print(f"unlearn_pl {__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] not in VERBS:
        fail(f"{args[0]!r} is no command; the commands are {', '.join(VERBS)}")
    with one_line_errors(args[0]):
        command(args[0])(args[1:])


@contextmanager
def one_line_errors(verb: str = "") -> Iterator[None]:
    """Inside the block what a user can mend, a full disk or memory, and a W&B server that cannot be reached end the
    process with one line and exit code 2; signals end it with a last line that says how to go on."""
    from unlearn_pl.errors import InputError, disk_fault, memory_fault, server_fault
    from unlearn_pl.stopping import stoppable

    try:
        with stoppable():
            yield
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else disk_fault(error) or server_fault(error)
        if (short := memory_fault(error)) is not None:  # also where a library's own error was told as the user's
            advice = f"; less is needed with a smaller or other {LESS_MEMORY[verb]}" if verb in LESS_MEMORY else ""
            reason = short + advice
        if isinstance(error, RecursionError):  # of a reader of YAML or JSON, or of what copies a value
            reason = "a file or a value that was given is nested too deeply to be read"
        shown = bool(os.environ.get("UNLEARN_PL_TRACEBACK"))
        if reason is None or (shown and not isinstance(error, InputError)):
            raise
        if shown:
            traceback.print_exc()
        fail(reason)


def usage() -> str:
    """What --help prints."""
    return "\n".join(
        [
            "usage: unlearn-pl COMMAND ...",
            "",
            "Make a language model forget given documents, and prove how well that went.",
            "",
            *(f"  {verb:<16}{meaning}" for verb, (meaning, _) in VERBS.items()),
            "",
            "unlearn-pl COMMAND --help explains every field of a command; unlearn-pl --version prints the version.",
        ]
    )


def command(verb: str) -> Callable[[list[str]], None]:
    """The function behind a verb; importing it may take seconds."""
    from unlearn_pl.console import quiet, warning_line

    quiet()
    place = VERBS[verb][1]
    name, function = place.split(":")
    module = importlib.import_module(f"unlearn_pl.{name}")
    warnings.formatwarning = warning_line  # only now, since Lightning sets one of its own when it is imported
    if place == LIGHTNING:
        return lambda args: module.main([verb, *args])
    from unlearn_pl.parsing import parse_function

    def run(args: list[str]) -> None:
        if args == ["--list"] and hasattr(module, "listing"):
            module.listing()
        else:
            parse_function(
                getattr(module, function), args, f"unlearn-pl {verb}", positional=getattr(module, "POSITIONAL", None)
            )

    return run


def fail(message: str) -> None:
    """Print one line and exit with code 2."""
    from unlearn_pl.errors import printable

    print(f"unlearn-pl: error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
