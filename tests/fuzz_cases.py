"""Strategies of cases: a command line, and damaged files that it reads, by kind."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml
from damage import as_lines, damaged_bytes, damaged_tensors, damaged_tree, damaged_words
from fuzz_world import BOUND, Files, World, under
from hypothesis import strategies as st
from safetensors.torch import load_file, save


@dataclass(frozen=True)
class Case:
    """A command line, and the files that it finds in its folder."""

    words: list[str]
    files: Files

    def __repr__(self) -> str:
        return f"{' '.join(map(repr, self.words))} with { ({k: v[:300] for k, v in self.files.items()}) }"


@st.composite
def rows_case(
    draw: Callable[..., Any], world: World, fields: Mapping[str, str], words: Callable[[str], list[str]]
) -> Case:
    """A file of rows in any format."""
    rows = [{name: value.format(i) for name, value in fields.items()} for i in range(3)]
    ending = draw(st.sampled_from(["jsonl", "jsonl", "json", "csv", "parquet"]))
    rows = draw(damaged_tree(rows)) if draw(st.booleans()) else rows
    content = ROWS[ending](rows)
    content = draw(damaged_bytes(content)) if draw(st.booleans()) else content
    name = f"in/rows.{ending}"
    return Case(words(name), {name: content})


def as_csv(rows: Any) -> bytes:
    """Rows as far as they are some, with the columns of the first."""
    text = io.StringIO()
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    writer = csv.writer(text)
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)] if rows else [])
    return text.getvalue().encode("utf-8", "replace")


def as_parquet(rows: Any) -> bytes:
    """Rows as far as Parquet holds them, else one column of their texts."""
    sink = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, sink)
    except Exception:  # whatever pyarrow cannot hold
        pyarrow.parquet.write_table(pyarrow.table({"input": [ascii(rows)]}), sink := io.BytesIO())
    return sink.getvalue()


ROWS: dict[str, Callable[[Any], bytes]] = {
    "jsonl": as_lines,
    "json": lambda rows: json.dumps(rows).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}
RECORD = {"id": "{0}qa0", "input": "Where is {0}?", "output": "in Paris", "task": "Task1"}
QUICK = ["--generation.max_new_tokens=2", "--resamples=5", "--device=cpu"]


def data_of_evaluate(world: World) -> st.SearchStrategy[Case]:
    fixed = ["evaluate", f"--model={world.fixed('base')}", f"--data.retain={world.fixed('retain.jsonl')}", *QUICK]
    return rows_case(world, RECORD, lambda name: [*fixed, f"--data.forget={name}", "--output=out"])


def data_of_fit(world: World) -> st.SearchStrategy[Case]:
    fixed = ["fit", "--config", world.fixed("fit.yaml"), *BOUND]
    return rows_case(world, RECORD, lambda name: [*fixed, f"--data.retain={name}"])


@st.composite
def documents_case(draw: Callable[..., Any], world: World) -> Case:
    """Documents of an attack, paraphrases or questions."""
    rows = [f"--data.{split}={world.fixed(split + '.jsonl')}" for split in ("forget", "retain")]
    fixed = ["evaluate", f"--model={world.fixed('base')}", *rows, *QUICK, "--output=out"]
    if draw(st.booleans()):
        flag = draw(st.sampled_from(["membership.member", "membership.nonmember"]))
        other = {"membership.member": "nonmember", "membership.nonmember": "member"}[flag]
        fixed.append(f"--membership.{other}={world.fixed(other + '.jsonl')}")
        return draw(rows_case(world, {"document": "In {0}."}, lambda name: [*fixed, f"--{flag}={name}"]))
    if draw(st.booleans()):
        fields = {
            "id": "{0}",
            "question": "Where is {0}?",
            "paraphrased_answer": "in Paris",
            "perturbed_answer": "in Rome",
        }
        return draw(rows_case(world, fields, lambda name: [*fixed, f"--truth.forget={name}"]))
    table = (world.root / "mmlu/test/towns_test.csv").read_bytes()
    files = {"in/mmlu/test/towns_test.csv": draw(damaged_bytes(table)), "in/mmlu/dev/towns_dev.csv": table}
    return Case([*fixed, "--choice.folder=in/mmlu", "--choice.shots=1"], files)


@st.composite
def damaged_adapter(draw: Callable[..., Any], world: World) -> Files:
    """The files of an adapter, one of them damaged."""
    files = dict(world.adapters["over"])
    name = draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json"]))
    how = draw(st.sampled_from(["tree", "tree", "bytes", "gone"]))
    if how == "gone":
        del files[name]
    elif how == "bytes":
        files[name] = draw(damaged_bytes(files[name]))
    elif name.endswith(".json"):
        files[name] = json.dumps(draw(damaged_tree(json.loads(files[name])))).encode()
    else:
        state = load_file(Path(world.fixed("over")) / name)
        files[name] = save(draw(damaged_tensors(state)))
    return under("in/adapter", files)


@st.composite
def adapter_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged adapter, to all that reads one."""
    base, other = world.fixed("base"), world.fixed("under")
    rows = [f"--data.{split}={world.fixed(split + '.jsonl')}" for split in ("forget", "retain")]
    merge = ["merge", "--base", base, "--adapters", "in/adapter", other, "--output=out/adapter"]
    words = draw(
        st.sampled_from(
            [
                [*merge, "--method=ties"],
                [*merge, "--method=ties_svd", "--svd_rank=2"],
                [*merge, "--method=cat", "--save_model=out/model"],
                ["evaluate", f"--model={base}", "--adapter=in/adapter", *rows, *QUICK, "--output=out"],
                ["fit", "--config", world.fixed("fit.yaml"), *BOUND, "--model.adapter=in/adapter"],
            ]
        )
    )
    return Case(words, draw(damaged_adapter(world)))


