"""`unlearn-pl compare-merges`: all merge methods on two adapters, at their own scales and at one."""

from unlearn_pl.balance.compare import ComparisonOptions, compare_methods
from unlearn_pl.commands.scoring import ScoringOptions, loaded
from unlearn_pl.console import log
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.files import new_folder
from unlearn_pl.inference.batches import rank_and_count

SCORING = ScoringOptions()


def compare_merges(
    base: str,
    adapters: list[str],
    data: EvaluationData,
    output: str,
    methods: list[str] | None = None,
    *,
    densities: list[float] | None = None,
    options: ScoringOptions = SCORING,
) -> None:
    """Score the merge methods on an over- and an under-forgetting adapter with weights 1 and 1, twice: at the scale
    that each method gives the delta, and with every delta brought to the norm of the two adapters' mean.

    Writes `merges.json` and `merges.md` with norms, sign conflicts and trimmed mass, and with several densities
    `densities.png`. The model is loaded once and takes each merge into its weights.

    Args:
        base: Base model: a folder or a hub name.
        adapters: Folders of the over- and of the under-forgetting adapter, in this order.
        data: The rows that the model had to forget and those it had to keep.
        output: Folder for the results.
        methods: Names from `unlearn-pl merge --list`; all that give an adapter if not given.
        densities: Densities for the methods that prune, in (0, 1]; 0.8 if not given.
        options: How merges are scored.
    """
    compared = ComparisonOptions(methods=methods, densities=densities)
    with loaded(base, adapters, data, output, options) as start:
        found = compare_methods(
            start.model, start.tokenizer, adapters, start.inputs, compared,
            evaluation=options.evaluation, seed=options.seed, log=log,
        )  # fmt: skip
        if rank_and_count()[0] > 0:
            return
        with new_folder(output, options.overwrite) as folder:
            found.write(folder, **start.facts(base, found.hashes))
    print(f"\n{found.table()}\n\nwrote {output}")
