"""fit, validate, test and predict: Lightning's own command line around UnlearningModule and ForgetRetainData."""

import re
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from torch.multiprocessing import ProcessRaisedException

from unlearn_pl.callbacks.adapter import SaveAdapter
from unlearn_pl.callbacks.angles import AngleAnalysis
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.callbacks.predictions import WritePredictions
from unlearn_pl.callbacks.progress import Throughput
from unlearn_pl.callbacks.snapshot import WeightSnapshot
from unlearn_pl.callbacks.stale import SetStaleAside
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_text
from unlearn_pl.models.lora import Lora
from unlearn_pl.objectives.forget import NPO, GradAscent
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.parsing import ShortErrors
from unlearn_pl.training.checkpoint_file import check_checkpoint_file
from unlearn_pl.training.module import UnlearningModule
from unlearn_pl.training.supported import refuse_fallback, refuse_names, refuse_unsupported


class Parser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with short errors. A config may name the classes without their module: they are loaded."""

    classes: ClassVar = {
        "model.objectives": (NPO, GradAscent, RetainNLL, RetainKL),
        "model.lora": (Lora,),
        "trainer.callbacks": (WeightSnapshot, AngleAnalysis, MergeAfterFit, EvaluateDuringFit),
    }


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved `config.yaml` into the run folder before the first step, and hands it to every logger."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False, skip_link_targets=False)
        verb = TrainerFn(stage).value
        name = "config.yaml" if verb == "fit" else f"config_{verb}.yaml"
        write_text(Path(trainer.default_root_dir) / name, text)
        if verb == "fit":
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config.as_dict())


class UnlearnCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` with a fixed module and data module, so that help shows every
    field and an error names it."""

    def __init__(self, args: list[str] | None = None, run: bool = True):
        super().__init__(
            UnlearningModule,
            ForgetRetainData,
            save_config_callback=SaveRunConfig,
            trainer_defaults={
                "max_epochs": 5,
                "logger": lazy_instance(CSVLogger, save_dir="logs", name=""),
                "default_root_dir": "logs/fit",
                "callbacks": [Throughput(), SaveAdapter(), WritePredictions(), SetStaleAside()],
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv holds something too
        except OmegaConfBaseException as error:  # a ${...} that leads nowhere
            raise InputError(f"a value of the configuration or the command line: {first_line(error)}") from error

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
            raise (cause if isinstance(cause, InputError) else InputError(f"--trainer: {first_line(cause)}")) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Refuse what can be refused before rows and model are read."""
        refuse_unsupported(self.trainer)
        refuse_fallback(self._get(self.config, "trainer").get("precision"), self.trainer)
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint is not None:
            check_checkpoint_file(str(checkpoint), subcommand, self._get(self.config, "weights_only") is not False)
        super()._run_subcommand(subcommand)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def main(args: list[str]) -> None:
    """Parse ``args`` (verb first) and run it."""
    try:
        UnlearnCLI(args)
    except MisconfigurationException as error:  # Lightning's name for a mistake of the user
        raise InputError(f"--trainer: {first_line(error)}") from error
    except ProcessRaisedException as error:  # of a process that ddp_spawn or ddp_fork started, with its traceback
        last = str(error).strip().splitlines()[-1]
        if last.startswith("unlearn_pl.errors.InputError: "):
            raise InputError(last.partition(": ")[2]) from error
        raise
