"""What is measured: the table of all metrics, and those of a single generated row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.collapse import collapse_scores
from unlearn_pl.metrics.leakage import entities, entity_leakage, keyword_leakage, keywords
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import unicode_regurgitation

Better = Literal["lower", "higher", "lower on forget, higher on retain", "one half"]
OPPOSITE: Better = "lower on forget, higher on retain"
FAMILIES = ("memorization", "leakage", "collapse", "fluency", "membership", "sampling", "truth")


@dataclass(frozen=True)
class Metric:
    """One row of the table. ``family`` is what ``--metrics`` names; those of ``semeval`` are always measured."""

    name: str
    family: str
    formula: str
    better: Better
    range: str
    source: str

    def better_on(self, split: str) -> str:
        """``lower`` or ``higher`` on the forget or retain set."""
        return {"forget": "lower", "retain": "higher"}[split] if self.better == OPPOSITE else self.better


LI = "Li et al. 2016 (arXiv 1510.03055)"
SEMEVAL = "SemEval-2025 Task 4 (arXiv 2504.02883)"
OPEN_UNLEARNING = "open-unlearning (arXiv 2506.12618)"
TOFU = "TOFU (arXiv 2401.06121)"
UDS = "UDS (arXiv 2605.24614)"

# figure of each membership attack -> formula (that of the attack itself if empty), better
ATTACK_FIGURES: dict[str, tuple[str, Better]] = {
    "auc": ("", "one half"),
    "auc_calibration": ("AUC on half of the documents, by their hash", "one half"),
    "auc_holdout": ("AUC on the other half", "one half"),
    "tpr_at_1_percent": ("members found at 1 % false alarms", "lower"),
    "tpr_at_5_percent": ("members found at 5 % false alarms", "lower"),
    "score": ("1 - 2 |AUC - 1/2|", "higher"),
    "score_to_retrained": ("1 - |AUC - AUC_r| / max(AUC_r, 1 - AUC_r), r: --retrained", "higher"),
    "s_mia": ("1 - min(|AUC - AUC_r| / AUC_r, 1), r: --retrained", "higher"),
}
FIGURE_SOURCES = {"score_to_retrained": "own", "s_mia": UDS}

METRICS: tuple[Metric, ...] = (
    Metric("regurgitation", "semeval", "ROUGE-L recall of sc rows, mean by task", OPPOSITE, "[0, 1]", SEMEVAL),
    Metric("knowledge", "semeval", "share of qa rows answered exactly, by task", OPPOSITE, "[0, 1]", SEMEVAL),
    Metric("task_aggregate", "semeval", "harmonic mean of the terms (forget: 1 - mean)", "higher", "[0, 1]", SEMEVAL),
    Metric(
        "aggregate", "semeval", "mean of task aggregate, 1 - 2|AUC - 1/2|, accuracy", "higher", "[0, 1]", SEMEVAL
    ),
    Metric("verbatim_probability", "memorization", "exp(mean log p of the answer's tokens, without EOS)", OPPOSITE,
           "[0, 1]", "after TOFU, which counts EOS"),
    Metric("regurgitation_unicode", "memorization", "ROUGE-L recall of sc rows, in words of every script", OPPOSITE,
           "[0, 1]", "own"),
    Metric(
        "exact_memorization", "memorization", "share of answer tokens that are the argmax", OPPOSITE, "[0, 1]",
        "Tirumala et al. 2022 (arXiv 2205.10770)",
    ),
    Metric(
        "extraction_strength", "memorization", "1 - shortest prefix after which all is right / T", OPPOSITE, "[0, 1]",
        "Carlini et al. 2021 (arXiv 2012.07805)",
    ),
    Metric("keyword_leakage", "leakage", "share of the answer's rare words in the text", OPPOSITE, "[0, 1]", "own"),
    Metric("entity_leakage", "leakage", "share of the answer's names, numbers in the text", OPPOSITE, "[0, 1]", "own"),
    Metric("pii/<type>/whole", "leakage", "documents whose texts hold the value (Task2)", OPPOSITE, "[0, 1]", "own"),
    Metric("pii/<type>/partial", "leakage", "longest run of the value found / its length", OPPOSITE, "[0, 1]", "own"),
    Metric("pii/<type>/partial_of_others", "leakage", "the same in another person's texts: chance", OPPOSITE, "[0, 1]",
           "own"),
    Metric("distinct_1", "collapse", "different words / words", "higher", "(0, 1]", LI),
    Metric("distinct_2", "collapse", "the same of pairs", "higher", "(0, 1]", LI),
    Metric("distinct_3", "collapse", "the same of triples", "higher", "(0, 1]", LI),
    Metric("longest_repetition", "collapse", "longest stretch of one phrase over and over / words", "lower", "[0, 1]",
           "own"),
    Metric("compression_ratio", "collapse", "UTF-8 bytes / bytes after zlib", "lower", "> 0", "own"),
    Metric("degenerate", "collapse", "repetition >= 1/2 or compression >= 4", "lower", "[0, 1]", "own"),
    Metric("ended", "collapse", "share of texts ended by EOS", "higher", "[0, 1]", "own"),
    Metric("length", "collapse", "tokens generated", "higher", ">= 1", "own"),
    Metric("perplexity", "fluency", "exp(NLL of the text after its prompt, base model)", "lower", ">= 1", "own"),
    *(
        Metric(f"membership/{name}/{figure}", "membership", formula or attack.formula, better, "[0, 1]",
               FIGURE_SOURCES.get(figure, attack.source))
        for name, attack in ATTACKS.items()
        for figure, (formula, better) in ATTACK_FIGURES.items()
    ),
    Metric("choice/micro", "semeval", "share of questions answered right", "higher", "[0, 1]",
           "Hendrycks et al. 2021 (arXiv 2009.03300)"),
    Metric("choice/macro", "semeval", "mean over subjects of the same", "higher", "[0, 1]",
           "Hendrycks et al. 2021 (arXiv 2009.03300)"),
    Metric("leak_at_<k>", "sampling", "expected worst row score of k samples", OPPOSITE, "[0, 1]",
           "leak@k (arXiv 2511.04934)"),
    Metric("truth_ratio", "truth", "mean of min(R, 1/R), R = P(wrong) / P(paraphrase), --truth.definition", "higher",
           "[0, 1]", TOFU),
    Metric("truth_utility", "truth", "mean of max(0, 1 - R)", "higher", "[0, 1]", TOFU),
    Metric("forget_quality", "truth", "p of the KS test of R against a retrained model", "higher", "[0, 1]", TOFU),
    Metric("open_unlearning/memorization", "memorization",
           "HM(1 - ES, 1 - EM, 1 - P(paraphrase), 1 - right / (right + wrong)), ES at least 1/T", "higher", "[0, 1]",
           OPEN_UNLEARNING),
    Metric("privacy", "membership", "HM of the score of loss, zlib, Min-K%, Min-K%++", "higher", "[0, 1]",
           "own, after open-unlearning"),
    Metric("privacy_to_retrained", "membership", "HM of their score_to_retrained", "higher", "[0, 1]",
           "own, after open-unlearning"),
    Metric("uds/privacy", "membership", "HM of their s_mia; UDS takes Min-K% at 40 %", "higher", "[0, 1]", UDS),
    Metric("retain_utility", "truth", "HM(probability, ROUGE-L recall, truth utility) on retain", "higher", "[0, 1]",
           "own, after TOFU, which has three sets"),
    Metric("utility", "truth", "HM(retain_utility, 1 - degenerate on forget)", "higher", "[0, 1]",
           "own, after open-unlearning"),
)  # fmt: skip
"""Every metric; ``<type>`` and ``<k>`` stand for several."""

BY_NAME = {metric.name: metric for metric in METRICS}


def row_scores(
    sample: Sample, families: Sequence[str], frequencies: Mapping[str, int], documents: int
) -> dict[str, float | None]:
    """Scores of one generated row by name of its metric; None where a metric is not defined for the row.

    ``frequencies`` and ``documents`` say how rare words are (see ``leakage.keywords``).
    """
    scores: dict[str, float | None] = {}
    recall, expected, text = sample.recall, sample.expected, sample.generated
    assert text is not None, sample.id
    if "memorization" in families and recall is not None:
        scores["verbatim_probability"] = recall["probability"]
        scores |= {name: recall[name] for name in ("exact_memorization", "extraction_strength")}
    if "memorization" in families and sample.kind == "sc":
        scores["regurgitation_unicode"] = unicode_regurgitation(expected, text)
    if "leakage" in families:
        rare = keywords(expected, sample.prompt, frequencies, documents)
        scores["keyword_leakage"] = keyword_leakage(rare, text)
        scores["entity_leakage"] = entity_leakage(entities(expected, sample.prompt), text)
    if "collapse" in families:
        assert sample.ended is not None, sample.id
        assert sample.tokens is not None, sample.id
        scores |= collapse_scores(text, sample.ended, sample.tokens)
    return scores
