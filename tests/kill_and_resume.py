"""Kill a fit at random moments, go on from its last checkpoint each time, and compare the adapter with a run in peace.

    python tests/kill_and_resume.py --config configs/demo/over.yaml --kills 12

Anything after these arguments goes to `unlearn-pl fit` (`--trainer.accumulate_grad_batches=3`, for example). The demo's
configuration needs its base model and rows: `unlearn-pl run configs/demo.yaml --until base`. Each kill is a fit of its
own: started, killed (SIGKILL) after a random time within its training, resumed to the end. Exit code 0 if every resumed
fit ends with the bytes of the run in peace.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIT = [sys.executable, "-m", "unlearn_pl", "fit"]
WEIGHTS = "adapter/adapter_model.safetensors"


def arguments(config: str, folder: Path, extra: list[str]) -> list[str]:
    """Of a fit into ``folder`` that keeps the checkpoint of its last step."""
    saver = "lightning.pytorch.callbacks.ModelCheckpoint"
    options = {"dirpath": folder / "kept", "save_last": "true", "every_n_train_steps": 1, "save_top_k": 1}
    callback = [f"--trainer.callbacks+={saver}", *(f"--trainer.callbacks.{k}={v}" for k, v in options.items())]
    callback.append("--trainer.callbacks.enable_version_counter=false")
    return ["--config", config, f"--trainer.default_root_dir={folder}", *callback, *extra]


def timed(args: list[str], kept: Path) -> tuple[float, float]:
    """Run a fit to its end: seconds until its first checkpoint, and in all."""
    began = time.monotonic()
    process = subprocess.Popen([*FIT, *args], stdout=subprocess.DEVNULL)
    first = 0.0
    while process.poll() is None:
        if not first and (kept / "last.ckpt").exists():
            first = time.monotonic() - began
        time.sleep(0.02)
    assert process.returncode == 0, "the run in peace failed"
    return first, time.monotonic() - began


def kill_within(args: list[str], kept: Path, seconds: float) -> bool:
    """Kill a fit so many seconds after its first checkpoint; whether it was still training."""
    process = subprocess.Popen([*FIT, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (kept / "last.ckpt").exists():
        time.sleep(0.005)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options, extra = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first, total = timed(arguments(options.config, root / "peace", extra), root / "peace/kept")
        expected = (root / "peace" / WEIGHTS).read_bytes()
        equal = done = attempts = 0
        while done < options.kills:
            folder, attempts = root / f"kill{attempts}", attempts + 1
            args = arguments(options.config, folder, extra)
            seconds = draw.uniform(0, 0.8 * (total - first))
            if not kill_within(args, folder / "kept", seconds) or (folder / "adapter").exists():
                continue
            again = subprocess.run([*FIT, *args, f"--ckpt_path={folder}/kept/last.ckpt"], capture_output=True)
            same = again.returncode == 0 and (folder / WEIGHTS).read_bytes() == expected
            done, equal = done + 1, equal + same
            print(f"killed after {seconds:.2f} s of training: {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {done} equal")
    sys.exit(equal != done)


if __name__ == "__main__":
    main()
