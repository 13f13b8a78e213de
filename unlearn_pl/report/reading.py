"""Folders of runs, whatever wrote them, as `Run`; what is missing, torn or foreign is told and the rest is read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.report import shape
from unlearn_pl.report.parts import ABSENT, Parts
from unlearn_pl.report.run import Comparison, Fit, Merge, Model, Run, Search

FIT_FILES = ("config.yaml", "metrics.csv", "evaluations.json", "angles.json")
# In the folder of a fit, beside the adapter, a callback's merge or search has this name.
AFTER_FIT = "merged"


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """A run for each folder, and one for each run in a folder that holds nothing but runs (of a sweep, of seeds).

    Raises InputError if there is no folder, or none of the files that runs write are in one.
    """
    if not folders:
        raise InputError("at least one folder of a run is needed, got none", "runs")
    distinct: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder", "runs")
        found = [folder] if is_run(folder) else [child for child in _children(folder) if is_run(child)]
        if not found:
            raise InputError(f"{folder} holds none of the files that a run writes", "runs")
        for one in found:  # by another path, too, and where it is in a folder that is given beside it
            distinct.setdefault(one.resolve(), one)
    return _named_apart([read_run(one) for one in distinct.values()])


def is_run(folder: Path) -> bool:
    """Whether something in the folder, or right below it, is of a run: of a recipe, or of a single command."""
    if (folder / "summary.json").is_file() or (folder / "stages").is_dir() or (folder / "evaluation").is_dir():
        return True
    return bool(kinds(folder))


def kinds(folder: Path) -> set[str]:
    """What the files of a folder say that it is of; a fit's folder may hold scores too."""
    found = {
        "model": (folder / "results.json").exists() or (folder / "samples.jsonl").exists(),
        "search": (folder / "balance.json").exists(),
        "comparison": (folder / "merges.json").exists(),
        "fit": any((folder / name).exists() for name in FIT_FILES),
    }
    if not found["search"] and not found["fit"]:
        found["merge"] = any((folder / name).is_file() for name in ("adapter/unlearn_pl.json", "unlearn_pl.json"))
    return {name for name, there in found.items() if there}


def read_run(folder: str | Path) -> Run:
    """All that the files in ``folder`` and below it say."""
    folder = Path(folder)
    parts, found = Parts(folder), _Found()
    name, own = folder.resolve().name, kinds(folder)
    if own:
        found.read(parts, name, folder, own)
        if kinds(folder / AFTER_FIT) & {"merge", "search"}:
            found.read(parts, AFTER_FIT, folder / AFTER_FIT, kinds(folder / AFTER_FIT))
    summary = None
    if not own or (folder / "summary.json").exists():
        summary = parts.json("summary of the recipe", folder / "summary.json", shape.SUMMARY, f"{ABSENT}: unfinished")
        # as the recipe has them, so far as it says
        named = list(summary["models"]) if summary else []
        for child in sorted(_children(folder), key=lambda child: (*named, child.name).index(child.name)):
            if child.name not in ("data", "base", "evaluation", "stages"):
                found.read(parts, child.name, child, kinds(child))
        _read_evaluations(parts, found, folder, summary)
    return Run(name=name, folder=folder, summary=summary, missing=tuple(parts.missing), **vars(found))


class _Found:
    """The parts of a run by kind, under the names that `Run` has for them."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.fits: dict[str, Fit] = {}
        self.merges: dict[str, Merge] = {}
        self.searches: dict[str, Search] = {}
        self.comparisons: dict[str, Comparison] = {}

    def read(self, parts: Parts, name: str, folder: Path, of: set[str]) -> None:
        """Put what a folder holds where it belongs."""
        if "model" in of and (model := read_model(parts, name, folder)):
            self.models[name] = model
        if "fit" in of:
            self.fits[name] = read_fit(parts, name, folder)
        if "search" in of and (search := read_search(parts, name, folder)):
            self.searches[name] = search
        if "comparison" in of:
            found = parts.json(f"comparison {name}", folder / "merges.json", shape.MERGES)
            if found is not None:
                self.comparisons[name] = Comparison(name=name, folder=folder, found=found)
        if "merge" in of:
            self._read_adapter(parts, name, folder)

    def _read_adapter(self, parts: Parts, name: str, folder: Path) -> None:
        """A folder that holds an adapter and none of a fit's files: a merge, or a fit whose files are gone."""
        inner = folder / "adapter" if (folder / "adapter/unlearn_pl.json").is_file() else folder
        facts = parts.json(f"origin of {name}", inner / "unlearn_pl.json", shape.ADAPTER)
        if facts is None or "merge" in facts:
            self.merges[name] = Merge(name=name, folder=folder, facts=facts, **_insides(parts, name, inner.parent))
        elif "step" in facts:
            self.fits[name] = read_fit(parts, name, folder)


