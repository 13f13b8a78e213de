"""`balance` and `compare-merges`: what they write, say and refuse, in this process and by the real command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_folders import write_adapter
from peft import PeftModel

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.commands.balance import balance
from unlearn_pl.commands.compare_merges import compare_merges
from unlearn_pl.commands.scoring import ScoringOptions
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.evaluation.membership import Membership, document_losses
from unlearn_pl.files import sha256_of
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.roc import area_under_curve
from unlearn_pl.models.load import load_base, load_tokenizer
from unlearn_pl.parsing import parse_function

OUTPUTS = [
    "adapter", "anatomy.json", "balance.json", "balance.md", "balance.png", "spectrum.json"
]  # fmt: skip
SHORT = Generation(max_new_tokens=4)
NAMES = ("Anna", "Ida", "Bo", "Cy", "Dora", "Emil")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, tiny_model(), seed) for seed, name in enumerate(("over", "under"))]


def rows(path: Path, split: str) -> str:
    entries = [
        {"id": f"{split}{kind}", "input": f"{split} {kind}:", "output": "it is", "task": "Task1"}
        for kind in ("sc1", "qa0")
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def documents(path: Path, place: str) -> str:
    texts = [{"document": f"{name} was born in {place} in {year}."} for name in NAMES for year in (1984, 1991)]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return EvaluationData(rows(tmp_path / "forget.jsonl", "forget"), rows(tmp_path / "retain.jsonl", "retain"))


@pytest.fixture
def membership(tmp_path):
    member, other = documents(tmp_path / "member.jsonl", "Rome"), documents(tmp_path / "other.jsonl", "Oslo")
    return Membership(member=member, nonmember=other)


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "art_test.csv").write_text("Who?,Ida,Bo,Cy,Di,B\nWhat?,1,2,3,4,A\n")
    return Choice(str(tmp_path / "mmlu"), shots=0)


FEW = BalanceOptions(methods=["cat", "ties"], scales=[1.0], evaluations=2, splits=2)


def test_it_writes_the_search_and_an_adapter_that_has_the_chosen_auc(
    base_folder, adapters, data, membership, questions, tmp_path, capsys
):
    output, model = tmp_path / "balanced", tmp_path / "model"
    options = ScoringOptions(membership=membership, choice=questions, generation=SHORT, device="cpu")
    balance(base_folder, adapters, data, str(output), FEW, save_model=str(model), options=options)
    shown = capsys.readouterr()
    assert sorted(path.name for path in output.iterdir()) == OUTPUTS
    found = json.loads((output / "balance.json").read_text())
    assert {"path", "chosen", "calibration_auc", "holdout_auc", "holdout_interval", "splits", "ranges"} <= found.keys()
    assert list(found["compared"]) == ["over", "under", "ties", "balanced"]
    assert found["provenance"]["versions"]["torch"]
    assert 0 <= found["rounding"] < 1e-4  # float32
    assert found["documents"]["auc_step"] == [1 / 36, 1 / 36]
    hashes = found["provenance"]["sha256"]
    assert hashes["adapters"]["over"] == sha256_of(Path(adapters[0]) / "adapter_model.safetensors")
    assert hashes["data"]["member"] == sha256_of(membership.member)
    assert found["provenance"]["config"]["search"]["scales"] == [1.0]
    assert (output / "balance.md").read_text().strip() in shown.out
    assert "calibration AUC" in shown.err
    # the adapter on the disk, opened by PEFT in a fresh base, and the merged model, give the chosen point's AUC
    tokenizer = load_tokenizer(base_folder)
    texts = {}
    for name, path in (("member", membership.member), ("other", membership.nonmember)):
        texts[name] = [json.loads(line)["document"] for line in Path(path).read_text().splitlines()]
    for network in (
        PeftModel.from_pretrained(load_base(base_folder), str(output / "adapter")), load_base(str(model))
    ):  # fmt: skip
        scores = [
            [-loss for loss in document_losses(LanguageModel(network, tokenizer), side)] for side in texts.values()
        ]
        assert area_under_curve(*scores) == pytest.approx(found["chosen"]["auc"], abs=0.03)


def test_the_same_search_gives_the_same_bytes(base_folder, adapters, data, membership, tmp_path):
    for name in ("one", "two"):
        options = ScoringOptions(membership=membership, generation=SHORT)
        balance(base_folder, adapters, data, str(tmp_path / name), FEW, options=options)
    for name in (*OUTPUTS[1:], "adapter/adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_refusals_leave_nothing(base_folder, adapters, data, membership, tmp_path):
    for given, message in (
        ({"membership": Membership()}, "^membership.nonmember: needed"),
        ({"adapters": adapters[:1]}, "^adapters: two are needed"),
        ({"output": str(tmp_path / "member.jsonl")}, "output: .* exists already"),
        ({"device": "moon"}, "device: moon cannot be used here"),
        ({"search": BalanceOptions(groups=9)}, "^groups: must be at most 2"),
    ):
        scored = {"membership": membership, "generation": SHORT, "device": "cpu"}
        options = ScoringOptions(**{name: given.pop(name, value) for name, value in scored.items()})
        called = {"adapters": adapters, "output": str(tmp_path / "out"), "search": FEW} | given
        with pytest.raises(InputError, match=message):
            balance(base_folder, data=data, options=options, **called)
    assert not (tmp_path / "out").exists()


def test_a_refusal_names_the_flag(base_folder, adapters, data, membership, tmp_path):
    """Options of the search and of the scoring alike, whether they are wrong in themselves or for these adapters."""
    given = ["--base", base_folder, "--adapters", *adapters, "--output", str(tmp_path / "out"), "--device=cpu"]
    given += ["--data.forget", data.forget, "--data.retain", data.retain, "--membership.member", membership.member]
    for command, more, message in (
        (balance, [], r"^--membership\.nonmember: needed"),
        (balance, ["--search.grid=1"], r"^--search\.grid: must be at least 2, got 1"),
        (balance, ["--search.groups=9"], r"^--search\.groups: must be at most 2"),
        (compare_merges, ["--adapters", adapters[0]], r"^--adapters: two are needed"),
        (balance, ["--search.scales=[1, 1.0]"], r"^--search\.scales: each only once, got 1.0 twice"),
        (compare_merges, ["--methods=[ties, cat, ties]"], r"^--methods: each only once, got ties twice"),
        (balance, ["--search.densities=[0.5, 2]"], r"^--search\.densities: must be in \(0, 1\], got 2"),
        (compare_merges, ["--densities=[0]"], r"^--densities: must be in \(0, 1\], got 0"),
        (compare_merges, ["--methods=[]"], r"^--methods: at least one is needed"),
    ):
        documents = [] if "nonmember" in message else ["--membership.nonmember", membership.nonmember]
        with pytest.raises(InputError, match=message):
            parse_function(command, [*given, *documents, *more], "command")
    assert not (tmp_path / "out").exists()


def test_compared_methods_have_both_scores_and_one_norm(
    base_folder, adapters, data, membership, questions, tmp_path, capsys
):
    output = tmp_path / "compared"
    options = ScoringOptions(membership=membership, choice=questions, generation=SHORT)
    methods = ["linear", "ties", "magnitude_prune_svd"]
    compare_merges(base_folder, adapters, data, str(output), methods, densities=[0.3, 0.8], options=options)
    assert sorted(path.name for path in output.iterdir()) == ["densities.png", "merges.json", "merges.md"]
    written = json.loads((output / "merges.json").read_text())
    cases = [(row["method"], row["density"]) for row in written["methods"]]
    assert cases == [("linear", None)] + [(m, d) for m in ("ties", "magnitude_prune_svd") for d in (0.3, 0.8)]
    norms = [row["normalised"]["norm"] for row in written["methods"]]
    assert norms == pytest.approx([norms[0]] * 5, rel=1e-5)
    assert len({round(row["defined"]["norm"], 3) for row in written["methods"]}) == 5
    by_case = dict(zip(cases, written["methods"], strict=True))
    assert by_case["linear", None]["trimmed_mass"] == 0
    assert by_case["ties", 0.3]["trimmed_mass"] > by_case["ties", 0.8]["trimmed_mass"] > 0
    assert (output / "merges.md").read_text().strip() in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^methods: must be one of .*did you mean ties"):
        compare_merges(base_folder, adapters, data, str(tmp_path / "x"), ["tiez"], options=options)
    with pytest.raises(InputError, match=r"^densities: must be in"):
        compare_merges(
            base_folder, adapters, data, str(tmp_path / "x"), ["ties"], densities=[0.5, 1.5], options=options
        )
    assert not (tmp_path / "x").exists()


def test_the_command_line(base_folder, adapters, data, membership, tmp_path):
    """Lists inside of options are given with blanks between, as everywhere; a mistake is one line and exit code 2."""
    command = [sys.executable, "-m", "unlearn_pl", "balance", "--base", base_folder, "--adapters", *adapters]
    command += ["--data.forget", data.forget, "--data.retain", data.retain, "--generation.max_new_tokens", "4"]
    command += ["--membership.member", membership.member, "--membership.nonmember", membership.nonmember]
    command += ["--search.methods", "cat", "--search.scales", "0.5", "1", "--search.splits=1"]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "balance.json").read_text())
    assert {point["scale"] for point in found["path"]} == {0.5, 1.0}
    wrong = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].startswith("unlearn-pl: error: --output: ")
    assert len(wrong.stderr.strip().splitlines()) == 1
