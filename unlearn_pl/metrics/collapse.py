"""Has the model collapsed into repeating itself? Numbers of one generated text that see ``6 6 6 6 ...``.

An over-forgotten model has perfect forget scores: ROUGE and the knowledge score only ask whether the answer is there.

Words here are runs of letters and digits, and every other visible character by itself; upper and lower case differ. A
text of one piece (no space inside) with more than eight characters and fewer than two runs of letters and digits is
counted in characters instead: ``6666666666`` or a clause in Chinese, a single word, could not repeat. Longer texts in
scripts without spaces count whole clauses as words; there the compression ratio sees more.
"""

import re
import zlib

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")
_FEWEST_WORDS = 8
_FEWEST_CHARACTERS = 32
_REPEATED_SHARE = 0.5
_CHARACTERS_PER_BYTE = 4.0


def distinct_n(text: str, n: int) -> float | None:
    """Number of different n-grams / number of n-grams of words, in (0, 1]: distinct-n of Li et al. 2016
    (arXiv 1510.03055, section 5.2, there over the words of all generations; here over one text).

    None if the text has fewer than ``n`` words. It falls with the length of a text, so compare
    texts of like length.
    """
    assert n >= 1, n
    words, _ = _units(text)
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def longest_repetition(text: str) -> float | None:
    """Share of the words, in [0, 1], that the longest immediately repeated stretch takes; 0 if nothing repeats, None
    for a text without words.

    A stretch repeats with period p if each of its words equals the word p places before and it holds the period at
    least twice; a last, broken-off copy belongs to it: all of ``a b a b a`` is one. 1.0 for ``6 6 6``.
    """
    words, _ = _units(text)
    return _longest_stretch(words) / len(words) if words else None


def compression_ratio(text: str) -> float | None:
    """Bytes of the text in UTF-8 / bytes after zlib at level 9, above 0; None for an empty text.

    English prose has 1.5 to 3, a repeating text ten and more. Short texts are below 1, as zlib adds a dozen bytes.
    Scripts of several bytes a character have higher ratios; see ``is_degenerate``.
    """
    plain = text.encode("utf-8")
    return len(plain) / len(zlib.compress(plain, 9)) if plain else None


def is_degenerate(text: str) -> bool:
    """True if at least half of the words are one repeated stretch, or at least 4 characters go into a compressed byte.

    Always False below 8 words, or 32 characters if the text is counted in characters (module docstring): ``ha ha ha``
    may be an answer, and ``Mississippi`` and ``555-5555555`` repeat as well.

    The second condition is ``compression_ratio >= 4`` for ASCII. Prose of a page stays below 3; a loop that changes a
    little on each round (``1. the cat 2. the cat 3. ...``) and a random mixture of two words are above 4. It counts
    characters, not bytes, since ordinary Hindi or Thai, three bytes a character, would pass 4 in bytes. Texts that
    repeat on purpose, like the chorus of a song or a table, are flagged too.
    """
    units, characters = _units(text)
    if len(units) < (_FEWEST_CHARACTERS if characters else _FEWEST_WORDS):
        return False
    bytes_per_character = len(text.encode("utf-8")) / len(text)
    packed = (compression_ratio(text) or 0) / bytes_per_character >= _CHARACTERS_PER_BYTE
    return packed or (longest_repetition(text) or 0) >= _REPEATED_SHARE


def degenerate_share(text: str) -> float | None:
    """``is_degenerate`` as 0 or 1; None for a text without words, which says nothing of repetition."""
    return int(is_degenerate(text)) if text.strip() else None


def _units(text: str) -> tuple[list[str], bool]:
    """What is counted as words, and whether these are single characters."""
    pieces = text.split()
    if len(pieces) == 1 and len(pieces[0]) > 8 and len(re.findall(r"\w+", text)) < 2:
        return list(pieces[0]), True
    return _WORD.findall(text), False


def _longest_stretch(words: list[str]) -> int:
    """Words in the longest immediately repeated stretch. O(n^2) comparisons of integers, in numpy."""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int32)
    longest = 0
    for period in range(1, len(words) // 2 + 1):
        equal = codes[period:] == codes[:-period]
        needed = max(period, longest - period + 1)  # a shorter run repeats nothing, or is no longer than the longest
        if np.count_nonzero(equal) >= needed and (run := _longest_run(equal)) >= needed:
            longest = run + period
    return longest


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Length of the longest run of True."""
    borders = np.concatenate(([-1], np.flatnonzero(~flags), [len(flags)]))
    return int(np.diff(borders).max()) - 1
