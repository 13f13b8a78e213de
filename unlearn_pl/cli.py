"""fit, validate, test and predict: Lightning's own command line around UnlearningModule and ForgetRetainData."""

import os
import re
import sys
from contextlib import ExitStack
from typing import Any

from jsonargparse import lazy_instance
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from torch.multiprocessing import ProcessRaisedException
from yaml.representer import RepresenterError

from unlearn_pl.callbacks.adapter import SaveAdapter, is_dry
from unlearn_pl.callbacks.angles import AngleAnalysis
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.figures import LogFigures
from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.callbacks.predictions import WritePredictions
from unlearn_pl.callbacks.progress import Throughput
from unlearn_pl.callbacks.run_config import SaveRunConfig
from unlearn_pl.callbacks.snapshot import WeightSnapshot
from unlearn_pl.callbacks.stale import SetStaleAside
from unlearn_pl.callbacks.stop import SignalConnector, StopOnSignal, none_left, stopped_well
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError, check_seed, one_line
from unlearn_pl.files import sole_writer
from unlearn_pl.models.lora import Lora
from unlearn_pl.objectives.known import known_objectives
from unlearn_pl.parsing import ShortErrors, with_flag
from unlearn_pl.training.checkpoint_file import WholeCheckpoints, check_checkpoint_file, seals
from unlearn_pl.training.divergence import Diverged
from unlearn_pl.training.metrics_file import MetricsFile
from unlearn_pl.training.module import UnlearningModule
from unlearn_pl.training.supported import refuse_fallback, refuse_names, refuse_unsupported


class Parser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with short errors. A config may name the classes without their module: they are loaded."""

    def classes(self) -> dict[str, tuple[type, ...]]:
        return {
            "model.objectives": known_objectives(),
            "model.lora": (Lora,),
            "trainer.callbacks": (WeightSnapshot, AngleAnalysis, MergeAfterFit, EvaluateDuringFit),
        }


# Before those of a configuration, which may take hours over what comes after a batch or the last of them.
FIRST = (StopOnSignal, Throughput, SaveAdapter)
# After all others, when what it shows is written.
LAST = LogFigures


class UnlearnCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` with a fixed module and data module, so that help shows every
    field and an error names it."""

    def __init__(self, args: list[str] | None = None, run: bool = True):
        self.arguments = args or []
        known_objectives()  # a class that was imported may be named without its module
        super().__init__(
            UnlearningModule,
            ForgetRetainData,
            save_config_callback=SaveRunConfig,
            trainer_defaults={
                "max_epochs": 5,
                "logger": lazy_instance(MetricsFile),
                "default_root_dir": "logs/fit",
                "callbacks": [
                    StopOnSignal(),
                    Throughput(),
                    SaveAdapter(),
                    WritePredictions(),
                    SetStaleAside(),
                    LogFigures(),
                ],
            },
            seed_everything_default=42,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "unlearn-pl"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="Seed of data order, dropout and the adapter's initial factors; adapters to be merged share it.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.max_length", "model.max_length")
        parser.link_arguments("data.tokenizer", "model.tokenizer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv holds something too
        except OmegaConfBaseException as error:  # a ${...} that leads nowhere
            raise InputError(f"a value of the configuration or the command line: {one_line(error)}") from error
        except SyntaxError as error:  # of a file of the user's own
            raise InputError(f"{error.filename}, line {error.lineno}: not Python: {error.msg}") from error
        except RepresenterError as error:  # Lightning's Timer has such a default
            raise InputError(f"a class that is named has an argument that no YAML holds: {one_line(error)}") from error

    def _set_seed(self) -> None:
        check_seed(self._get(self.config, "seed_everything"), "seed_everything")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let hyper-parameters of the checkpoint win over the command line in silence."""

    def instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        refuse_names(trainer.strategy, trainer.precision)
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ImportError, RuntimeError, ValueError, TypeError) as error:
            cause: BaseException = error
            while re.match("Does not validate against any|Problem with given class_path", str(cause)):
                if cause.__cause__ is None:
                    break
                cause = cause.__cause__
            raise (cause if isinstance(cause, InputError) else InputError(one_line(cause), "trainer")) from error

    def _run_subcommand(self, subcommand: str) -> None:
        self.refuse(subcommand)
        with none_left(self.trainer):
            super()._run_subcommand(subcommand)

    def refuse(self, subcommand: str) -> None:
        """Raise InputError for what can be refused before rows and model are read."""
        refuse_unsupported(self.trainer)
        refuse_fallback(self._get(self.config, "trainer").get("precision"), self.trainer)
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint is not None:
            weights_only = self._get(self.config, "weights_only") is not False
            check_checkpoint_file(str(checkpoint), subcommand, weights_only, seals(self.trainer.strategy.checkpoint_io))

    def instantiate_trainer(self, **options: Any) -> Trainer:
        trainer = super().instantiate_trainer(**options)
        trainer.callbacks.sort(key=place_of)  # type: ignore[attr-defined]
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        trainer.loggers = [kept(logger) for logger in trainer.loggers]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.follow(trainer)
        trainer._signal_connector = SignalConnector(trainer)
        return trainer

    def fit(self, **options: Any) -> None:
        """Lightning's fit, alone in its run folder, and ended in good order by a signal."""
        trainer = self.trainer
        with ExitStack() as stack:
            if trainer.is_global_zero and not is_dry(trainer):
                stack.enter_context(sole_writer(trainer.default_root_dir, "trainer.default_root_dir"))
            stack.enter_context(stopped_well(trainer, self.arguments))
            trainer.fit(**options)


def place_of(callback: Callback) -> int:
    """What callbacks are sorted by; all others stay in the order given, between the first and the last."""
    return 0 if isinstance(callback, FIRST) else 2 if isinstance(callback, LAST) else 1


def kept(logger: Any) -> Any:
    """Lightning's own CSV logger as ours, which deletes nothing; another as it is."""
    if type(logger) is not CSVLogger:
        return logger
    return MetricsFile(
        os.fspath(logger._save_dir), logger.name, logger._version, logger._prefix, logger._flush_logs_every_n_steps
    )


def main(args: list[str]) -> None:
    """Parse ``args`` (verb first) and run it."""
    try:
        UnlearnCLI(args)
    except InputError as error:
        # all processes stop alike, and the first one tells
        if isinstance(error, Diverged) and getattr(rank_zero_only, "rank", None):
            sys.exit(2)
        raise with_flag(error, ShortErrors.known, args) from error
    except MisconfigurationException as error:  # Lightning's name for a mistake of the user
        raise InputError(f"--trainer: {one_line(error)}") from error
    except ProcessRaisedException as error:  # of a process that ddp_spawn or ddp_fork started, with its traceback
        last = str(error).strip().splitlines()[-1]
        if re.match(r"unlearn_pl\.(errors\.InputError|training\.divergence\.Diverged): ", last):
            raise InputError(last.partition(": ")[2]) from error
        if "OutOfMemoryError" in last or last.startswith("MemoryError"):
            raise MemoryError(last) from error
        raise
