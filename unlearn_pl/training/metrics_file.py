"""MetricsFile: `metrics.csv` of a run, which a resumed run goes on with and nothing else touches."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from unlearn_pl.files import write_text
from unlearn_pl.training.resume import at_batch_end


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, but for three things: the file of a finished run stays as it is until the first numbers
    of a new run are there; a run that goes on from a checkpoint keeps the rows that were written before it; and
    `validate` and `test` write `metrics_validate.csv` and `metrics_test.csv`.

    Args:
        save_dir: The run folder (the trainer's `default_root_dir`) if not given.
        name: Name of a folder in it.
        version: Name of a folder in that one.
        prefix: Goes before the names of all columns.
        flush_logs_every_n_steps: Steps between two writes.
    """

    def __init__(
        self,
        save_dir: str | None = None,
        name: str | None = "",
        version: int | str | None = "",
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ):
        super().__init__(save_dir or "", name, version, prefix, flush_logs_every_n_steps)

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = MetricsWriter(self.log_dir)
        return self._experiment

    def follow(self, trainer: Trainer) -> None:
        """Write into the trainer's run folder unless another was given."""
        if not self._save_dir:
            self._save_dir = self._root_dir = str(trainer.default_root_dir)

    def begin(self, verb: str, rows: int) -> None:
        """To be called when nothing can be refused any more: the first ``rows`` of the file are of this run."""
        self.experiment.begin(verb, rows)

    def written(self) -> int:
        """Rows of this run, all of which are in the file by now."""
        self.save()
        return int(self.experiment.written)


class MetricsWriter(ExperimentWriter):
    """Writes the rows; the file is replaced as a whole when a column is new, and otherwise appended to."""

    def __init__(self, log_dir: str):
        super().__init__(log_dir)
        self._earlier: list[dict[str, Any]] | None = []
        self.written = 0

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file of the run before here."""

    def begin(self, verb: str, rows: int) -> None:
        if verb != "fit":
            self.metrics_file_path = str(Path(self.log_dir) / f"metrics_{verb}.csv")
        self._earlier = read_rows(Path(self.metrics_file_path))[:rows]
        self.written = len(self._earlier)
        self.metrics_keys = sorted({key for row in self._earlier for key in row})

    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        if self._record_new_keys() or self._earlier is not None:
            earlier = read_rows(path) if self._earlier is None else self._earlier
            write_text(path, as_csv([*earlier, *self.metrics], self.metrics_keys))
        else:
            with path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(as_csv(self.metrics, self.metrics_keys, header=False))
        self.written += len(self.metrics)
        self._earlier, self.metrics = None, []


def unlogged(trainer: Trainer) -> dict[str, float] | None:
    """What Lightning will log of the step that was just made, which it does after the checkpoint of that step; None if
    nothing."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    if not at_batch_end(trainer) or trainer.fit_loop._should_accumulate() or not connector.should_update_logs:
        return None
    place = {"epoch": trainer.current_epoch, "step": loop._batches_that_stepped}
    return place | convert_tensors_to_scalars(connector.metrics["log"])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file, none if there is no such file; a kill may have cut the last one."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if None not in row and None not in row.values()]
    return [row for row in rows if row.get("step", "").isdigit()]


def as_csv(rows: list[dict[str, Any]], keys: list[str], header: bool = True) -> str:
    """The rows as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=keys, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