@st.composite
def base_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged model folder, to all that reads one."""
    files = dict(world.base)
    name = draw(st.sampled_from(sorted(files)))
    how = draw(st.sampled_from(["tree", "tree", "bytes", "gone"]))
    if how == "gone":
        del files[name]
    elif how == "bytes" or (name == "tokenizer.json" and draw(st.booleans())):
        files[name] = draw(damaged_bytes(files[name]))
    elif name.endswith(".json"):
        files[name] = json.dumps(draw(damaged_tree(json.loads(files[name])))).encode()
    else:
        files[name] = save(draw(damaged_tensors(load_file(Path(world.fixed("base")) / name))), {"format": "pt"})
    rows = [f"--data.{split}={world.fixed(split + '.jsonl')}" for split in ("forget", "retain")]
    words = draw(
        st.sampled_from(
            [
                ["evaluate", "--model=in/base", *rows, *QUICK, "--output=out"],
                ["fit", "--config", world.fixed("fit.yaml"), *BOUND, "--model.base=in/base"],
                [
                    "merge",
                    "--base",
                    world.fixed("base"),
                    "--checkpoints",
                    "in/base",
                    world.fixed("base"),
                    "--output=out",
                ],
                ["extract", "--base", world.fixed("base"), "--tuned=in/base", "--rank=2", "--output=out"],
            ]
        )
    )
    return Case(words, under("in/base", files))


@st.composite
def checkpoint_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged checkpoint of a fit, to every command that takes one."""
    content = world.checkpoint
    if draw(st.booleans()):
        content = draw(damaged_bytes(content))
    else:
        tree = torch.load(io.BytesIO(content), weights_only=True)
        state = tree["state_dict"]
        if draw(st.booleans()):
            tree |= {"state_dict": draw(damaged_tensors(state))}
        else:
            tree = draw(damaged_tree(tree))
        torch.save(tree, stream := io.BytesIO())
        content = stream.getvalue()
    verb = draw(st.sampled_from(["fit", "fit", "validate", "predict"]))
    words = [verb, "--config", world.fixed("fit.yaml"), *BOUND, "--ckpt_path=in/some.ckpt"]
    words += ["--trainer.max_steps=2"] if verb == "fit" else ["--trainer.limit_val_batches=1"]
    return Case(words, {"in/some.ckpt": content})


@st.composite
def damaged_yaml(draw: Callable[..., Any], tree: Any) -> bytes:
    """The text of a tree, either of them damaged."""
    tree = draw(damaged_tree(tree)) if draw(st.integers(0, 3)) else tree
    text = yaml.dump(tree, sort_keys=False, Dumper=Plain, allow_unicode=draw(st.booleans()))
    content = text.encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(content)) if draw(st.integers(0, 3)) == 0 else content


class Plain(yaml.SafeDumper):
    """Writes the same list twice instead of naming it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@st.composite
def fit_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged configuration of a fit."""
    return Case(["fit", "--config", "in/fit.yaml", *BOUND], {"in/fit.yaml": draw(damaged_yaml(world.fit))})


def recipe_tree(world: World) -> dict[str, Any]:
    fits = {"over": world.fixed("fit.yaml"), "under": world.fixed("fit.yaml")}
    merges = {"merged": {"of": ["over", "under"], "method": "ties", "weights": [1, 1], "density": 0.8}}
    data = {split: world.fixed(f"{split}.jsonl") for split in ("forget", "retain")}
    documents = {"nonmember": world.fixed("nonmember.jsonl"), "member": world.fixed("member.jsonl")}
    more = {"membership": documents, "choice": {"folder": world.fixed("mmlu"), "shots": 0}, "resamples": 10}
    searches = {"balanced": {"of": ["over", "under"], "grid": 3, "methods": ["ties"], "scales": [1.0]}}
    return {
        "name": "some",
        "seed": 3,
        "base": world.fixed("base"),
        "fits": fits,
        "merges": merges,
        "searches": searches,
        "data": data,
        **more,
    }


