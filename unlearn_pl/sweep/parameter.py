"""Parameter: what a sweep changes from trial to trial, in the words of W&B's sweep files."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from unlearn_pl.errors import InputError

NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
"""What W&B takes as the name of a parameter."""
DIGITS = 6
"""Significant digits of a number that is drawn: more say nothing, and nobody reads them on a command line."""
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "inv_log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform_values": ("min", "max", "q"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
"""Distribution -> the numbers that describe it."""
DEFAULTS = {"q": 1, "mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
LARGEST, SMALLEST = 1e100, 1e-100
"""Beyond these a number is a mistake, and no quotient of two of them is infinite."""
LARGEST_EXPONENT = 200.0
"""Of e, in the distributions that are described by exponents."""
MOST_POINTS = 100_000
"""Of one parameter of a grid."""
LISTS = {"constant": {"value"}, "categorical": {"values"}, "categorical_w_probabilities": {"values", "probabilities"}}
"""Distribution -> the keys of one that is a list of values."""
SAMPLERS: Mapping[str, Callable[[Mapping[str, Any], Random], float]] = {
    "int_uniform": lambda n, random: random.randint(n["min"], n["max"]),
    "uniform": lambda n, random: random.uniform(n["min"], n["max"]),
    "log_uniform": lambda n, random: math.exp(random.uniform(n["min"], n["max"])),
    "inv_log_uniform": lambda n, random: math.exp(-random.uniform(n["min"], n["max"])),
    "log_uniform_values": lambda n, random: math.exp(random.uniform(math.log(n["min"]), math.log(n["max"]))),
    "inv_log_uniform_values": lambda n, random: math.exp(random.uniform(math.log(n["min"]), math.log(n["max"]))),
    "normal": lambda n, random: random.normalvariate(n["mu"], n["sigma"]),
    "log_normal": lambda n, random: math.exp(random.normalvariate(n["mu"], n["sigma"])),
    "beta": lambda n, random: random.betavariate(n["a"], n["b"]),
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One flag of a trial, without its dashes."""

    name: str
    distribution: str
    values: tuple[Any, ...] = ()
    """Those of a constant or a category."""
    probabilities: tuple[float, ...] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Those of a distribution over numbers, by W&B's keys."""

    def draw(self, random: Random) -> Any:
        """A value by the parameter's distribution."""
        if self.values:
            return random.choices(self.values, self.probabilities)[0]
        return self.rounded(SAMPLERS[self.distribution.removeprefix("q_")](self.numbers, random))

    def rounded(self, value: float) -> float | int:
        """A number as a trial gets it: a multiple of ``q`` where there is one, else with as many digits as say
        something, and within the bounds."""
        if (q := self.numbers.get("q")) is not None:
            steps = round(value / q)
            return steps * q if isinstance(q, int) else float(f"{steps * q:.12g}")
        if isinstance(value, int):
            return value
        short = float(f"{value:.{DIGITS}g}")
        if self.distribution in ("uniform", "log_uniform_values", "inv_log_uniform_values"):
            short = min(max(short, float(self.numbers["min"])), float(self.numbers["max"]))
        return short

    @property
    def grid(self) -> tuple[Any, ...]:
        """All values, in order. Raises InputError for a parameter that has no end of them."""
        numbers = self.numbers
        if self.values and self.probabilities is None:
            return self.values
        if self.distribution not in ("int_uniform", "q_uniform"):
            reason = f"a grid takes value, values, int_uniform or q_uniform, got {self.distribution}"
            raise InputError(reason, self.place)
        low, high, step = numbers["min"], numbers["max"], numbers.get("q", 1)
        # q_uniform without its upper end, as W&B counts
        count = high - low + 1 if self.distribution == "int_uniform" else math.ceil((high - low) / step - 1e-9)
        if not 1 <= count <= MOST_POINTS:
            raise InputError(f"a grid takes 1 to {MOST_POINTS} values of a parameter, got {count}", self.place)
        whole = all(isinstance(one, int) for one in (low, step))
        points = (low + place * step for place in range(count))
        return tuple(points) if whole else tuple(float(f"{point:.12g}") for point in points)

    @property
    def texts(self) -> list[Any]:
        """Its values but for numbers: names of classes and the like, any of which may be misspelt."""
        return [one for one in self.values if not is_number(one)]

    @property
    def place(self) -> str:
        """Where it stands in the file."""
        return f"parameters.{self.name}"


