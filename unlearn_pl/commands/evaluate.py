"""``unlearn-pl evaluate``: the scores of one model, on the terminal and in two files."""

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

import unlearn_pl
from unlearn_pl.commands.score_tables import print_harness, print_metrics, print_scores
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationInputs, EvaluationOptions, read_inputs
from unlearn_pl.evaluation.lm_eval import Harness, run_harness, task_manager
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.retrained import read_retrained, refuse_others
from unlearn_pl.evaluation.run import Lender, evaluate_model, write_results
from unlearn_pl.evaluation.table import METRICS
from unlearn_pl.evaluation.truth import Truth
from unlearn_pl.files import refuse_existing, sha256_of
from unlearn_pl.inference.batches import Work, launched, rank_and_count
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.resume import ResumeFolder, content_hash
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.table import shared_needs
from unlearn_pl.models.adapter_folder import is_adapter_folder
from unlearn_pl.models.adapter_kind import refuse_changed_base
from unlearn_pl.models.device import find_device
from unlearn_pl.models.identity import model_hash, tokenizer_hash
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import open_adapter
from unlearn_pl.models.lora import reference as lora_reference
from unlearn_pl.models.tokenizer import difference, find_tokenizer, guard_ids, same_tokens
from unlearn_pl.provenance import provenance
from unlearn_pl.stopping import advising

# Folder of finished parts inside of the output folder.
PARTS = "parts"
# Names of what an interrupted evaluation leaves in the output folder: all but `results.json`, which comes last.
LEFT = rf"{PARTS}|samples\.jsonl|\.(samples\.jsonl|results\.json)\.[0-9a-f]{{32}}"
DEFAULTS = EvaluationOptions()
NO_HARNESS = Harness()


def listing() -> None:
    """``unlearn-pl evaluate --list``."""
    print_metrics(METRICS)


