"""``term_value``: terms on numbers made by hand, against sums written out one position at a time.

The logits are those of small formulas; the values in the docstrings were computed from the papers' formulas alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from unlearn_pl import NPO, GradAscent, Objective, RetainKL, RetainNLL, SimNPO
from unlearn_pl.errors import InputError
from unlearn_pl.models.head import IGNORED
from unlearn_pl.objectives.passes import Needs, Passes
from unlearn_pl.testing import term_value

# Two rows with 3 answer tokens and 1, over a vocabulary of 5.
ROWS: dict[str, Any] = {
    "logits": [[((3 * n + 2 * v) % 7) / 2 for v in range(5)] for n in range(4)],
    "reference_logits": [[((2 * n + 3 * v) % 5) / 2 for v in range(5)] for n in range(4)],
    "targets": [1, 4, 0, 2],
    "rows": [0, 0, 0, 1],
}
# The same with a position in front that predicts no answer token.
LED: dict[str, Any] = {
    "logits": [[5.0, 0, 0, 0, 0], *ROWS["logits"]],
    "reference_logits": [[0.0, 0, 0, 0, 5], *ROWS["reference_logits"]],
    "targets": [IGNORED, *ROWS["targets"]],
    "rows": [0, *ROWS["rows"]],
}


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def nll(name: str) -> list[list[float]]:
    """Of each row, the NLL of its tokens."""
    found: list[list[float]] = [[], []]
    for logits, target, row in zip(ROWS[name], ROWS["targets"], ROWS["rows"], strict=True):
        found[row].append(-log_softmax(logits)[target])
    return found


def kl(policy: list[float], base: list[float]) -> float:
    return sum(math.exp(q) * (q - p) for q, p in zip(log_softmax(base), log_softmax(policy), strict=True))


def log_sigmoid(value: float) -> float:
    return -math.log(1 + math.exp(-value))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def npo(beta: float, of: Any) -> float:
    margins = [of(policy) - of(base) for policy, base in zip(nll("logits"), nll("reference_logits"), strict=True)]
    return mean([-2 / beta * log_sigmoid(beta * margin) for margin in margins])


def simnpo(beta: float, delta: float) -> float:
    return mean([-2 / beta * log_sigmoid(beta * (mean(row) - delta)) for row in nll("logits")])


TOKENS = [value for row in nll("logits") for value in row]
KLS = [kl(policy, base) for policy, base in zip(ROWS["logits"], ROWS["reference_logits"], strict=True)]
LEADING = kl(LED["logits"][0], LED["reference_logits"][0])


@pytest.mark.parametrize(
    ("term", "expected", "printed"),
    [
        (NPO(weight=7.0), npo(0.1, sum), 13.812055),
        (NPO(reduction="sequence_mean"), npo(0.1, mean), 14.271486),
        (SimNPO(weight=7.0), simnpo(4.5, 0), 0.015201),
        (SimNPO(delta=1.0), simnpo(4.5, 1), 0.463088),
        (SimNPO(beta=2.5, reduction="batch_mean"), -0.8 * log_sigmoid(2.5 * mean(TOKENS)), 0.032718),
        (GradAscent(), -mean(TOKENS), -1.270473),
        (RetainNLL(), mean(TOKENS), 1.270473),
        (RetainNLL(reduction="sequence_sum"), sum(TOKENS) / 2, 2.540946),
        (RetainKL(), mean(KLS), 0.351820),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
@pytest.mark.parametrize("given", [ROWS, LED], ids=["answers", "led"])
def test_terms_by_hand(term: Objective, expected: float, printed: float, given: dict[str, Any]) -> None:
    """NLL by token: 2.491696, 1.324011, .673726 and .592459; under the base 1.347102, .847102, .847102 and 1.847102.

    The weight is not in it, nor is a position that predicts no answer token.
    """
    value = term_value(term, forget=given, retain=given)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert value.item() == pytest.approx(printed, abs=1e-6)


def test_the_kl_at_all_positions_and_at_padding() -> None:
    """Five positions of two rows, of 4 each with padding: three positions are padding."""
    given = LED | {"max_length": 4, "padding_kl": 0.25}
    values = {at: term_value(RetainKL(positions=at), retain=given).item() for at in ("attended", "padded", "released")}
    total = LEADING + sum(KLS)
    assert values == pytest.approx({"attended": total / 5, "padded": total / 8, "released": (total + 3 * 0.25) / 8})


def test_the_gradient_is_that_of_the_given_tensors() -> None:
    """Of GradAscent with one token: onehot - p; none reaches the base's."""
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    base = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    given = {"logits": logits, "targets": torch.tensor([2]), "rows": torch.tensor([0]), "reference_logits": base}
    term_value(GradAscent(), forget=given).backward()
    expected = torch.tensor([[0.0, 0.0, 1.0]]) - logits.detach().softmax(-1)
    assert torch.allclose(logits.grad, expected, rtol=1e-12)
    term_value(NPO(), forget=given).backward()
    assert base.grad is None


def test_simnpo_halves_its_gradient_at_delta_and_saturates() -> None:
    """d/dNLL is -2 sigmoid(-beta (NLL - delta)): -1 at delta, and next to 0 far above it."""
    for nll_of_token, slope in ((1.5, -1.0), (9.0, 0.0)):
        p = math.exp(-nll_of_token)
        logits = torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64, requires_grad=True)
        given = {"logits": logits, "targets": [0], "rows": [0]}
        term_value(SimNPO(delta=1.5), forget=given).backward()
        assert logits.grad[0, 0].item() == pytest.approx(slope * (p - 1), abs=1e-9)


@dataclass(frozen=True)
class Length(Objective):
    """The mean squared length of a layer's outputs, plus the NLL."""

    weight: float = 1.0

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs(layers=(3,))}

    def __call__(self, passes: Passes) -> Tensor:
        rows = passes["forget"]
        assert rows.batch_size == 2
        assert rows.layer_rows is None or len(rows.layer_rows) == len(rows.layers[3])
        return rows.layers[3].square().sum(-1).mean() + rows.token_nll.mean()


@pytest.mark.parametrize("states", [[[1, 0], [0, 2], [1, 1], [3, 0]], [[3, 0], [0, 3], [0, 0]]])
def test_a_layer_may_have_other_positions_than_the_logits(states: list[list[float]]) -> None:
    """Mean squared lengths: (1 + 4 + 2 + 9) / 4 at four positions, as many as have logits; (9 + 9) / 3 at three."""
    value = term_value(Length(), forget=ROWS | {"layers": {3: states}}, retain=None)
    assert value.item() == pytest.approx({4: 4, 3: 6}[len(states)] + mean(TOKENS))


def test_a_split_that_is_none_is_not_given() -> None:
    with pytest.raises(InputError, match=r"^forget: NPO reads this split"):
        term_value(NPO(), forget=None)
