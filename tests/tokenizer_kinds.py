"""One small tokenizer of each kind that cuts text in a way of its own, built in code."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MARK = "\u2581"
TEXTS = [
    "When was Anna Quill born? 1984-12-31",
    "Anna Quill grew up in Rivertown and later wrote to her sister. It was her home!",
    "The phone number of Boris Feld is 555-0100. Who is he?  A painter,\nand the keeper of the lighthouse.",
]
WORDS = sorted({word for text in TEXTS for word in text.split()})
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(core: Tokenizer, around: str = "$A") -> PreTrainedTokenizerFast:
    if around != "$A":
        named = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    known = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **known)


def byte_bpe(around: str = "$A", prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2, Llama 3, Qwen, OLMo; with ``prefix_space`` as RoBERTa has it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return wrapped(core, around)


def sentencepiece(prepend: bool = True, strip: bool = True, around: str = "<s> $A") -> PreTrainedTokenizerFast:
    """The `tokenizer.json` of Llama 2, Mistral and Phi-3: the normalizer puts a mark before whatever it is given."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(MARK, "always" if prepend else "never", split=True)
    named = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=450, show_progress=False, special_tokens=named))
    core.pre_tokenizer = None
    front = [normalizers.Prepend(MARK)] if prepend else []
    core.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", MARK)])
    back = [decoders.Strip(" ", 1, 0)] if prepend and strip else []
    core.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *back])
    return wrapped(core, around)


def metaspace(scheme: str, unigram: bool = False) -> PreTrainedTokenizerFast:
    """The pre-tokenizer of newer conversions, over BPE or over Unigram (T5, XGLM)."""
    core = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(MARK, scheme)
    core.decoder = decoders.Metaspace(MARK, scheme)
    trainer = (
        trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=SPECIAL, show_progress=False)
        if unigram
        else trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    core.train_from_iterator(TEXTS, trainer)
    return wrapped(core, "<s> $A </s>" if unigram else "<s> $A")


def word_piece() -> PreTrainedTokenizerFast:
    """BERT: lower case, words cut into pieces, a special token on either side."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return wrapped(core, "<s> $A </s>")


def word_level(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Whole words; any other is ``<unk>``."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*SPECIAL, *words])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(core)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte BPE": byte_bpe,
    "byte BPE, BOS": lambda: byte_bpe("<s> $A"),
    "byte BPE, EOS": lambda: byte_bpe("$A </s>"),
    "byte BPE, BOS and EOS": lambda: byte_bpe("<s> $A </s>"),
    "byte BPE, prefix space": lambda: byte_bpe(prefix_space=True),
    "SentencePiece, Prepend": sentencepiece,
    "SentencePiece, Prepend, EOS": lambda: sentencepiece(around="<s> $A </s>"),
    "SentencePiece, Prepend kept": lambda: sentencepiece(strip=False),
    "SentencePiece, no mark": lambda: sentencepiece(prepend=False),
    "Metaspace always": lambda: metaspace("always"),
    "Metaspace first": lambda: metaspace("first"),
    "Metaspace never": lambda: metaspace("never"),
    "Unigram, EOS": lambda: metaspace("always", unigram=True),
    "WordPiece": word_piece,
    "WordLevel": word_level,
}
