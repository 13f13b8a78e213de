"""An evaluation from folder to folder: models are loaded, results and what is finished are kept."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.folder import ResultsFolder
from unlearn_pl.evaluation.inputs import EvaluationInputs, source_hashes
from unlearn_pl.evaluation.lm_eval import Harness, run_harness, task_manager
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results
from unlearn_pl.evaluation.retrained import read_retrained, refuse_others
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.evaluation.table import METRICS
from unlearn_pl.files import sha256_of
from unlearn_pl.hashing import code_hash
from unlearn_pl.inference.batches import Progress, Work, launched, rank_and_count
from unlearn_pl.inference.resume import ResumeFolder, content_hash
from unlearn_pl.metrics.table import shared_needs
from unlearn_pl.models.adapter_kind import refuse_changed_base
from unlearn_pl.models.identity import model_hash, tokenizer_hash
from unlearn_pl.models.load import blamed_on, check_dtype, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import open_adapter, without_adapter
from unlearn_pl.models.tokenizer import difference, find_tokenizer, guard_ids, same_tokens
from unlearn_pl.provenance import provenance
from unlearn_pl.stopping import advising
from unlearn_pl.tasks.checked import checked_settings


@dataclass(frozen=True)
class Loaded:
    """A model as it is measured."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: nn.Module | None
    """The model as it was before, or the model itself, whose adapter is then taken off; None if there is neither."""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model in a folder or on the hub, as it is measured."""

    model: str
    adapter: str | None = None
    reference: str | None = None
    """The model as it was before unlearning; without it, with an adapter, that is the model without it."""
    tokenizer: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raise InputError if something is wrong that shows before anything is loaded."""
        check_dtype(self.dtype)
        with blamed_on("model"):
            resolve(self.model)
        if self.reference is not None:
            with blamed_on("reference"):
                resolve(self.reference)
        if self.adapter is not None and not (Path(self.adapter) / "adapter_config.json").is_file():
            raise InputError(f"{self.adapter} has no adapter_config.json; a PEFT adapter folder is needed", "adapter")

    def load(self, place: torch.device) -> Loaded:
        """Everything, on ``place``. Raises InputError on what cannot be loaded or does not belong together."""
        adapters = [] if self.adapter is None else [self.adapter]
        with blamed_on("model"):
            tokenizer = find_tokenizer(self.model, adapters, self.tokenizer, self.trust_remote_code)
        if self.reference is not None:
            with blamed_on("reference"):
                refuse_other_tokens(tokenizer, load_tokenizer(self.reference, self.trust_remote_code))
        with blamed_on("model"):
            model: nn.Module = load_base(self.model, self.dtype, self.trust_remote_code, place)
        if self.adapter is not None:
            adapted = open_adapter(model, self.adapter)
            if self.reference is None:
                config = adapted.peft_config[adapted.active_adapter]
                with blamed_on("reference"):
                    refuse_changed_base(config, f"must name the base of {self.adapter}")
            model = adapted
        model.to(place)
        reference = model if self.adapter is not None else None
        if self.reference is not None:
            with blamed_on("reference"):
                reference = load_base(self.reference, self.dtype, self.trust_remote_code, place).to(place)
        guard_ids(model, tokenizer)
        if reference is not None and self.reference is not None:
            guard_ids(reference, tokenizer, "reference: ")
        return Loaded(model, tokenizer, reference)


def refuse_other_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise InputError if a reference model reads other ids than it would be given."""
    if not same_tokens(own, other):
        raise InputError(
            f"its tokenizer is another than the model's ({difference(own, other)}); its losses would be of "
            "ids that mean something else to it"
        )


def check_stored(stored: StoredModel, options: EvaluationOptions, output: ResultsFolder) -> None:
    """All that can be told to be wrong before anything is read. Raises InputError."""
    for family in options.metrics or ():
        if "base" in shared_needs(METRICS, family) and stored.adapter is None and stored.reference is None:
            raise InputError(f"{family} needs adapter or reference, got neither", "metrics")
    output.check()
    stored.check()


def evaluate_stored(
    stored: StoredModel,
    inputs: EvaluationInputs,
    options: EvaluationOptions,
    output: ResultsFolder,
    place: torch.device,
    *,
    retrained: str | None = None,
    harness: Harness | None = None,
    log: Progress | None = None,
) -> Results | None:
    """Measure a model as ``evaluate`` does, and write its files (see ``write_results``) into ``output``.

    What is finished is kept in its `parts/`, so that the same call goes on where it was stopped. ``retrained`` is the
    output of another evaluation, ``harness`` names tasks of lm-eval, which run last. None in all processes of a launch
    but the first.
    """
    harness = harness or Harness()
    manager = None if harness.tasks is None else task_manager(harness)
    sources = source_hashes(inputs, options)
    settings = checked_settings(inputs.benchmark) | asdict(options)
    other = None if retrained is None else read_retrained(retrained)
    if other is not None:
        refuse_others(other, sources, settings)
    with ExitStack() as until_written:
        with launched(place):
            loaded = stored.load(place)
            hashes = hashes_of(stored, loaded, sources)
            until_written.enter_context(output.alone())
            parts = parts_of(output, hashes, stored, place)
            work = Work(log if rank_and_count()[0] == 0 else None, parts)
            model, tokenizer, reference = loaded.model, loaded.tokenizer, loaded.reference
            with advising(parts.advice):
                results = evaluate(model, tokenizer, inputs, options, reference=reference, retrained=other, work=work)
            if rank_and_count()[0] > 0:
                return None
        config: dict[str, Any] = {
            name: getattr(stored, name) for name in ("model", "adapter", "tokenizer", "reference")
        }
        config |= {"retrained": retrained, **settings, "harness": asdict(harness), "dtype": stored.dtype}
        made_from = provenance(config=config, hashes=hashes)
        output.write(results, made_from)
        parts.drop_others()
        if harness.tasks is not None:
            results = replace(results, harness=_harness(model, tokenizer, harness, manager, output.path))
            output.write(results, made_from)
        return results


def hashes_of(stored: StoredModel, loaded: Loaded, sources: dict[str, str | None]) -> dict[str, str | None]:
    """SHA-256 of what was loaded, and of the ``sources`` of the data."""
    hashes: dict[str, str | None] = {
        "weights": model_hash(loaded.model),
        "tokenizer": tokenizer_hash(loaded.tokenizer),
        "adapter": None if stored.adapter is None else sha256_of(stored.adapter),
        **sources,
    }
    if stored.reference is not None and loaded.reference is not None:
        with without_adapter(loaded.reference):
            hashes["reference"] = model_hash(loaded.reference)
    return hashes


def parts_of(
    output: ResultsFolder, hashes: dict[str, str | None], stored: StoredModel, place: torch.device
) -> ResumeFolder:
    """What is finished of an evaluation of just this model, made in just this way."""
    made_with = [provenance()["versions"], code_hash(), hashes["tokenizer"], place.type, stored.dtype]
    return output.parts(content_hash(hashes["weights"], hashes.get("reference"), made_with))


def _harness(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: Harness, manager: Any, output: str
) -> dict[str, dict[str, float]]:
    """What lm-eval gives. Raises InputError, whatever went wrong: all other results are written by then."""
    try:
        with advising(lambda: f"all but lm-eval's scores is in {output}: run the same again, with overwrite"):
            return run_harness(model, tokenizer, options, manager=manager)
    except Exception as error:  # of its tasks' own code, downloads and data sets: there is no common kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"lm-eval failed ({type(error).__name__}: {reason:.300}); the rest is done: {output}", "harness.tasks"
        ) from error
