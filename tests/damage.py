"""Hypothesis strategies that damage what a user could give: trees (JSON, YAML), bytes, command lines, tensors."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Path = tuple[Any, ...]
"""The keys and places that lead to a value of a tree."""

# None of them is a path that anything could be written to outside of the folder of a case.
TEXTS = [
    "",
    " ",
    "x",
    "0",
    "-1",
    "1e-4",
    "1e400",
    "nan",
    "null",
    "true",
    "no such/place",
    "in",
    "a\nb",
    "a\0b",
    "\ud800",
    "é\u202e😀",
]
TEXTS += [
    "y" * 5000,
    "${x}",
    "${oc.env:HOME}",
    "os.system",
    "builtins.eval",
    "torch.nn.Linear",
    "NPO",
    "hf:",
    "-",
    "--",
    "[",
    "{",
    "*a",
]
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, 2**70, 0.5, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan]
ODD = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], [1, "x"], {"a": {}}, {"": None}, {1: 2}]

odd = st.sampled_from(ODD).map(copy.deepcopy)


def paths(tree: Any, here: Path = ()) -> Iterator[Path]:
    """Where the values of a tree are, its own place first."""
    yield here
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths(value, (*here, key))


def at(tree: Any, path: Path) -> Any:
    """The value there."""
    for key in path:
        tree = tree[key]
    return tree


def nested(value: Any, times: int) -> Any:
    """A list in a list in a list."""
    for _ in range(times):
        value = [value]
    return value


OPERATIONS = ("replace", "remove", "rename", "double", "swap", "list", "mapping", "text", "nest")


@st.composite
def damaged_tree(draw: Callable[..., Any], tree: Any, most: int = 2) -> Any:
    """``tree`` with up to ``most`` things changed: values replaced, removed, swapped, renamed, wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        places = list(paths(tree))
        path = draw(st.sampled_from(places))
        operation = draw(st.sampled_from(OPERATIONS))
        if not path:
            if operation in ("list", "nest", "text") or not isinstance(tree, dict | list):
                return damaged_value(tree, operation, draw)
            continue
        inside, key = at(tree, path[:-1]), path[-1]
        if operation == "remove":
            del inside[key]
        elif operation == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from([f"{key}x", str(key).upper(), "", None, 1, "class_path"]))] = inside.pop(key)
        elif operation == "double":
            inside[key] = [inside[key], copy.deepcopy(inside[key])]
        elif operation == "swap":
            other = draw(st.sampled_from(places))
            inside[key] = copy.deepcopy(at(tree, other))
        else:
            inside[key] = damaged_value(inside[key], operation, draw)
    return tree


def damaged_value(value: Any, operation: str, draw: Callable[..., Any]) -> Any:
    """Another value in the place of ``value``."""
    if operation == "list":
        return [value]
    if operation == "mapping":
        return {"x": value}
    if operation == "text":
        return str(value)
    if operation == "nest":
        return nested(value, draw(st.sampled_from([3, 300])))
    return draw(odd)


PIECES = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"\t",
    b",",
    b"\xe2\x80\xa8",
    b"NaN",
    b"\x80\x04",
]


@st.composite
def damaged_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """``content`` torn, with a bit flipped, a part cut out, doubled, emptied, or something put in."""
    operation = draw(st.sampled_from(["tear", "flip", "cut", "double", "empty", "insert", "nothing", "foreign"]))
    one = draw(st.integers(0, len(content)))
    other = min(len(content), one + draw(st.sampled_from([1, 2, 8, 100, 4096])))
    if operation == "tear":
        return content[:one]
    if operation == "flip" and one < len(content):
        return content[:one] + bytes([content[one] ^ (1 << draw(st.integers(0, 7)))]) + content[one + 1 :]
    if operation == "cut":
        return content[:one] + content[other:]
    if operation == "double":
        return content[:other] + content[one:]
    if operation == "empty":
        return content[:one] + bytes(other - one) + content[other:]
    if operation == "insert":
        return content[:one] + draw(st.sampled_from(PIECES)) + content[one:]
    if operation == "nothing":
        return b""
    return draw(st.binary(max_size=64))


def as_lines(rows: Any) -> bytes:
    """A list of rows as JSON lines; whatever else as one."""
    rows = rows if isinstance(rows, list) else [rows]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@st.composite
def damaged_tensors(draw: Callable[..., Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with one tensor gone, renamed, of another shape or type, not finite, or one too many."""
    state = {name: value.clone() for name, value in state.items()}
    name = draw(st.sampled_from(sorted(state)))
    value = state.pop(name)
    operation = draw(st.sampled_from(["gone", "name", "shape", "turned", "type", "number", "more", "none", "empty"]))
    if operation == "name":
        state[draw(st.sampled_from([f"{name}x", "x", name.replace("layers.0", "layers.7"), name.upper()]))] = value
    elif operation == "shape":
        state[name] = value.flatten()[: draw(st.integers(0, value.numel()))].clone()
    elif operation == "turned":
        state[name] = value.transpose(0, -1).contiguous() if value.dim() else value
    elif operation == "type":
        kinds = [torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.complex64]
        state[name] = value.to(draw(st.sampled_from(kinds)))
    elif operation == "number" and value.is_floating_point():
        value.view(-1)[draw(st.integers(0, value.numel() - 1))] = draw(st.sampled_from([math.nan, math.inf, 1e38, 0]))
        state[name] = value
    elif operation == "more":
        state |= {name: value, "surplus": torch.zeros(draw(st.sampled_from([0, 1, 3])))}
    elif operation == "none":
        return {}
    elif operation == "empty":
        state[name] = torch.empty(0, *value.shape[1:])
    return state


@st.composite
def damaged_words(draw: Callable[..., Any], words: list[str]) -> list[str]:
    """A command line with words gone, doubled, moved, misspelt, or with odd values in their places."""
    words = list(words)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(1, len(words) - 1)) if len(words) > 1 else 0
        word = words[place]
        flag, equals, _ = word.partition("=")
        value = word_of(draw(odd))
        operation = draw(st.sampled_from(["value", "value", "gone", "double", "move", "misspell", "more", "plus"]))
        if operation == "value":
            words[place] = f"{flag}={value}" if equals else value
        elif operation == "gone":
            del words[place]
        elif operation == "double":
            words.insert(place, word)
        elif operation == "move":
            words.insert(draw(st.integers(1, len(words))), words.pop(place))
        elif operation == "misspell":
            words[place] = word[:-1] if draw(st.booleans()) else f"{word}x"
        elif operation == "more":
            words.insert(place, value)
        else:
            words[place] = f"{flag}.x{equals}{value}" if draw(st.booleans()) else f"{flag}+={value}"
        if not words:
            return words
    return words


def word_of(value: Any) -> str:
    """A value as a shell could hand it over: without NUL characters and halves of characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("\0", "0").encode("utf-8", "replace").decode()
