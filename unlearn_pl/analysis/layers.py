"""Layers of a model, by the names of its modules."""

import re
from collections.abc import Iterable

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
OTHER = "other"


def layer_of(module: str) -> str:
    """The first number in a module's name (``3`` of ``model.layers.3.mlp``), or ``other``."""
    match = LAYER.search(module)
    return match[1] if match else OTHER


def by_layer(modules: Iterable[str]) -> dict[str, list[str]]:
    """Layer -> its modules in the order given, the layers by number and ``other`` after them."""
    layers: dict[str, list[str]] = {}
    for module in modules:
        layers.setdefault(layer_of(module), []).append(module)
    order = sorted(layers, key=lambda layer: (layer == OTHER, 0 if layer == OTHER else int(layer)))
    return {layer: layers[layer] for layer in order}