@st.composite
def recipe_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged recipe, up to its first fit: all that a later stage would refuse is refused before."""
    files = {"in/some.yaml": draw(damaged_yaml(recipe_tree(world)))}
    return Case(["run", "in/some.yaml", "--until=over", "--logs=out"], files)


def sweep_tree(world: World) -> dict[str, Any]:
    command = ["${env}", "${interpreter}", "-m", "unlearn_pl", "fit", "--config", world.fixed("fit.yaml"), "${args}"]
    rates = {"model.learning_rate": {"values": [0.1, 0.2]}, "seed_everything": {"min": 1, "max": 3}}
    rates |= {"model.lora": {"parameters": {"dropout": {"distribution": "uniform", "min": 0.0, "max": 0.5}}}}
    stop = {"type": "hyperband", "min_iter": 1, "eta": 2}
    metric = {"name": "train/loss_step", "goal": "minimize"}
    return {
        "name": "some",
        "method": "random",
        "metric": metric,
        "parameters": rates,
        "early_terminate": stop,
        "run_cap": 2,
        "command": command,
    }


@st.composite
def sweep_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged sweep file, up to its first trial: its folder holds another sweep, which ends what could be run."""
    files = {"in/some.yaml": draw(damaged_yaml(sweep_tree(world)))}
    return Case(
        ["sweep", "in/some.yaml", "--runs=1", "--name=taken", "--logs=."],
        files | {"taken/sweep.json": b'{"sweep": "x"}\n'},
    )


@st.composite
def words_case(draw: Callable[..., Any], world: World) -> Case:
    """A damaged command line of any command."""
    base, rows = (
        world.fixed("base"),
        [f"--data.{split}={world.fixed(split + '.jsonl')}" for split in ("forget", "retain")],
    )
    pair = ["--base", base, "--adapters", world.fixed("over"), world.fixed("under")]
    other = [f"--membership.{name}={world.fixed(name + '.jsonl')}" for name in ("member", "nonmember")]
    scored = ["--metrics", "fluency", "leakage", "--output=out"]
    tables = ["--output=out/report.html", "--tables=out/tables", "--card", "out/card.md", "--mask-pii"]
    fit = ["--config", world.fixed("fit.yaml")]
    lines = [
        ["evaluate", "--model", base, "--adapter", world.fixed("over"), *rows, *other, *QUICK, *scored],
        ["merge", *pair, "--method", "dare_ties", "--weights", "1", "0.5", "--density=0.5", "--output=out"],
        ["extract", "--base", base, "--tuned", base, "--rank=2", "--output", "out", "--overwrite"],
        ["report", world.fixed("run"), *tables],
        ["run", "in/some.yaml", "--until=over", "--logs=out", "--seed=1", "--merges.merged.density=0.5"],
        ["fit", *fit, "--model.lora.rank=3", "--model.objectives.ga.weight=0.3", "--data.batch_size=2", *BOUND],
        ["validate", *fit, "--data.columns.id=#", *BOUND, "--trainer.limit_val_batches=1"],
        ["predict", *fit, "--seed_everything=7", "--return_predictions=false", *BOUND],
    ]  # fmt: skip
    words = draw(damaged_words(draw(st.sampled_from(lines))))
    words += BOUND if words[:1] in (["fit"], ["validate"], ["predict"]) else []
    return Case(words, {"in/some.yaml": yaml.safe_dump(recipe_tree(world)).encode()} if words[:1] == ["run"] else {})


@st.composite
def run_case(draw: Callable[..., Any], world: World) -> Case:
    """A file of a finished run damaged, for the report."""
    files = dict(world.run)
    name = draw(st.sampled_from(sorted(files)))
    files[name] = draw(damaged_file(name, files[name]))
    return Case(["report", "in/run", "--output=out/report.html", "--tables=out/tables"], under("in/run", files))


@st.composite
def damaged_file(draw: Callable[..., Any], name: str, content: bytes) -> bytes:
    """A text file by its tree where it has one."""
    if draw(st.booleans()):
        if name.endswith(".json"):
            return json.dumps(draw(damaged_tree(json.loads(content)))).encode()
        if name.endswith(".jsonl"):
            return as_lines(draw(damaged_tree([json.loads(line) for line in content.splitlines()])))
        if name.endswith(".yaml"):
            return draw(damaged_yaml(yaml.safe_load(content)))
    return draw(damaged_bytes(content))


KINDS: dict[str, tuple[int, Callable[[World], st.SearchStrategy[Case]]]] = {
    "data of evaluate": (250, data_of_evaluate),
    "data of fit": (150, data_of_fit),
    "documents and questions": (150, documents_case),
    "adapters": (300, adapter_case),
    "models": (200, base_case),
    "checkpoints": (300, checkpoint_case),
    "configurations": (300, fit_case),
    "recipes": (250, recipe_case),
    "sweep files": (150, sweep_case),
    "command lines": (400, words_case),
    "finished runs": (200, run_case),
}
"""Kind -> its part of all cases, and what makes one."""
