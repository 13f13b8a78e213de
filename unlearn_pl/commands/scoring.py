"""What the commands that score merges share: their options, and all that is read before the first merge."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationInputs, read_inputs, source_hashes
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.files import check_outputs
from unlearn_pl.inference.batches import launched
from unlearn_pl.inference.generation import Generation
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import blamed_on, load_base, refuse_codes, refuse_quantised
from unlearn_pl.models.tokenizer import find_tokenizer


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How merges are scored."""

    membership: Membership = field(default_factory=Membership)
    """Documents of the membership attack; non-members are needed."""
    choice: Choice = field(default_factory=Choice)
    """Multiple-choice questions."""
    generation: Generation = field(default_factory=Generation)
    """How answers are generated."""
    seed: int = 42
    """Seed of the random pruning of the dare and della kinds."""
    dtype: str = "float32"
    """Number type in which the base is loaded, scored and saved: float32, bfloat16 or float16. In the last two the
    scored weights hold each delta rounded, the small ones least exactly, while an adapter is written in float32."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one, each process its own)."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; the base's if not given. Needed where an adapter's folder holds another
    one."""
    trust_remote_code: bool = False
    """Run the Python code that the base model brings along."""
    overwrite: bool = False
    """Replace the output folders if they exist."""

    def __post_init__(self) -> None:
        refuse_codes(self.dtype, "scoring a merge in the base's weights")

    @property
    def evaluation(self) -> EvaluationOptions:
        """What is measured of each merge."""
        return EvaluationOptions(membership=self.membership, choice=self.choice, generation=self.generation)


@dataclass(frozen=True)
class Loaded:
    """A base model, and what merges in it are scored by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    inputs: EvaluationInputs
    options: ScoringOptions
    sources: dict[str, str | None]
    """SHA-256 of the data."""

    def facts(self, base: str, hashes: dict[str, str], **settings: Any) -> dict[str, Any]:
        """What went in, for the provenance; ``hashes`` are those of the adapters."""
        options = self.options
        config = {"base": base, "tokenizer": options.tokenizer, **settings, "seed": options.seed}
        config |= {"dtype": options.dtype, "options": asdict(options.evaluation)}
        return {"config": config, "sha256": {"adapters": hashes, "data": self.sources}}


@contextmanager
def loaded(
    base: str,
    adapters: list[str],
    data: EvaluationData,
    output: str,
    options: ScoringOptions,
    save_model: str | None = None,
) -> Iterator[Loaded]:
    """Everything, read and checked; inside the block the processes of a launch are one."""
    place, evaluation = find_device(options.device), options.evaluation
    check_outputs({"output": output, "save_model": save_model}, [base, *adapters], options.overwrite)
    inputs = read_inputs(data, evaluation)
    sources = source_hashes(inputs, evaluation)
    with blamed_on("base"):
        tokenizer = find_tokenizer(base, adapters, options.tokenizer, options.trust_remote_code)
    with launched(place):
        with blamed_on("base"):
            model = load_base(base, options.dtype, options.trust_remote_code)
        refuse_quantised(model, "scoring a merge in the base's weights")  # which cannot be moved either
        yield Loaded(model.to(place), tokenizer, inputs, options, sources)
