"""`unlearn-pl compare-merges`: all merge methods on two adapters, at their own scales and at one."""

from dataclasses import asdict

from unlearn_pl.analysis.figures import plot_densities
from unlearn_pl.analysis.tables import merges_table
from unlearn_pl.balance.compare import Comparison, default_methods
from unlearn_pl.balance.opening import open_merges
from unlearn_pl.commands.balance import tell
from unlearn_pl.commands.evaluate import data_hashes
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationOptions, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.files import check_outputs, new_folder, write_json, write_text
from unlearn_pl.inference.batches import launched, rank_and_count
from unlearn_pl.inference.generation import Generation
from unlearn_pl.merging.methods import find_method
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import load_base
from unlearn_pl.models.tokenizer import find_tokenizer
from unlearn_pl.provenance import provenance

DEFAULTS = EvaluationOptions()


def compare_merges(
    base: str,
    adapters: list[str],
    data: EvaluationData,
    output: str,
    methods: list[str] | None = None,
    densities: list[float] | None = None,
    membership: Membership = DEFAULTS.membership,
    choice: Choice = DEFAULTS.choice,
    generation: Generation = DEFAULTS.generation,
    seed: int = 42,
    dtype: str = "float32",
    device: str = "auto",
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
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
        membership: Documents of the membership attack; non-members are needed.
        choice: Multiple-choice questions.
        generation: How answers are generated.
        seed: Seed of the random pruning of the dare and della kinds.
        dtype: Number type in which the base is loaded and scored: float32, bfloat16 or float16. In the last two the
            weights hold each delta rounded, the small ones least exactly.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one, each process its own).
        tokenizer: Folder or hub name of the tokenizer; the base's if not given. Needed where an adapter's folder holds
            another one.
        trust_remote_code: Run the Python code that the base model brings along.
        overwrite: Replace the output folder if it exists.
    """
    options = EvaluationOptions(membership, choice, generation)
    place = find_device(device)
    names = default_methods() if methods is None else methods
    for name in names:
        find_method(name, parameter="methods")
    if not names or densities == []:
        raise InputError("--methods and --densities: at least one of each is needed, got none")
    check_outputs({"output": output}, [base, *adapters], overwrite)
    inputs = read_inputs(data, options)
    cutter = find_tokenizer(base, adapters, tokenizer, trust_remote_code)
    with launched(place):
        opened = open_merges(
            load_base(base, dtype, trust_remote_code), cutter, adapters, inputs, options, place, seed
        )  # fmt: skip
        comparison = Comparison(opened, seed, tell)
        rows = comparison.rows(names, densities)
        parents = comparison.parents()
        if rank_and_count()[0] > 0:
            return
        table = merges_table(parents, rows)
        config = {"base": base, "tokenizer": tokenizer, "seed": seed, "dtype": dtype, "options": asdict(options)}
        hashes = {"adapters": opened.facts, "data": data_hashes(data, options, inputs)}
        made = provenance(config=config, sha256=hashes)
        with new_folder(output, overwrite) as folder:
            write_json(folder / "merges.json", {"parents": parents, "methods": rows, "provenance": made})
            write_text(folder / "merges.md", table + "\n")
            if densities is not None and len(densities) > 1:
                plot_densities(rows, folder / "densities.png")
    print(f"\n{table}\n\nwrote {output}")
