"""`unlearn-pl balance`: the merge of two adapters that a membership attack learns nothing from."""

import sys
from dataclasses import asdict

from unlearn_pl.analysis.tables import compared_table
from unlearn_pl.balance.opening import open_merges
from unlearn_pl.balance.result import chosen_point, conclusion, write_balance
from unlearn_pl.balance.search import BalanceOptions, BalanceSearch
from unlearn_pl.commands.evaluate import data_hashes
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationOptions, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.files import check_outputs, new_folder
from unlearn_pl.inference.batches import launched, rank_and_count
from unlearn_pl.inference.generation import Generation
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import load_base
from unlearn_pl.models.tokenizer import find_tokenizer

DEFAULTS = EvaluationOptions()
SEARCH = BalanceOptions()


def balance(
    base: str,
    adapters: list[str],
    data: EvaluationData,
    output: str,
    membership: Membership = DEFAULTS.membership,
    choice: Choice = DEFAULTS.choice,
    generation: Generation = DEFAULTS.generation,
    search: BalanceOptions = SEARCH,
    seed: int = 42,
    save_model: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Search the merge of an over- and an under-forgetting adapter whose membership AUC is one half, with the best
    Task Aggregate and multiple choice.

    The share of the two adapters, the size of the delta and the merge method are searched; the model is loaded once and
    takes each merge into its weights. Half of the member and non-member documents (one of each two of like length, by
    hash) steer the search, the other half says how well it went. Writes `balance.json` (every point visited, the chosen
    one, AUC on both halves), `balance.png`, `balance.md` and the chosen merge as a PEFT adapter in `adapter/`.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Folders of the over- and of the under-forgetting adapter, in this order.
        data: The rows that the model had to forget and those it had to keep.
        output: Folder for the results.
        membership: Documents of the membership attack; non-members are needed.
        choice: Multiple-choice questions.
        generation: How answers are generated.
        search: Where to search.
        seed: Seed of the random pruning of the dare and della kinds.
        save_model: Folder for the merged model too, with the tokenizer.
        dtype: Number type in which the base is loaded, scored and saved: float32, bfloat16 or float16. In the last two
            the scored weights hold the delta rounded (how well is told), while the adapter is written in float32.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one, each process its own).
        tokenizer: Folder or hub name of the tokenizer; the base's if not given. Needed where an adapter's folder holds
            another one.
        trust_remote_code: Run the Python code that the base model brings along.
        overwrite: Replace the output folders if they exist.
    """
    options = EvaluationOptions(membership, choice, generation)
    place = find_device(device)
    check_outputs({"output": output, "save_model": save_model}, [base, *adapters], overwrite)
    inputs = read_inputs(data, options)
    cutter = find_tokenizer(base, adapters, tokenizer, trust_remote_code)
    with launched(place):
        opened = open_merges(
            load_base(base, dtype, trust_remote_code), cutter, adapters, inputs, options, place, seed
        )  # fmt: skip
        found = BalanceSearch(opened.path, opened.scorer, search, tell).run()
        if rank_and_count()[0] > 0:
            return
        with new_folder(output, overwrite) as folder:
            config = {
                "base": base, "tokenizer": tokenizer, "search": asdict(search), "seed": seed, "dtype": dtype,
                "options": asdict(options),
            }  # fmt: skip
            point = chosen_point(found)
            found["rounding"] = opened.scorer.weights.rounding(opened.path.merge(point)[0])
            hashes = {"adapters": opened.facts, "data": data_hashes(data, options, inputs)}
            write_balance(folder, found, {"config": config, "sha256": hashes})
            opened.scorer.weights.restore()
            merged = opened.path.merged(point, opened.base.name_or_path)
            merged.save(
                folder / "adapter", save_model=save_model, base=opened.base, tokenizer=cutter,
                beside_adapter=tokenizer is not None, overwrite=overwrite,
            )  # fmt: skip
        print(f"\n{compared_table(found['compared'])}\n\n{conclusion(found)}")
        if dtype != "float32":
            print(f"in {dtype} the scored weights hold the delta to a relative error of {found['rounding']:.2g}")
        print(f"wrote {output}")


def tell(line: str) -> None:
    """Progress, apart from the results."""
    if rank_and_count()[0] == 0:
        print(line, file=sys.stderr, flush=True)
