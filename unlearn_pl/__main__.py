"""The command table: verb -> what runs it. Imports are inside, so that --version and --help are quick."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable

VERBS = {
    "run": "a whole recipe: prepare, fit twice, merge, evaluate, table",
    "fit": "train an adapter that unlearns",
    "validate": "the loss terms of a model or checkpoint on every pair of rows",
    "test": "the same, under the name test",
    "predict": "the greedy answer to every row's prompt",
    "merge": "merge adapters or checkpoints of one base model; --list shows all methods",
    "balance": "search the merge of two adapters whose membership AUC is one half",
    "compare-merges": "score every merge method, as PEFT scales it and at one norm, also over densities",
    "extract": "a LoRA adapter from the difference of two checkpoints",
    "evaluate": "score a model, with or without an adapter; --list shows all metrics",
    "bench": "measure time, memory and exactness of training and evaluation",
}

# The verbs that have verbs of their own.
SUBVERBS = {
    "bench": {
        "train": "our training step beside the released one, on your model and rows",
        "parts": "what each part of our step gives, by switching it off",
        "growth": "how both grow with row length, vocabulary and depth",
        "estimate": "what a large model would take, by arithmetic",
        "evaluate": "our evaluation beside the official one, on your model and rows",
        "merge": "our merges beside PEFT's, at the shapes of OLMo-1B",
    }
}

# The verbs that are plain functions, by the module that has one of that name; the others are Lightning's.
FUNCTIONS = {"run": "recipe.run"}
FUNCTIONS |= {verb: f"commands.{verb}" for verb in ("merge", "balance", "evaluate", "extract")}
FUNCTIONS["compare-merges"] = "commands.compare_merges"
FUNCTIONS |= {f"bench {verb}": "commands.bench" for verb in SUBVERBS["bench"]}
FUNCTIONS |= {f"bench {verb}": f"commands.bench_{verb}" for verb in ("evaluate", "merge")}


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
    verb, args = args[0], args[1:]
    if verb in SUBVERBS:
        if not args or args[0] in ("-h", "--help"):
            print(usage(verb))
            return
        if args[0] not in SUBVERBS[verb]:
            fail(f"{args[0]!r} is no command of {verb}; its commands are {', '.join(SUBVERBS[verb])}")
        verb, args = f"{verb} {args[0]}", args[1:]
    from unlearn_pl.errors import InputError, disk_fault
    from unlearn_pl.stopping import stoppable

    try:
        with stoppable():
            command(verb)(args)
    except InputError as error:
        if os.environ.get("UNLEARN_PL_TRACEBACK"):
            traceback.print_exc()
        fail(str(error))
    except Exception as error:
        reason = disk_fault(error)
        if reason is None or os.environ.get("UNLEARN_PL_TRACEBACK"):
            raise
        fail(reason)


def usage(verb: str | None = None) -> str:
    """What --help prints, of all commands or of one that has commands of its own."""
    verbs, name = (SUBVERBS[verb], f"unlearn-pl {verb}") if verb else (VERBS, "unlearn-pl")
    about = VERBS[verb] if verb else "make a language model forget given documents, and prove how well that went"
    lines = [f"  {verb:<16}{meaning}" for verb, meaning in verbs.items()]
    return "\n".join(
        [
            f"usage: {name} COMMAND ...",
            "",
            f"{about[0].upper()}{about[1:]}.",
            "",
            *lines,
            "",
            f"{name} COMMAND --help explains every field of a command; unlearn-pl --version prints the version.",
        ]
    )


def command(verb: str) -> Callable[[list[str]], None]:
    """The function behind a verb; importing it may take seconds."""
    from unlearn_pl.console import quiet

    quiet()
    if verb not in FUNCTIONS:
        from unlearn_pl import cli

        return lambda args: cli.main([verb, *args])
    from unlearn_pl.parsing import parse_function

    module = importlib.import_module(f"unlearn_pl.{FUNCTIONS[verb]}")
    listing = getattr(module, "listing", None)

    def run(args: list[str]) -> None:
        if args == ["--list"] and listing is not None:
            listing()
        else:
            function = getattr(module, verb.split()[-1].replace("-", "_"))
            parse_function(function, args, verb, getattr(module, "FLAGS", None))

    return run


def fail(message: str) -> None:
    """Print one line and exit with code 2."""
    print(f"unlearn-pl: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
