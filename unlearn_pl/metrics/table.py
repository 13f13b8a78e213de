"""The table of all metrics of whatever benchmark."""

from collections.abc import Callable, Sequence
from functools import partial

from unlearn_pl.metrics import collapse
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.composites import (
    attack_score,
    attack_score_to_retrained,
    composite,
    memorization_of,
    privacy,
    retain_utility,
    s_mia,
    utility,
)
from unlearn_pl.metrics.leakage import Corpus, entities, entity_leakage, keyword_leakage, keywords
from unlearn_pl.metrics.membership import mia_to_retrained, own_metrics, to_retrained
from unlearn_pl.metrics.metric import ALWAYS, OPPOSITE, Metric, Need
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import unicode_regurgitation
from unlearn_pl.metrics.statistics import leak_at_k
from unlearn_pl.metrics.truth import forget_quality, forget_quality_notes, truth_notes, truth_ratio, truth_utility

LI = "Li et al. 2016 (arXiv 1510.03055)"
OPEN_UNLEARNING = "open-unlearning (arXiv 2506.12618)"
TOFU = "TOFU (arXiv 2401.06121)"
UDS = "UDS (arXiv 2605.24614)"
AFTER = "own, after open-unlearning"
KS = (1, 4, 16)
"""The k of leak@k."""


def of_text(function: Callable[[str], float | None]) -> Callable[[Sample, Corpus], float | None]:
    """A metric of the generated text alone."""
    return lambda sample, _: function(sample.text)


def of_recall(name: str) -> Callable[[Sample, Corpus], float | None]:
    """What the forward over the true answer showed under that name."""
    return lambda sample, _: (sample.recall or {})[name]


def leak(k: int, sample: Sample, _: Corpus) -> float | None:
    """leak@k of a row."""
    scores = [score for score in sample.sampled_scores if score is not None]  # all of a row, or none
    return leak_at_k(scores, k) if scores else None


def was_drawn(k: int, sample: Sample) -> bool:
    """Whether a row has ``k`` texts drawn at random."""
    return len(sample.sampled or ()) >= k


def rare_words(sample: Sample, corpus: Corpus) -> float | None:
    """Keyword leakage of a row."""
    return keyword_leakage(keywords(sample.expected, sample.prompt, corpus), sample.text)


def names(sample: Sample, _: Corpus) -> float | None:
    """Entity leakage of a row."""
    return entity_leakage(entities(sample.expected, sample.prompt), sample.text)


def has_recall(sample: Sample) -> bool:
    """Whether there was a forward over the row's true answer."""
    return sample.recall is not None


SAMPLING = tuple(
    Metric(name=f"leak_at_{k}", family="sampling", formula=f"expected worst row score of {k} samples", better=OPPOSITE,
           range="[0, 1]", source="leak@k (arXiv 2511.04934)", needs=("sampling",), value=partial(leak, k),
           applies=partial(was_drawn, k))
    for k in KS
)  # fmt: skip

MEMORIZATION = (
    Metric(name="verbatim_probability", family="memorization", better=OPPOSITE, range="[0, 1]",
           formula="exp(mean log p of the answer's tokens, without EOS)", source="after TOFU, which counts EOS",
           needs=("likelihood",), value=of_recall("probability"), applies=has_recall),
    Metric(name="exact_memorization", family="memorization", better=OPPOSITE, range="[0, 1]",
           formula="share of answer tokens that are the argmax", source="Tirumala et al. 2022 (arXiv 2205.10770)",
           needs=("likelihood",), value=of_recall("exact_memorization"), applies=has_recall),
    Metric(name="extraction_strength", family="memorization", better=OPPOSITE, range="[0, 1]",
           formula="1 - shortest prefix after which all is right / T", source="Carlini et al. 2021 (arXiv 2012.07805)",
           needs=("likelihood",), value=of_recall("extraction_strength"), applies=has_recall),
    Metric(name="regurgitation_unicode", family="memorization", better=OPPOSITE, range="[0, 1]", source="own",
           formula="ROUGE-L recall of completions, in words of every script",
           value=lambda sample, _: unicode_regurgitation(sample.expected, sample.text),
           applies=lambda sample: sample.completion),
)  # fmt: skip

LEAKAGE = (
    Metric(name="keyword_leakage", family="leakage", formula="share of the answer's rare words in the text",
           better=OPPOSITE, range="[0, 1]", source="own", value=rare_words),
    Metric(name="entity_leakage", family="leakage", formula="share of the answer's names, numbers in the text",
           better=OPPOSITE, range="[0, 1]", source="own", value=names),
)  # fmt: skip

