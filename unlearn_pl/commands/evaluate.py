"""``unlearn-pl evaluate``: the scores of one model, on the terminal and in files."""

from dataclasses import dataclass, field, fields

from unlearn_pl.commands.score_tables import print_metrics, print_results
from unlearn_pl.console import log
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.folder import ResultsFolder
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.lm_eval import Harness
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results
from unlearn_pl.evaluation.stored import StoredModel, check_stored, evaluate_stored
from unlearn_pl.evaluation.table import metrics_of
from unlearn_pl.models.device import find_device
from unlearn_pl.tasks.base import Benchmark
from unlearn_pl.tasks.lume import Lume


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(EvaluationOptions):
    """What is measured, and how the model is loaded."""

    benchmark: Benchmark | None = None
    """Another benchmark than the rows of `data`: the import path of a class (my_file.MyBenchmark; what it takes is
    --benchmark.NAME)."""
    reference: str | None = None
    """Folder or hub name of the model before unlearning, for perplexity and the reference attack; with an adapter it is
    the model without it."""
    retrained: str | None = None
    """Output folder of an evaluation of a model that never saw the forget set, for forget quality."""
    harness: Harness = field(default_factory=Harness)
    """Tasks of lm-eval, on the first process alone."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16 or float16, or nf4, fp4 or int8: codes, multiplied in bfloat16, which need
    `pip install .[quantised]`."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one, each process its own)."""
    tokenizer: str | None = None
    """Folder or hub name of a tokenizer; default: the model's. To be named for an adapter whose folder holds another
    one."""
    trust_remote_code: bool = False
    """Let a model from the hub run its own code on this machine."""
    overwrite: bool = False
    """Replace the results if the output folder has them."""
    verbose: bool = False
    """Print every score with its interval, and every note."""


def listing() -> None:
    """``unlearn-pl evaluate --list``."""
    print_metrics(metrics_of(Lume([], [])))


def evaluate(
    model: str, data: EvaluationData, output: str, adapter: str | None = None, *, options: EvaluateOptions
) -> None:
    """Score a model as SemEval-2025 Task 4 does, or another benchmark, and by what its scores miss: what it forgot,
    what it kept, whether it gives members away, and whether it still writes sentences. `unlearn-pl evaluate --list`
    shows all metrics.

    Writes `results.json` (all scores with intervals, their official key names, versions and hashes), `samples.jsonl`
    (each row with prompt, expected and generated text and its scores) and `documents.jsonl` (what each membership
    attack gives to each document, without its text). The same model and data give the same bytes, on
    one process or on several of torchrun. What is finished is kept in `parts/` under a hash of model, data and
    settings: the same command goes on where it was stopped. The files hold the texts that were to be forgotten: keep
    them as safe as the data.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows that the model had to forget and those it had to keep, in the form of SemEval-2025 Task 4.
        output: Folder for the files.
        adapter: Folder of a PEFT adapter to put on the model.
    """
    results = measure(model, data, output, adapter, options)
    if results is not None:
        print_results(results, output, options.verbose)


def measure(
    model: str, data: EvaluationData, output: str, adapter: str | None, options: EvaluateOptions
) -> Results | None:
    """`evaluate` without its table; None in all processes of a launch but the first."""
    if options.benchmark is not None and data != EvaluationData():
        raise InputError("not with data: a benchmark brings its own rows", "benchmark")
    stored = StoredModel(
        model=model,
        adapter=adapter,
        reference=options.reference,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    measured = EvaluationOptions(**{field.name: getattr(options, field.name) for field in fields(EvaluationOptions)})
    folder = ResultsFolder(output, options.overwrite)
    check_stored(stored, measured, folder)
    place = find_device(options.device)
    inputs = read_inputs(options.benchmark or data, measured)
    return evaluate_stored(
        stored, inputs, measured, folder, place, retrained=options.retrained, harness=options.harness, log=log
    )
