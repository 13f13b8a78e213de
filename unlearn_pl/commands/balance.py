"""`unlearn-pl balance`: the merge of two adapters that a membership attack learns nothing from."""

from dataclasses import asdict

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.balance.search import find_balance
from unlearn_pl.commands.scoring import ScoringOptions, loaded
from unlearn_pl.console import log
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.files import new_folder
from unlearn_pl.inference.batches import rank_and_count

SEARCH, SCORING = BalanceOptions(), ScoringOptions()


def balance(
    base: str,
    adapters: list[str],
    data: EvaluationData,
    output: str,
    search: BalanceOptions = SEARCH,
    *,
    save_model: str | None = None,
    options: ScoringOptions = SCORING,
) -> None:
    """Search the merge of an over- and an under-forgetting adapter whose membership AUC is one half, with the best
    Task Aggregate and multiple choice.

    The share of the two adapters, the size of the delta and the merge method are searched; the model is loaded once and
    takes each merge into its weights. Half of the member and non-member documents (one of each two of like length, by
    hash) steer the search, the other half says how well it went. Writes `balance.json` (every point visited, the chosen
    one, AUC on both halves), `balance.png`, `balance.md`, the chosen merge as a PEFT adapter in `adapter/`, and of it
    `anatomy.json` (signs in conflict, trimmed mass and sizes of the deltas by layer) and `spectrum.json`.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Folders of the over- and of the under-forgetting adapter, in this order.
        data: The rows that the model had to forget and those it had to keep.
        output: Folder for the results.
        search: Where to search.
        save_model: Folder for the merged model too, with the tokenizer.
        options: How merges are scored.
    """
    with loaded(base, adapters, data, output, options, save_model) as start:
        found = find_balance(
            start.model, start.tokenizer, adapters, start.inputs, search,
            evaluation=options.evaluation, seed=options.seed, log=log,
        )  # fmt: skip
        if rank_and_count()[0] > 0:
            return
        with new_folder(output, options.overwrite) as folder:
            found.write(folder, **start.facts(base, found.hashes, search=asdict(search)))
            found.merged.save(
                folder / "adapter", save_model=save_model, base=start.model, tokenizer=start.tokenizer,
                beside_adapter=options.tokenizer is not None, overwrite=options.overwrite,
            )  # fmt: skip
    print(f"\n{found.table()}\n\n{found.sentence()}")
    if options.dtype != "float32":
        print(f"in {options.dtype} the scored weights hold the delta to a relative error of {found.rounding:.2g}")
    print(f"wrote {output}")
