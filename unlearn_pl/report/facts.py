"""Facts: the exact settings, versions and hashes that the parts of a run were made with, as YAML to read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from unlearn_pl.report.run import Run


@dataclass(frozen=True)
class Fact:
    """Settings of one part."""

    name: str
    text: str
    """YAML."""


def facts_of(run: Run) -> list[Fact]:
    """Versions first, then each part in the order in which a recipe makes them."""
    return [*_versions(run), *(Fact(name, dumped(found)) for name, found in _parts(run) if found)]


def _versions(run: Run) -> Iterator[Fact]:
    """Versions and commit, once where all parts of the run share them."""
    groups: dict[str, list[str]] = {}
    for name, found in _origins(run):
        if found and found.get("versions"):
            text = dumped({key: found.get(key) for key in ("commit", "versions")})
            groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        yield Fact("versions and commit" if len(groups) == 1 else f"versions and commit of {', '.join(names)}", text)


def _origins(run: Run) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    yield "the recipe", run.summary
    for fit in run.fits.values():
        yield fit.name, fit.adapter
    for merge in [*run.merges.values(), *run.searches.values()]:
        yield merge.name, merge.facts
    for search in run.searches.values():
        yield search.name, search.found.get("provenance")
    for comparison in run.comparisons.values():
        yield comparison.name, comparison.found.get("provenance")
    for model in run.models.values():
        yield f"the scores of {model.name}", model.results.get("provenance")


def _parts(run: Run) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    yield "recipe", (run.summary or {}).get("config")
    for fit in run.fits.values():
        yield f"fit {fit.name}: config.yaml", fit.config
        yield f"fit {fit.name}: adapter", _without_versions(fit.adapter)
    for merge in run.merges.values():
        yield f"merge {merge.name}", _without_versions(merge.facts)
    for search in run.searches.values():
        yield f"balance search {search.name}", _without_versions(search.found.get("provenance"))
        yield f"balanced adapter of {search.name}", _without_versions(search.facts)
    for comparison in run.comparisons.values():
        yield f"comparison {comparison.name}", _without_versions(comparison.found.get("provenance"))
    for model in run.models.values():
        yield f"evaluation of {model.name}", _without_versions(model.results.get("provenance"))


def _without_versions(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (found or {}).items() if key not in ("versions", "commit")}


def dumped(value: Any) -> str:
    """As YAML, in the order that it has."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
