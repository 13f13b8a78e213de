"""The checked choice of a merge, and the command, in few words."""

from collections.abc import Sequence
from typing import Any

from unlearn_pl.checkpoints.merge import CheckpointOptions
from unlearn_pl.commands.merge import merge as command
from unlearn_pl.merging.options import MergeOptions, MergeSettings


def merge_settings(
    count: int, method: str = "ties", weights: Sequence[float] | None = None, checkpoints: bool = False, **options: Any
) -> MergeSettings:
    """`MergeOptions` of these fields, checked for so many adapters or checkpoints."""
    given = None if weights is None else list(weights)
    return MergeOptions(method=method, weights=given, **options).settings(count, checkpoints)


def merge(*folders: Any, **given: Any) -> None:
    """`unlearn-pl merge` with the fields of its options beside its other arguments, as on the command line."""
    own = {name: given.pop(name) for name in list(given) if name in CheckpointOptions.__dataclass_fields__}
    command(*folders, options=CheckpointOptions(**own), **given)
