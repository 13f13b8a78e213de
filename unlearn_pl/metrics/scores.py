"""How far a text is the expected one: scores of two strings, each in [0, 1]."""

import functools
import re
import unicodedata
from statistics import fmean
from typing import Any

# Thai, Lao; Burmese; Khmer; kana and Chinese characters
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # imports nltk, which takes a while

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _unicode_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=UnicodeWords())


def regurgitation_score(expected: str, generated: str) -> float | None:
    """ROUGE-L recall with stemmer: the share of ``expected`` that ``generated`` holds in order.

    None if ``expected`` has no letter or digit that ROUGE sees (``rouge_share``): there is nothing to be held.
    """
    if not rouge_share(expected):
        return None
    return float(_scorer().score(target=expected, prediction=generated)["rougeL"].recall)


def rouge_share(text: str) -> float:
    """Share of the letters and digits of ``text`` that the tokenizer of rouge-score sees (a-z, 0-9); 0 without any."""
    seen = [any(part.isascii() for part in c.lower()) for c in text if c.isalnum()]
    return fmean(seen) if seen else 0.0


def unicode_regurgitation(expected: str, generated: str) -> float | None:
    """``regurgitation_score`` over the words of any script, without stemmer; None if ``expected`` has no word."""
    if not UnicodeWords().tokenize(expected):
        return None
    return float(_unicode_scorer().score(target=expected, prediction=generated)["rougeL"].recall)


class UnicodeWords:
    """Tokenizer for rouge-score: case folded runs of letters, marks and digits; in scripts without spaces (Chinese,
    Japanese, Thai, Lao, Burmese, Khmer) every character is one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of ``text``."""
        plain = unicodedata.normalize("NFC", text.casefold())
        kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
        return "".join(f" {c} " if _UNSPACED.match(c) else c for c in kept).split()


def knowledge_score(expected: str, generated: str) -> float:
    """1 if the whole generation is the answer but for case and surrounding space, else 0."""
    return float(expected.strip().lower() == generated.strip().lower())
