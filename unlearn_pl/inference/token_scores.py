"""What a language model says of each token of a text: its log probability, and how surprising any token would be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_pl.models.fast.linear import frozen_linear
from unlearn_pl.models.head import GPU_CHUNK_LOGITS, Head, product_type

# Beside other rows a row's float32 logits moved by up to 31 units of eps x the largest logit, read with a whole answer
# at once by up to 52 (SmolLM2-135M, 24 rows of LUME). Two candidates can swap if they are closer than twice that; the
# rest is room for what was not seen. A model that its trial finds to be noisier gets more (``Engine.tie_units``).
TIE = 256
# Below this log ratio to the best token exp() is 0 in float32, so nothing of a sum over p changes by cutting there.
NO_CHANCE = -200.0
# Positions whose logits a CPU's caches still hold.
CPU_CHUNK = 64
COLUMNS = ("logprob", "mean", "std", "argmax", "margin")


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of N positions, on the CPU. Where logits are NaN or +inf (a broken model), log probabilities are NaN."""

    logprob: Tensor
    """[N] float32: log probability of the target token, in nats, at most 0; -inf if the model rules it out."""
    mean: Tensor
    """[N] float32: E_{z ~ p}[log p(z)], mean log probability of a token drawn from the model itself, in nats (the
    entropy, negated; mu of Min-K%++, arXiv 2404.02936). Empty if moments were not asked for."""
    std: Tensor
    """[N] float32: standard deviation of the same, at least 0 (sigma of Min-K%++). Empty like ``mean``."""
    argmax: Tensor
    """[N] int64: the token with the highest logit; where logits are NaN, any token."""
    margin: Tensor
    """[N] float32: ``margins`` of the logits. Empty if not asked for."""

    def to_json(self) -> dict[str, list[float]]:
        """The numbers as lists, which give the same floats again."""
        return {name: getattr(self, name).tolist() for name in COLUMNS}

    def split(self, sizes: Sequence[int]) -> list["TokenScores"]:
        """Those of so many positions each, in order; what was not asked for stays empty."""
        columns = [getattr(self, name) for name in COLUMNS]
        parts = [column.split(list(sizes)) if len(column) else [column] * len(sizes) for column in columns]
        return [TokenScores(*one) for one in zip(*parts, strict=True)]

    @classmethod
    def from_json(cls, found: dict[str, list[float]]) -> "TokenScores":
        """The inverse of ``to_json``."""
        return cls(
            *(torch.tensor(found[name], dtype=torch.long if name == "argmax" else torch.float32) for name in COLUMNS)
        )


def token_scores(
    hidden: Tensor, head: Head, targets: Tensor, chunk: int | None = None, moments: bool = True, margin: bool = False
) -> TokenScores:
    """Scores of the ``targets`` [N] at positions with hidden states [N, H]; targets are token ids, none is ignored.

    The head runs in the type of its weights (or autocast's), ``chunk`` positions at a time (by default what the device
    is fast with), so that [N, V] logits never exist; all that follows is float32. A GPU is waited for at the end alone.
    Without ``moments`` mean and standard deviation are left out, and without ``margin`` that. No gradients.
    """
    assert targets.shape == hidden.shape[:1], (targets.shape, hidden.shape)
    chunk = chunk_size(head, hidden.device) if chunk is None else chunk
    assert chunk >= 1, chunk
    parts = []
    with torch.no_grad(), product_type(head, hidden) as narrow:
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = frozen_linear(hidden[part].to(narrow.weight.dtype), narrow.weight, narrow.bias)
            parts.append(_scores_of_own(logits.float(), targets[part], moments, margin))
    none = hidden.new_empty(0, dtype=torch.float32)
    parts.append((none, none, none, none.long(), none))  # so that zero positions give empty tensors
    return TokenScores(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def chunk_size(head: Head, device: torch.device) -> int:
    """Positions whose logits exist at once."""
    return CPU_CHUNK if device.type == "cpu" else max(1, GPU_CHUNK_LOGITS // len(head.weight))


def token_scores_of_logits(logits: Tensor, targets: Tensor, moments: bool = True, margin: bool = False) -> TokenScores:
    """The same from logits [N, V], which stay as they are.

    With l the logits and lse their logsumexp: log p = l - lse, mean = sum p log p, std^2 = sum p (log p - mean)^2; a
    token with logit -inf has p = 0 and adds nothing.
    """
    with torch.no_grad():
        found = _scores_of_own(logits.to(torch.float32, copy=True), targets, moments, margin)
        return TokenScores(*(column.cpu() for column in found))


def margins(logits: Tensor) -> Tensor:
    """[N] by how much the best of ``logits`` [N, V] is ahead of the second, in units of eps of their type times the
    largest logit: what rounding can make of it. NaN where a logit is."""
    best, place = logits.max(dim=-1, keepdim=True)
    second = logits.scatter(-1, place, -torch.inf).amax(dim=-1)
    largest = torch.maximum(best[:, 0].abs(), logits.amin(dim=-1).abs()).float()
    ahead = (best[:, 0] - second).float() / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return ahead / torch.finfo(logits.dtype).eps  # the product of eps and the largest logit may be too small a number


def is_tie(margin: Tensor, dtype: torch.dtype, units: float = TIE) -> Tensor:
    """[N] whether rounding by so many ``units``, those of ``margin`` [N], may have decided between the two best tokens.

    Never in half precision, where that holds for every third token and says little.
    """
    return margin <= units if torch.finfo(dtype).bits >= 32 else torch.zeros_like(margin, dtype=torch.bool)


def _scores_of_own(logits: Tensor, targets: Tensor, moments: bool, margin: bool) -> tuple[Tensor, ...]:
    """The columns of ``token_scores_of_logits``, where the logits are, float32 ones that nobody else needs: they are
    overwritten.

    Sums are over ratios to the best token, exp(l - max), and divided by the sum of those at the end: that saves a pass
    over [N, V]. The variance is taken about the mean, since the difference of two squares near log(V)^2 = 117 has no
    digits left for the nearly even distributions of a model that was unlearned too hard.
    """
    ahead = margins(logits) if margin else logits.new_empty(0)
    best, argmax = logits.max(-1, keepdim=True)
    ratio = logits.sub_(best)  # in logs
    weight = ratio.exp()
    total = weight.sum(-1)
    logprob = ratio.gather(-1, targets[:, None])[:, 0] - total.log()
    mean = std = logprob.new_empty(0)
    if moments:
        ratio.clamp_(min=NO_CHANCE)  # 0 times -inf would be NaN
        centre = torch.linalg.vecdot(weight, ratio) / total
        mean = centre - total.log()
        std = (torch.linalg.vecdot(weight, ratio.sub_(centre[:, None]).square_()) / total).sqrt()
    return logprob, mean, std, argmax[:, 0], ahead
