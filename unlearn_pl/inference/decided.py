"""Whether a text that is still being written can become the expected one."""

# Half of a character that takes several tokens.
UNFINISHED = "\ufffd"


def is_decided(expected: str, begun: str) -> bool:
    """Whether no continuation of ``begun`` is ``expected`` but for case and surrounding space.

    A False may be wrong (the text is then written on), a True never is. Space inside counts for nothing, as decoding
    can drop a space once it knows what follows (" ," and " n't" of tokenizers whose texts are cleaned up).
    """
    return not _plain(expected).startswith(_plain(begun.rstrip(UNFINISHED)))


def _plain(text: str) -> str:
    # str.lower writes a Greek sigma differently at the end of a word, so it is not a function of each character
    return "".join(text.lower().replace("\u03c2", "\u03c3").split())
