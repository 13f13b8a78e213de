"""A quick part of the tests with the lowest and with the highest versions that pyproject.toml allows: `make ranges`.

Each end has an environment of its own below `.ranges/`. On Linux PyPI's torch brings 6 GB of CUDA along; with
UV_TORCH_BACKEND=cpu in the environment the small one of PyTorch's own index is taken. Ends with a table of what was
tried, and exit code 1 if a test failed.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".ranges"
UV = "uv==0.13.9"
ENDS = {"lowest": "lowest-direct", "highest": "highest"}
"""End -> uv's name for it; what is not named in pyproject.toml is new at both."""
TESTS = (
    *("cli", "configs", "sweep_file", "privacy"),  # Lightning, jsonargparse, omegaconf, W&B, Optuna
    *("module", "datamodule", "resume_parts", "objectives"),  # torch, Lightning
    *("load", "lora", "merge_adapters", "readers"),  # transformers, peft, safetensors, datasets
    *("report_page", "report_drawing"),  # jinja2, plotly, matplotlib
)
VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def run(*words: str | Path, **variables: str) -> int:
    """The exit code of a command in the repository."""
    print("+", *words, flush=True)
    return subprocess.run([str(word) for word in words], cwd=ROOT, env=os.environ | variables).returncode


def must(*words: str | Path) -> None:
    """Run a command; end with its exit code if it fails."""
    if code := run(*words):
        sys.exit(code)


def ranges() -> dict[str, str]:
    """What pyproject.toml requires: package -> its range, those of `optuna` and `smollm2` too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["optuna"], *extras["smollm2"]]
    parts = [re.fullmatch(r"([A-Za-z0-9-]+)(?:\[\w+\])?(.*)", one) for one in required]
    return {found[1]: found[2] for found in parts if found}


def tried(end: str) -> tuple[dict[str, str], int]:
    """The versions of an end, and the exit code of the tests with them."""
    python = FOLDER / end / "bin/python"
    uv = FOLDER / "tools/bin/uv"
    must(uv, "venv", "-q", "--clear", "--python", sys.executable, FOLDER / end)
    must(uv, "pip", "install", "-q", "--python", python, "--resolution", ENDS[end], "-e", ".[dev,smollm2]")
    # an old package and a new one that it calls warn of one another, which is no fault of ours
    calm = ["-o", "filterwarnings=default"] if end == "lowest" else []
    tests = [f"tests/test_{name}.py" for name in TESTS]
    code = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *calm, *tests, OMP_NUM_THREADS="1")
    answer = subprocess.run([python, "-c", VERSIONS, *ranges()], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout), code


def main() -> None:
    must(sys.executable, "-m", "venv", FOLDER / "tools")
    must(FOLDER / "tools/bin/python", "-m", "pip", "install", "-q", UV)
    ends = {end: tried(end) for end in ENDS}
    print("\n| package | range | lowest tried | highest tried |\n|---|---|---|---|")
    for name, allowed in ranges().items():
        print(f"| {name} | {allowed} |", " | ".join(versions[name] for versions, _ in ends.values()), "|")
    outcome = {end: "passed" if code == 0 else "FAILED" for end, (_, code) in ends.items()}
    print("\ntests:", ", ".join(f"{end} {what}" for end, what in outcome.items()))
    sys.exit(any(code for _, code in ends.values()))


if __name__ == "__main__":
    main()