def evaluate(
    model: str,
    data: EvaluationData,
    output: str,
    adapter: str | None = None,
    membership: Membership = DEFAULTS.membership,
    choice: Choice = DEFAULTS.choice,
    generation: Generation = DEFAULTS.generation,
    minimum_mmlu: float | None = None,
    metrics: list[str] | None = None,
    sampling: Sampling = DEFAULTS.sampling,
    truth: Truth = DEFAULTS.truth,
    reference: str | None = None,
    retrained: str | None = None,
    resamples: int = DEFAULTS.resamples,
    harness: Harness = NO_HARNESS,
    dtype: str = "float32",
    device: str = "auto",
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Score a model as SemEval-2025 Task 4 does, and by what its scores miss: what it forgot, what it kept, whether it
    gives members away, and whether it still writes sentences. `unlearn-pl evaluate --list` shows all metrics.

    Writes `results.json` (all scores with intervals, their official key names, versions and hashes) and `samples.jsonl`
    (each row with prompt, expected and generated text and its scores). The same model and data give the same bytes, on
    one process or on several of torchrun. What is finished is kept in `parts/` under a hash of model, data and
    settings: the same command goes on where it was stopped. The files hold the texts that were to be forgotten: keep
    them as safe as the data.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows that the model had to forget and those it had to keep.
        output: Folder for the files.
        adapter: Folder of a PEFT adapter to put on the model.
        membership: Documents of the membership attacks.
        choice: Multiple-choice questions.
        generation: How answers are generated.
        minimum_mmlu: The model is eligible if its multiple-choice accuracy is above this, in [0, 1]; officially 0.371.
        metrics: Families of metrics beside the official scores (see `--list`); without it all that the other arguments
            allow.
        sampling: Answers drawn at random, for leak@k.
        truth: Paraphrased and wrong answers, for truth ratios.
        reference: Folder or hub name of the model before unlearning, for perplexity and the reference attack; with an
            adapter it is the model without it.
        retrained: Output folder of an evaluation of a model that never saw the forget set, for forget quality.
        resamples: Resamples of the bootstrap behind the 95 % intervals; at least 1.
        harness: Tasks of lm-eval, on the first process alone.
        dtype: Type of the weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one, each process its own).
        tokenizer: Folder or hub name of a tokenizer; default: the model's. To be named for an adapter whose folder
            holds another one.
        trust_remote_code: Let a model from the hub run its own code on this machine.
        overwrite: Replace the results if the output folder has them.
    """
    options = EvaluationOptions(
        membership, choice, generation, minimum_mmlu, metrics, sampling, truth, resamples
    )  # fmt: skip
    place = _checked_arguments(model, adapter, reference, metrics, output, dtype, device, overwrite)
    inputs = read_inputs(data, options)
    manager = None if harness.tasks is None else task_manager(harness)
    sources = data_hashes(data, options, inputs)
    other = None if retrained is None else read_retrained(retrained)
    if other is not None:
        refuse_others(other, sources, data, options)
    with launched(place):
        cutter = find_tokenizer(model, [adapter] if adapter else [], tokenizer, trust_remote_code)
        if reference is not None:
            with named("--reference"):
                refuse_other_tokens(cutter, load_tokenizer(reference, trust_remote_code))
        network, base = _load(model, adapter, reference, dtype, trust_remote_code, place)
        guard_ids(network, cutter)
        hashes: dict[str, str | None] = {"weights": model_hash(network), "tokenizer": tokenizer_hash(cutter)}
        hashes |= {"adapter": None if adapter is None else sha256_of(adapter), **sources}
        if reference is not None:
            with base() as original:  # type: ignore[misc]
                guard_ids(original, cutter, "--reference: ")
                hashes["reference"] = model_hash(original)
        made_with = [provenance()["versions"], code_hash(), hashes["tokenizer"], place.type, dtype]
        kept = ResumeFolder(Path(output) / PARTS, content_hash(hashes["weights"], hashes.get("reference"), made_with))
        work = Work(_tell if rank_and_count()[0] == 0 else None, kept)
        with advising(kept.advice):
            evaluation = evaluate_model(network, cutter, inputs, options, work, base, other)
        if rank_and_count()[0] > 0:
            return
    config: dict[str, Any] = {"model": model, "adapter": adapter, "tokenizer": tokenizer, "reference": reference}
    config |= {"retrained": retrained, "data": asdict(data), **asdict(options)}
    config |= {"harness": asdict(harness), "dtype": dtype}
    made_from = provenance(config=config, hashes=hashes)
    write_results(output, evaluation.results, evaluation.samples, made_from)
    kept.drop_others()
    print_scores(evaluation.results)
    if harness.tasks is not None:
        evaluation.results["harness"] = _harness(network, cutter, harness, manager, output)
        write_results(output, evaluation.results, evaluation.samples, made_from)
        print_harness(evaluation.results["harness"])
    print(f"wrote {Path(output) / 'results.json'} and {Path(output) / 'samples.jsonl'}")


def _harness(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: Harness, manager: Any, output: str
) -> dict[str, dict[str, float]]:
    """What lm-eval gives. Raises InputError, whatever went wrong: all other results are written by then."""
    try:
        with advising(lambda: f"all but lm-eval's scores is in {output}: run the same command again, with --overwrite"):
            return run_harness(model, tokenizer, options, manager=manager)
    except Exception as error:  # of its tasks' own code, downloads and data sets: there is no common kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"--harness.tasks: lm-eval failed ({type(error).__name__}: {reason:.300}); the rest is done: {output}"
        ) from error


def _load(
    model: str, adapter: str | None, reference: str | None, dtype: str, trust_remote_code: bool, place: torch.device
) -> tuple[nn.Module, Lender | None]:
    """The model with its adapter, and what lends the model as it was before, if there is that."""
    network: nn.Module = load_base(model, dtype, trust_remote_code)
    if adapter is not None:
        adapted = open_adapter(network, adapter)
        if reference is None:
            config = adapted.peft_config[adapted.active_adapter]
            refuse_changed_base(config, f"--reference: must name the base of {adapter}")
        network = adapted
    network.to(place)
    base: Lender | None = None
    if reference is not None:
        with named("--reference"):
            original = load_base(reference, dtype, trust_remote_code).to(place)
        base = functools.partial(without_adapter, original)
    elif adapter is not None:
        base = functools.partial(without_adapter, network)
    return network, base


def refuse_other_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a reference model reads other ids than it would be given."""
    if not same_tokens(own, other):
        raise InputError(
            f"its tokenizer is another than the model's ({difference(own, other)}); its losses would be of "
            "ids that mean something else to it"
        )


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Inside the block what cannot be loaded is told by ``flag`` and not as the model."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag}: {str(error).removeprefix('model: ')}") from error


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Lend ``model``, its adapter off if it has one."""
    with lora_reference(model) if isinstance(model, PeftModel) else nullcontext():
        yield model


def _checked_arguments(
    model: str,
    adapter: str | None,
    reference: str | None,
    metrics: list[str] | None,
    output: str,
    dtype: str,
    device: str,
    overwrite: bool,
) -> torch.device:
    """All that can be told to be wrong before anything is read. Raises InputError."""
    for family in metrics or ():
        if "base" in shared_needs(METRICS, family) and adapter is None and reference is None:
            raise InputError(f"--metrics: {family} needs --adapter or --reference, got neither")
    if dtype not in DTYPES:
        raise InputError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
    if Path(output).is_file() or not all(re.fullmatch(LEFT, path.name) for path in Path(output).glob("*")):
        refuse_existing(output, overwrite)
    resolve(model)
    if reference is not None:
        with named("--reference"):
            resolve(reference)
    if adapter is not None and not is_adapter_folder(adapter):
        raise InputError(f"--adapter: {adapter} has no adapter_config.json; a PEFT adapter folder is needed")
    return find_device(device)


def code_hash() -> str:
    """SHA-256 of the source of this package: what another formula gave must not pass for this one's."""
    return sha256_of(*sorted(Path(unlearn_pl.__file__).parent.rglob("*.py")))


def data_hashes(data: EvaluationData, options: EvaluationOptions, inputs: EvaluationInputs) -> dict[str, str | None]:
    """SHA-256 of each source: of its file or folder, or of what was read if it is neither; None if there is none."""
    sources: dict[str, tuple[str | None, Sequence[Any]]] = {
        "forget": (data.forget, [asdict(record) for record in inputs.forget]),
        "retain": (data.retain, [asdict(record) for record in inputs.retain]),
        "member": (options.membership.member, inputs.members),
        "nonmember": (options.membership.nonmember, inputs.nonmembers),
        "choice": (options.choice.folder, []),
        **{
            f"truth_{split}": (path, [])
            for split, path in (("forget", options.truth.forget), ("retain", options.truth.retain))
            if path
        },
    }
    return {name: None if source is None else source_hash(source, read) for name, (source, read) in sources.items()}


def source_hash(source: str, read: Sequence[Any]) -> str:
    """SHA-256 of the file or folder ``source``, or of the values ``read`` from it if it is neither."""
    path = Path(source).expanduser()
    if path.exists():
        return sha256_of(path)
    return hashlib.sha256(json.dumps(read, ensure_ascii=False).encode()).hexdigest()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
