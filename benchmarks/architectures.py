"""Which model families are exact here? Measures each causal family of transformers, tiny and random; writes a table.

    python benchmarks/architectures.py --json logs/architectures --markdown docs/architectures.md

A family whose file is in the --json folder is not measured again. Each has a process of its own and two minutes.
"""

import argparse
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

if not __package__:  # run as a script, which puts this folder on the path and not the project's
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.family_checks import check, one_line
from benchmarks.small_models import families

SECONDS = 120
EXACT = 1e-4
INTRO = """# Model families

Which architectures of `transformers` are trained, evaluated and merged exactly? This table is measured: for each
family of its causal language models a tiny random model is built and compared with plain formulations.

    python benchmarks/architectures.py --json logs/architectures --markdown docs/architectures.md

* **Training**: loss and gradient of NPO, retain NLL and KL together, beside the same formulas one row at a time
  through the whole model with PEFT's own layers. *packed*: rows stand in one sequence without padding; *padded*: the
  family takes no packed rows, and they are padded in groups of like lengths. The number is the largest difference of
  the loss, or of a gradient relative to the largest gradient; 1e-15 was computed in float64, 1e-07 (in parts) in
  float32.
* **Text**: greedy answers in batches of 1, 3 and 16, with and without an expected answer, beside `model.generate` for
  each row alone: rows that differ. *by generate*: our cache is not exact, and rows go one at a time through
  `generate`, with a warning. *read one by one*: what is read whole is read a row at a time, with a warning.
* **Merging**: the logits of the saved model beside PEFT's own merge of the same two adapters, `ties` and `cat`:
  largest difference relative to the largest logit.
  *attention*: `all-linear` is refused, since it adapts experts, which are bare parameters and cannot be merged, or
  layers that PEFT cannot adapt; so the linear layers of the attention were named in `lora.target_modules`.

*refused* means one line before any work, which stands below. A tiny random model says nothing of sizes: rows are
short, and experts are few.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="folder for one file a family")
    parser.add_argument("--markdown", help="file for the table")
    parser.add_argument("--families", nargs="+", help="all without it")
    parser.add_argument("--again", action="store_true", help="measure families anew whose files are there")
    options = parser.parse_args()
    folder = Path(options.json)
    folder.mkdir(parents=True, exist_ok=True)
    names = options.families or families()
    torch.set_num_threads(1)
    for name in names:
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.json"
        if options.again or not path.is_file():
            found = guarded(name)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(line_of(found), flush=True)
    if options.markdown:
        files = sorted(folder.glob("*.json"))
        Path(options.markdown).write_text(page([json.loads(file.read_text()) for file in files]), encoding="utf-8")


def guarded(name: str) -> dict[str, Any]:
    """``check`` in a process of its own, which may crash or hang."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(name, sender))
    process.start()
    found = {"family": name, "not_built": f"took longer than {SECONDS} s"}
    if receiver.poll(SECONDS):
        try:
            found = receiver.recv()
        except EOFError:
            found = {"family": name, "not_built": "its process died"}
    process.kill()
    process.join()
    return found


def send(name: str, sender: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        found = check(name)
    except Exception as error:  # the table names it
        found = {"family": name, "not_built": one_line(error)}
    sender.send(found)


def line_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    if "not_built" in found:
        return f"| {found['family']} | not built small: {found['not_built']} |||"
    return f"| {found['family']} | " + " | ".join((training(found), text(found), merging(found))) + " |"


def training(found: dict[str, Any]) -> str:
    one = found.get("training", {})
    if (stop := stopped(one)) is not None:
        return stop
    if one["gradient"] is None:
        return "**wrong**: other parameters have gradients"
    worst = max(one["loss"], one["gradient"])
    return (
        ("" if worst < EXACT else "**wrong** ")
        + ("packed" if one["packed"] else "padded")
        + f" {worst:.0e}"
        + attention(one)
    )


def text(found: dict[str, Any]) -> str:
    one = found.get("generation", {})
    if (stop := stopped(one)) is not None:
        return stop
    told = " ".join(one["told"])
    ways = " (by generate)" if "our cache" in told else ""
    return f"{one['differing']} of {one['rows']}{ways}" + (" (read one by one)" if "read together" in told else "")


def merging(found: dict[str, Any]) -> str:
    one = found.get("merging", {})
    if (stop := stopped(one)) is not None:
        return stop
    worst = max(one["ties"], one["cat"])
    return f"{'' if worst < EXACT else '**wrong** '}{worst:.0e}{attention(one)}"


def attention(one: dict[str, Any]) -> str:
    return " (attention)" if "all_linear" in one else ""


def stopped(one: dict[str, Any]) -> str | None:
    if "refused" in one:
        return "refused"
    return "**fails**" if "failed" in one else None


def page(found: list[dict[str, Any]]) -> str:
    """The whole page."""
    built = sorted((one for one in found if "not_built" not in one), key=lambda one: one["family"])
    rows = ["| family | training | text | merging |", "|---|---|---|---|", *map(line_of, built)]
    whys = [
        f"* {one['family']}, {name}: `{why}`"
        for one in built
        for name in ("training", "generation", "merging")
        if (why := one[name].get("refused") or one[name].get("failed")) is not None
    ]
    rest = sorted(one["family"] + ": " + one["not_built"] for one in found if "not_built" in one)
    small = ["", "## Not built small", "", *(f"* {line}" for line in rest)] if rest else []
    told = f"\nMeasured with transformers {transformers.__version__}, {len(built)} families and variants.\n\n"
    return INTRO + told + "\n".join([*rows, "", "## Why", "", *whys, *small]) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