def read_model(parts: Parts, name: str, folder: Path) -> Model | None:
    """What an evaluation wrote; None without its scores."""
    results = parts.json(f"scores of {name}", folder / "results.json", shape.RESULTS)
    if results is None:
        return None
    samples = parts.lines(f"generations of {name}", folder / "samples.jsonl", shape.SAMPLE)
    documents: list[Mapping[str, Any]] = []
    if results["membership_auc"] is not None:
        documents = parts.lines(f"attack scores of {name}", folder / "documents.jsonl", shape.DOCUMENT)
    return Model(name=name, folder=folder, results=results, samples=samples, documents=documents)


def read_fit(parts: Parts, name: str, folder: Path) -> Fit:
    """What training wrote, and of what it did not write whether it was asked to."""
    config = parts.yaml(f"settings of {name}", folder / "config.yaml")
    losses = parts.columns(f"losses of {name}", folder / "metrics.csv")
    # What a callback writes is missing by choice where the callback is.
    unasked = (
        {} if config is None else {kind: _unasked(config, kind) for kind in ("EvaluateDuringFit", "AngleAnalysis")}
    )
    scores = f"scores of {name} during training"
    evaluations = parts.json(
        scores, folder / "evaluations.json", shape.EVALUATIONS, unasked.get("EvaluateDuringFit", ABSENT)
    )
    return Fit(
        name=name,
        folder=folder,
        config=config,
        losses=losses,
        evaluations=evaluations or (),
        angles=_read_angles(parts, name, folder / "angles.json", unasked.get("AngleAnalysis", ABSENT)),
        spectrum=parts.json(f"spectrum of {name}", folder / "spectrum.json", shape.SPECTRUM),
        adapter=parts.json(f"origin of {name}", folder / "adapter/unlearn_pl.json", shape.ADAPTER),
    )


def read_search(parts: Parts, name: str, folder: Path) -> Search | None:
    """What a balance search wrote; None without its path."""
    found = parts.json(f"balance search {name}", folder / "balance.json", shape.BALANCE)
    if found is None:
        return None
    facts = parts.json(f"origin of {name}", folder / "adapter/unlearn_pl.json", shape.ADAPTER)
    return Search(name=name, folder=folder, found=found, facts=facts, **_insides(parts, name, folder))


def _insides(parts: Parts, name: str, folder: Path) -> dict[str, Any]:
    return {
        "anatomy": parts.json(f"sign conflict of {name}", folder / "anatomy.json", shape.ANATOMY),
        "spectrum": parts.json(f"spectrum of {name}", folder / "spectrum.json", shape.SPECTRUM),
    }


def _read_angles(parts: Parts, name: str, path: Path, absent: str) -> tuple[Mapping[str, Any], ...]:
    """A report for each pivot step; a file of one pivot holds that report alone."""
    found = parts.json(f"angles of {name}", path, dict, absent)
    if found is None:
        return ()
    reports = found.get("pivots", [found])
    if reason := shape.misfit(reports, shape.Each(shape.ANGLES, list)):
        parts.note(f"angles of {name}", path, f"not what a run writes: {reason}")
        return ()
    return tuple(reports)


def _unasked(config: Mapping[str, Any], callback: str) -> str:
    """Why a file of a callback is not there."""
    trainer = config.get("trainer")
    given = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    asked = f"{callback}'" in str(given)  # the end of a class path, in quotes
    return ABSENT if asked else f"{ABSENT}; {callback} is not among the callbacks of the fit"


def _read_evaluations(parts: Parts, found: _Found, folder: Path, summary: Mapping[str, Any] | None) -> None:
    """The models of a recipe, in the order in which it scored them; one that is named and not there is missing."""
    scored = [child.name for child in _children(folder / "evaluation")]
    made = ["base", *found.fits, *found.merges, *found.searches]
    order = [*(summary["models"] if summary else ()), *(name for name in made if name in scored), *scored, *made]
    for name in dict.fromkeys(order):
        if (model := read_model(parts, name, folder / "evaluation" / name)) is not None:
            found.models[name] = model


def _children(folder: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of one name under as much of their paths as tells them apart."""
    named, depth = list(runs), 1
    while len({run.name for run in named}) < len(named) and depth < max(len(run.folder.parts) for run in runs) + 1:
        depth += 1
        names = [run.name for run in named]
        named = [
            replace(run, name="/".join(run.folder.resolve().parts[-depth:])) if names.count(run.name) > 1 else run
            for run in named
        ]
    return named
