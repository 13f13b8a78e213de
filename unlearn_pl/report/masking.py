"""Masking: personal data in texts replaced by what kind they are; equal values of a row stay recognisable as equal.

By form: e-mail addresses, dates, numbers of five digits or more, street addresses; and by what a document is known to
hold: answers to its own questions that have such a form, their parts too. Names stay.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_MONTH = rf"(?:{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)})\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_WAYS = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Terrace|Ter|Way|Crescent|Boulevard|Blvd|Row|"
    "Circle|Cir|Square|Parkway|Pkwy|Highway|Hwy|Close|Gardens|Hill|Trail|Loop|Mews|Walk|Alley|Plaza"
)
_WORD = r"[A-ZÀ-Þ][\w'’-]*"
_APART = r"(?<!\d)(?<!\d[-/.])(?:{})(?![-/.]?\d)"
FORMS = {
    "e-mail": r"[^\s@<>()\[\],;:\"]+@[^\s@<>()\[\],;:\"]*\w",
    "date": _APART.format(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}")
    + rf"|(?i:\b{_MONTH}\s*-?{_DAY}(?:,?[\s-]*\d{{2,4}})?\b)"
    rf"|(?i:\b{_DAY}(?:\s+day)?(?:\s+of)?[\s-]*{_MONTH}(?:,?[\s-]*\d{{2,4}})?\b)",
    "address": rf"\b\d+\s+(?:{_WORD}\s+){{1,4}}(?i:{_WAYS})\b\.?"
    rf"(?:\s+(?i:Apt|Unit|Suite|#)\.?\s*\w+)?(?:,\s*{_WORD}(?:\s+{_WORD}){{0,2}})*(?:,?\s*\d{{5}}(?:-\d{{4}})?)?",
    "number": r"\+?\(?\d(?:[\s().\-/+·•_]*\d){4,}",
}
"""Kind -> how it is written; the first that fits at a place."""
ORDER = {kind: re.compile(form) for kind, form in FORMS.items()}
SHORTEST = 4
"""Letters or digits of a part of a known value that is masked alone."""
COMMON = {*_WAYS.casefold().split("|"), "north", "south", "east", "west"}


class Masker:
    """Masks the texts of rows, each by what its document is known to hold."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        known: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for row in rows:
            if kind := kind_of(row["expected"], row["prompt"]):
                known[row["split"], row["document"]] |= dict.fromkeys(parts_of(kind, row["expected"].strip()))
        self.known = {
            where: re.compile("|".join(sorted(map(spelled, parts), key=len, reverse=True)), re.IGNORECASE)
            for where, parts in known.items()
        }

    def masked(self, split: str, document: str, texts: Sequence[str | None]) -> list[str | None]:
        """The texts of one row; the same value has the same number in all of them."""
        numbers: dict[str, dict[str, int]] = defaultdict(dict)

        def name(kind: str, value: str) -> str:
            seen = numbers[kind]
            return f"[{kind} {seen.setdefault(same(kind, value), len(seen) + 1)}]"

        known = self.known.get((split, document))
        return [None if text is None else _mask(text, known, name) for text in texts]


def _mask(text: str, known: "re.Pattern[str] | None", name: Any) -> str:
    """``text`` with each value replaced, those by form first; what stands in brackets by then is left alone."""
    for kind, form in ORDER.items():
        text = _outside(text, form, lambda match, kind=kind: name(kind, match[0]))
    return text if known is None else _outside(text, known, lambda match: name("part", match[0]))


def _outside(text: str, form: "re.Pattern[str]", put: Any) -> str:
    """``text`` with what ``form`` finds replaced, but not within the replacements of before."""
    pieces = re.split(r"(\[(?:e-mail|date|address|number|part) \d+\])", text)
    return "".join(piece if place % 2 else form.sub(put, piece) for place, piece in enumerate(pieces))


def kind_of(expected: str, prompt: str) -> str | None:
    """What kind of personal data an answer is, None if it is of none."""
    value = expected.strip()
    for kind, form in ORDER.items():
        if form.fullmatch(value):
            return kind
    asked = re.search(r"\baddress\b.*\?\s*$", prompt, re.IGNORECASE)
    return "address" if asked and re.search(r"\d", value) else None


def parts_of(kind: str, value: str) -> list[str]:
    """What gives a known value away where it stands without the rest: of an e-mail address what is before the @, of an
    address its words, of a number every run of its digits."""
    if kind == "e-mail":
        return [part for part in (value.split("@")[0],) if len(part) >= SHORTEST]
    if kind == "address":
        words = re.findall(r"[^\W_]+", value)
        return [word for word in words if len(word) >= SHORTEST and word.casefold() not in COMMON]
    digits = re.sub(r"\D", "", value)
    runs = {digits[start : start + SHORTEST] for start in range(len(digits) - SHORTEST + 1)}
    return sorted(runs) if kind == "number" else [digits[:4]] if re.match(r"\d{4}-", value) else []


def spelled(part: str) -> str:
    """The form of a known part: digits within any run of digits, words alone."""
    return rf"\d*{part}\d*" if part.isdecimal() else rf"(?<!\w){re.escape(part)}(?!\w)"


def same(kind: str, value: str) -> str:
    """What two spellings of one value have in common."""
    plain = value.casefold()
    if kind == "date":
        for number, month in enumerate(MONTHS, 1):
            if re.search(rf"(?<![^\W\d_]){month[:3]}", plain):
                figures = sorted(re.findall(r"\d+", plain), key=len, reverse=True)
                return "-".join(
                    [
                        *(f"{int(one):02}" for one in figures[:1]),
                        f"{number:02}",
                        *(f"{int(one):02}" for one in figures[1:]),
                    ]
                )
        return "-".join(f"{int(one):02}" for one in re.findall(r"\d+", plain))
    if kind == "number":
        return re.sub(r"\D", "", plain)
    return " ".join(re.findall(r"[^\W_]+", plain)) if kind == "address" else plain.rstrip(".")