def parameters_of(given: Any, place: str = "parameters", name: str = "") -> Iterator[Parameter]:
    """The parameters of a mapping, those inside of others by their path: ``model.learning_rate``."""
    if not isinstance(given, dict) or not given:
        raise InputError(f"must be a mapping of at least one parameter, NAME: {{...}}, got {given!r:.80}", place)
    for key, spec in given.items():
        if not isinstance(key, str) or not re.fullmatch(NAME, key):
            raise InputError(f"a name has letters, digits, _, - and dots, got {key!r:.80}", place)
        path, inside = f"{name}{key}", f"{place}.{key}"
        if not isinstance(spec, dict):
            raise InputError(f"must be a mapping such as {{values: [1, 2]}}, got {spec!r:.80}", inside)
        if "parameters" in spec:
            if len(spec) > 1:
                raise InputError(f"parameters stands alone, got also {told({*spec} - {'parameters'})}", inside)
            yield from parameters_of(spec["parameters"], f"{inside}.parameters", f"{path}.")
        else:
            yield parameter_of(path, spec, inside)


def parameter_of(name: str, spec: Mapping[str, Any], place: str) -> Parameter:
    """The parameter that a mapping of the file describes; the distribution may be left out where it is plain."""
    distribution = spec.get("distribution", plain_distribution(spec))
    if distribution not in (*NUMBERS, *LISTS):
        names = ", ".join((*LISTS, *NUMBERS))
        raise InputError(f"the distribution must be one of {names}, got {distribution!r:.80}", place)
    takes = LISTS.get(distribution) or {*NUMBERS[distribution]}
    if surplus := {*spec} - takes - {"distribution"}:
        raise InputError(f"{distribution} takes {', '.join(sorted(takes))}, got {told(surplus)}", place)
    if lacking := takes - {*spec} - {*DEFAULTS}:
        raise InputError(f"{distribution} needs {', '.join(sorted(lacking))}", place)
    if distribution in LISTS:
        return listed(name, distribution, spec, place)
    numbers = {key: spec.get(key, DEFAULTS.get(key)) for key in NUMBERS[distribution]}
    check_numbers(numbers, distribution, place)
    return Parameter(name=name, distribution=distribution, numbers=numbers)


def plain_distribution(spec: Mapping[str, Any]) -> str:
    """The distribution of a parameter that names none, as W&B takes it."""
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        whole = all(isinstance(spec.get(key), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    return "constant"


def listed(name: str, distribution: str, spec: Mapping[str, Any], place: str) -> Parameter:
    """A parameter that is a constant or a category."""
    if distribution == "constant":
        return Parameter(name=name, distribution=distribution, values=(spec["value"],))
    values, weights = spec["values"], spec.get("probabilities")
    if not isinstance(values, list) or not values:
        raise InputError(f"values must be a list of at least one, got {values!r:.80}", place)
    if weights is not None:
        sound = isinstance(weights, list) and len(weights) == len(values) and all(map(is_number, weights))
        if not sound or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
            raise InputError(f"probabilities must be one a value, and add up to 1, got {weights!r:.80}", place)
        weights = tuple(weights)
    return Parameter(name=name, distribution=distribution, values=tuple(values), probabilities=weights)


def check_numbers(numbers: Mapping[str, Any], distribution: str, place: str) -> None:
    """Raise InputError unless the numbers describe a distribution."""
    for key, value in numbers.items():
        if not is_number(value) or (distribution == "int_uniform" and not isinstance(value, int)):
            kind = "whole number" if distribution == "int_uniform" else "number"
            hint = "; YAML reads 1e-4 as text, so write 1.0e-4" if isinstance(value, str) else ""
            raise InputError(f"{key} must be a {kind}, got {value!r:.80}{hint}", place)
    if "min" in numbers and numbers["min"] > numbers["max"]:
        raise InputError(f"min must be at most max, got {numbers['min']} and {numbers['max']}", place)
    above = {"q", "a", "b"} | ({"min"} if distribution.endswith("_values") else set())
    for key in sorted(above & {*numbers}):
        if numbers[key] < SMALLEST:
            raise InputError(f"{key} must be above 0, got {numbers[key]}", place)
    check_exponents(numbers, distribution, place)
    if numbers.get("sigma", 0) < 0:
        raise InputError(f"sigma must be at least 0, got {numbers['sigma']}", place)


def check_exponents(numbers: Mapping[str, Any], distribution: str, place: str) -> None:
    """Raise InputError for exponents of e whose power is no number."""
    largest = 0.0
    if distribution.removeprefix("q_") in ("log_uniform", "inv_log_uniform"):
        largest = max(abs(numbers["min"]), abs(numbers["max"]))
    elif distribution.removeprefix("q_") == "log_normal":
        largest = abs(numbers["mu"]) + 10 * abs(numbers["sigma"])
    if largest > LARGEST_EXPONENT:
        hint = "; log_uniform_values takes the values themselves" if "uniform" in distribution else ""
        raise InputError(f"{distribution} takes exponents of e, up to {LARGEST_EXPONENT:g}{hint}", place)


def told(keys: Iterable[Any]) -> str:
    """Keys of a file in a message."""
    return ", ".join(sorted(f"{key!r:.80}" for key in keys))


def is_number(value: Any) -> bool:
    """Whether a value of a YAML file is a number to calculate with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
