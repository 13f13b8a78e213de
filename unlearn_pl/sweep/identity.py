"""Which sweep a folder holds: `sweep.json`, which no other file and no other seed goes on with."""

import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.files import as_json, sha256_of, write_json
from unlearn_pl.sweep.command import files_of
from unlearn_pl.sweep.file import SERVER, SweepFile

FILE = "sweep.json"
FREE = SERVER | {"name", "run_cap"}
"""Keys of a sweep file that change no trial: a sweep goes on when they change."""


def claim(sweep: SweepFile, folder: Path, seed: int, kept: Sequence[str]) -> str:
    """The name of the sweep in a folder, which is now this one's. Raises InputError if it holds another; what the fits
    read (configurations, models, adapters, data) may change as long as no trial is ``kept``."""
    path = folder / FILE
    facts = {"content": json.loads(as_json(sweep.content)), "seed": seed, "files": hashes_of(sweep)}
    if not path.is_file():
        refuse_strange(folder)
        facts["identity"] = (
            f"{re.sub(r'[^A-Za-z0-9_-]', '_', folder.name)}-{uuid.uuid4().hex[:8]}"  # W&B takes no others
        )
        write_json(path, facts)
        return str(facts["identity"])
    known = read_facts(path)
    again = "give another name"
    if deciding(known["content"]) != deciding(facts["content"]):
        raise InputError(f"{folder} was begun with another {sweep.path.name}, or it has changed since; {again}", "name")
    if known["seed"] != seed:
        raise InputError(f"{folder} was begun with the seed {known['seed']}, got {seed}; {again}", "name")
    old, new = known["files"], facts["files"]
    if old != new and kept:
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        raise InputError(f"{' and '.join(changed)} changed since {kept[0]} was begun in {folder}; {again}", "name")
    write_json(path, known | facts)
    return str(known["identity"])


def deciding(content: dict[str, Any]) -> dict[str, Any]:
    """The part of a sweep file that decides what its trials are."""
    return {key: value for key, value in content.items() if key not in FREE}


def refuse_strange(folder: Path) -> None:
    """Raise InputError for a folder that something else has written."""
    if found := next((path for path in sorted(folder.iterdir()) if not path.name.startswith(".")), None):
        raise InputError(f"{folder} holds {found.name} and no sweep; give another name", "name")


def hashes_of(sweep: SweepFile) -> dict[str, str]:
    """Hashes of what the trials read."""
    return {str(path): sha256_of(path) for path in files_of(sweep)}


def read_facts(path: Path) -> dict[str, Any]:
    """What an earlier call wrote."""
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
        sound = {"content", "seed", "files", "identity"} <= {*facts} and isinstance(facts["files"], dict)
        sound = sound and isinstance(facts["content"], dict)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise InputError(f"{path} is not what a sweep writes; give another name", "name")
    return facts
