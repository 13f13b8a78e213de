"""What the terminal shows: our lines, and of other libraries' only what a user can act on."""

import logging
import os
import sys
import warnings
from pathlib import Path

# Notices that say nothing about the user's run; each is matched at the start of the message.
NOISE = (
    r".*LeafSpec.* is deprecated",
    r".*`is_gradient_checkpointing` is deprecated",
    r".*does not have many workers",
    r".*litlogger",
    r".*Checkpoint directory .* exists and is not empty",
    r".*treespec, LeafSpec",
    r".*The number of training batches .* is smaller than the logging interval",
    r".*Found .* module\(s\) in eval mode at the start of training",
)
CHATTER = (
    "litlogger",
    "litmodels",
    "💡",
    "available: ",
    "TPU",
    "HPU",
    "Loading `train_dataloader`",
    "Seed set to",
    "`weights_only` was not set",
)


class _NoChatter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(word in record.getMessage() for word in CHATTER)


def quiet() -> None:
    """Silence notices of the libraries below us; to be called before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # loading bars; Lightning's own bar is rich's
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(_NoChatter())


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning in one line: what it says; of another library's also where it comes from. For `formatwarning`."""
    text = " ".join(str(message).split())
    own = Path(filename).is_relative_to(Path(__file__).parent)
    return f"unlearn-pl: warning: {text}\n" if own else f"{filename}:{lineno}: {category.__name__}: {text}\n"


def log(line: str) -> None:
    """A line of progress on stderr, apart from the results; under a launch of several processes only of the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