COLLAPSE = (
    *(
        Metric(name=f"distinct_{n}", family="collapse", formula=formula, better="higher", range="(0, 1]", source=LI,
               value=of_text(partial(collapse.distinct_n, n=n)))
        for n, formula in ((1, "different words / words"), (2, "the same of pairs"), (3, "the same of triples"))
    ),
    Metric(name="longest_repetition", family="collapse", better="lower", range="[0, 1]", source="own",
           formula="longest stretch of one phrase over and over / words", value=of_text(collapse.longest_repetition)),
    Metric(name="compression_ratio", family="collapse", formula="UTF-8 bytes / bytes after zlib", better="lower",
           range="> 0", source="own", value=of_text(collapse.compression_ratio)),
    Metric(name="degenerate", family="collapse", formula="repetition >= 1/2 or compression >= 4", better="lower",
           range="[0, 1]", source="own", value=of_text(collapse.degenerate_share)),
    Metric(name="ended", family="collapse", formula="share of texts ended by EOS", better="higher", range="[0, 1]",
           source="own", value=lambda sample, _: int(bool(sample.ended))),
    Metric(name="length", family="collapse", formula="tokens generated", better="higher", range=">= 1", source="own",
           value=lambda sample, _: sample.tokens),
)  # fmt: skip

MEMBERSHIP = tuple(metric for attack in ATTACKS for metric in own_metrics(attack))

TRUTH = (
    Metric(name="truth_ratio", family="truth", formula="mean of min(R, 1/R), R = P(wrong) / P(paraphrase)",
           better="higher", range="[0, 1]", source=TOFU, needs=("truth",), statistic=truth_ratio, notes=truth_notes),
    Metric(name="truth_utility", family="truth", formula="mean of max(0, 1 - R)", better="higher", range="[0, 1]",
           source=TOFU, needs=("truth",), statistic=truth_utility, notes=truth_notes),
    Metric(name="forget_quality", family="truth", formula="p of the KS test of R against a retrained model",
           better="higher", range="[0, 1]", source=TOFU, needs=("truth", "retrained"), statistic=forget_quality,
           notes=forget_quality_notes),
)  # fmt: skip

COMPOSITES = (
    composite("open_unlearning/memorization", memorization_of, family="memorization", needs=("likelihood", "truth"),
              formula="HM(1 - ES, 1 - EM, 1 - P(paraphrase), 1 - right / (right + wrong)), ES at least 1/T",
              source=OPEN_UNLEARNING),
    composite("privacy", partial(privacy, lambda auc, _: attack_score(auc)), family="membership",
              formula="HM of the score of loss, zlib, Min-K%, Min-K%++", needs=("documents",),
              source="own, after open-unlearning"),
    *(metric for attack in ATTACKS for metric in to_retrained(attack)),
    composite("privacy_to_retrained", partial(privacy, attack_score_to_retrained), family="membership",
              formula="HM of their score_to_retrained", needs=("documents", "retrained"),
              source="own, after open-unlearning"),
    *(metric for attack in ATTACKS for metric in mia_to_retrained(attack)),
    composite("uds/privacy", partial(privacy, s_mia), family="membership", needs=("documents", "retrained"),
              formula="HM of their s_mia; UDS takes Min-K% at 40 %", source=UDS),
    composite("retain_utility", retain_utility, family="truth", needs=("likelihood", "truth"),
              formula="HM(probability, ROUGE-L recall, truth utility) on retain",
              source="own, after TOFU, which has three sets"),
    composite("utility", utility, family="truth", needs=("likelihood", "truth"),
              formula="HM(retain_utility, 1 - degenerate on forget)", source="own, after open-unlearning"),
)  # fmt: skip

ROW_METRICS: tuple[Metric, ...] = (*SAMPLING, *MEMORIZATION, *LEAKAGE, *COLLAPSE)
"""Metrics of single rows, in the order of the results."""

WHOLE_METRICS: tuple[Metric, ...] = (*MEMBERSHIP, *TRUTH, *COMPOSITES)
"""Metrics of a whole measurement."""


def chosen(metrics: Sequence[Metric], wanted: Sequence[str] | None) -> tuple[Metric, ...]:
    """The metrics of the wanted families, of all families without any named."""
    return tuple(one for one in metrics if wanted is None or one.family in (ALWAYS, *wanted))


def shared_needs(metrics: Sequence[Metric], family: str) -> tuple[Need, ...]:
    """What every metric of a family needs: without it nothing of the family can be measured."""
    needs = [metric.needs for metric in metrics if metric.family == family]
    return tuple(need for need in needs[0] if all(need in others for others in needs))
