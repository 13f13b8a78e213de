"""A kernel with a number of its own is a change of one file, `merging/kernels.py`."""

import subprocess
import sys
from pathlib import Path

from adapter_folders import tensors, write_adapter

FIELD = '''    tilt: float | None = parameter(0.25, "[0, 2)")
    """How far the sum leans to the first tensor, in [0, 2)."""


PARAMETERS'''
ROW = """def leaning(tensors, weights, options):
    return weighted_sum(tensors, [options.tilt, *weights[1:]], options)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="lean", paper="none", combine=leaning, parameters=("tilt",)),
"""
SCRIPT = """
import sys
from pathlib import Path
import unlearn_pl.merging.kernels as kernels
source = Path(kernels.__file__).read_text()
field, row = sys.argv[1:3]
start = 'KERNELS = {\\n    kernel.name: kernel\\n    for kernel in (\\n'
assert source.count('\\n\\nPARAMETERS') == source.count(start) == 1
source = source.replace('\\n\\nPARAMETERS', '\\n' + field).replace(start, row)
exec(compile(source, 'kernels.py', 'exec'), kernels.__dict__)
from unlearn_pl.commands.merge import listing, merge
from unlearn_pl.merging.merge import merge_adapters
from unlearn_pl.parsing import parse_function
base, one, other, out = sys.argv[3:]
args = ['--base', base, '--adapters', one, other, '--method', 'lean_svd']
parse_function(merge, [*args, '--tilt', '0.5', '--output', out + '/command'], 'merge')
merge_adapters(base, [one, other], method='lean_svd', tilt=0.5).save(out + '/python')
merge_adapters(base, [one, other], method='lean_svd').save(out + '/default')
for more in (['--tilt', '2'], ['--tilt', '1', '--method', 'ties']):
    try:
        parse_function(merge, [*args, *more, '--output', out + '/none'], 'merge')
    except ValueError as error:
        print(error)
listing()
"""


def test_a_kernel_with_a_number_of_its_own_is_one_file(base_folder: str, tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its flag, its range, its default, its listing and its names in every space follow from field and row."""
    pair = [write_adapter(tmp_path / name, tiny_model(), seed) for seed, name in enumerate("ab")]
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, FIELD, ROW, base_folder, *pair, str(tmp_path)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "--tilt: must be in [0, 2), got 2.0\n" in told
    assert "--tilt: ties has no use for it (the kernels lean have), got 1.0\n" in told
    assert "--tilt [0, 2), 0.25" in told
    assert all(name in told for name in ("lean_svd", "lean_dense"))
    command, python, default = (tensors(tmp_path / name) for name in ("command", "python", "default"))
    assert all((python[name] == value).all() for name, value in command.items())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert not (default[name] == command[name]).all()
