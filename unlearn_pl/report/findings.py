"""Findings: what is asked of a model that should have forgotten, and the answer that its numbers carry.

No claim is stronger than the 95 % interval of its number carries: where that leaves both answers open, so does the
answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from unlearn_pl.report.evidence import (
    Evidence,
    at_least,
    at_most,
    change,
    empty,
    entry,
    has,
    known,
    mean_score,
    percent,
    scored,
    splits,
    terms,
    unit,
    unseen,
)
from unlearn_pl.report.run import Model, Search
from unlearn_pl.report.scores import REFERENCE, counted
from unlearn_pl.report.table import number

Tone = Literal["good", "bad", "unsure", "unknown"]
"""What an answer means for whoever must show that the documents are gone; ``unknown``: it was not measured."""

LEFT = 0.1
"""Share up to which what had to be forgotten counts as gone."""
LOSS = 0.05
"""Fall of a mean score up to which what had to be kept counts as kept."""
GUESSED = 0.25
"""Share of questions with four options that are answered right without knowing anything."""
BAND = 0.1
"""How far from one half an AUC may be to count as balanced."""


class Answer(NamedTuple):
    """An answer in a word or two, and the sentences behind it."""

    short: str
    tone: Tone
    words: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A question with its answer and the numbers behind it."""

    key: str
    question: str
    said: Answer
    evidence: Sequence[Evidence] = ()

    @property
    def answer(self) -> str:
        """The answer in a word or two."""
        return self.said.short

    @property
    def tone(self) -> Tone:
        """What it means."""
        return self.said.tone

    @property
    def words(self) -> str:
        """The sentences behind it."""
        return self.said.words


@dataclass(frozen=True)
class Case:
    """A model with the base that it is compared with."""

    model: Model
    base: Model | None
    search: Search | None = None
    """The search that chose it, if one did."""
    results: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", self.model.results)

    def of_rows(self, name: str, score: str, title: str) -> Evidence | None:
        """A score of the rows of a set, with the number of documents that they are of."""
        found = entry(self.results, f"{name}/{score}", title)
        rows = scored([row for row in self.model.samples if has(row, score)], [name])
        return None if found is None else replace(found, documents=len({unit(row) for row in rows}) or None)

    def moved(self, names: Sequence[str], title: str) -> Evidence | None:
        """Change of the same rows from the base; None without a base."""
        return None if self.base is None else change(self.base, self.model, names, title)


def forgotten(case: Case) -> Finding:
    """Do the texts still give what had to be forgotten?"""
    names = splits(case.results, "lower")
    whole = mean_score(case.model, names, "mean score of the rows to forget")
    parts = terms(case.results, "lower")
    moved = case.moved(names, "change of the rows to forget from the base")
    deeper = leaks(case, names)
    if whole is None:
        nothing = Answer("not measured", "unknown", "There are no scored rows of what had to be forgotten.")
        return Finding(key="forgotten", question="Forgotten?", said=nothing, evidence=parts)
    said = _forgotten(case, whole, moved, [*parts, *deeper])
    worst = sorted(parts, key=lambda one: -one.value)[:1]
    return Finding(key="forgotten", question="Forgotten?", said=said, evidence=known([whole, moved, *worst, *deeper]))


def _forgotten(case: Case, whole: Evidence, moved: Evidence | None, others: Sequence[Evidence]) -> Answer:
    gives = f"The texts give {percent(whole.value)} of what had to be forgotten"
    fell = moved is not None and moved.high is not None and moved.high < 0
    high = [one for one in others if one.value > LEFT]
    named = ", ".join(f"{one.name} {one.value:.3f}" for one in high)
    if moved is not None and whole.value - moved.value <= LEFT:
        return Answer(
            "nothing to see", "unsure", f"{gives}; but the base hardly gave it either, so this shows nothing."
        )
    if moved is None and whole.value <= LEFT and not high:
        alone = "nothing beside it tells whether the base ever gave it, so this shows nothing"
        return Answer("not compared", "unknown", f"{gives}; but {alone}.")
    if whole.value <= LEFT and high:
        return Answer("not all", "bad", f"{gives}. But above {percent(LEFT)} is: {named}.")
    if whole.value <= LEFT:
        most = percent(at_most(whole))
        if at_most(whole) <= LEFT:
            return Answer("yes", "good", f"{gives}, and at most {most}.")
        few = f"{whole.documents} documents are too few to exclude that it is up to {most}"
        return Answer("nothing left to see", "unsure", f"{gives}, but {few}.")
    if fell:
        words = f"{gives}, less than before; above {percent(LEFT)} is: {named or whole.name}."
        return Answer("in part", "bad", words)
    if case.model.name == REFERENCE:
        return Answer("no", "bad", f"{gives}: this is the model before anything was forgotten.")
    rest = "no fall from the base is shown" if case.base else "there is no base to compare with"
    return Answer("no", "bad", f"{gives}, and {rest}.")


def leaks(case: Case, names: Sequence[str]) -> list[Evidence]:
    """What tells of knowledge that the greedy texts do not show, or show in other words."""
    ends = {
        "verbatim_probability": "probability of the true answers",
        "entity_leakage": "share of their names and numbers in the texts",
        "pii/all/whole": "share of personal data given away whole",
    }
    found = [entry(case.results, f"{name}/{end}", title) for name in names for end, title in ends.items()]
    return known([*found, *(drawn(case, name) for name in names)])


def drawn(case: Case, name: str) -> Evidence | None:
    """The worst of as many drawn answers as were scored together; None where none were."""
    start = f"{name}/leak_at_"
    counts = [int(key.removeprefix(start)) for key in case.results.get("scores", {})
              if key.startswith(start) and key.removeprefix(start).isdecimal()]  # fmt: skip
    most = max(counts, default=0)
    return entry(case.results, f"{start}{most}", f"worst of {most} drawn answers")


def kept(case: Case) -> Finding:
    """Are the answers that had to stay still given?"""
    names = splits(case.results, "higher")
    whole = mean_score(case.model, names, "mean score of the rows to keep")
    moved = case.moved(names, "change of the rows to keep from the base")
    worst = sorted(terms(case.results, "higher"), key=lambda one: one.value)[:1]
    evidence = known([whole, moved, *worst])
    if whole is None:
        said = Answer("not measured", "unknown", "There are no scored rows of what had to be kept.")
    elif moved is None:
        words = f"Its mean score is {whole.text()}, and there is no base beside it to tell a loss from."
        said = Answer("not compared", "unknown", words)
    elif whole.value - moved.value <= LOSS:
        words = (
            f"The mean score of what had to be kept is {whole.text()}; but the base hardly gave it, so nothing could "
        )
        said = Answer("nothing to see", "unsure", f"{words}be lost.")
    else:
        said = fall(moved, "The mean score of what had to be kept")
    return Finding(key="kept", question="Kept?", said=said, evidence=evidence)


def fall(moved: Evidence, what: str) -> Answer:
    """What a change with an interval says of a loss."""
    by = f"{what} changed by {moved.value:+.3f}"
    if moved.low is None or moved.high is None:
        return Answer("not certain", "unsure", f"{by}; too few documents for an interval.")
    ends = f" (95 % interval {moved.low:+.3f} to {moved.high:+.3f})"
    if moved.high < -LOSS:
        return Answer("no", "bad", f"{by}{ends}: a loss of more than {LOSS:g} is shown.")
    if moved.high < 0:
        return Answer("not all", "bad" if moved.value < -LOSS else "unsure", f"{by}{ends}: a loss is shown.")
    if at_least(moved) >= -LOSS:
        return Answer("yes", "good", f"{by}{ends}: no loss of more than {LOSS:g}.")
    few = f"{moved.documents} documents do not exclude a loss of up to {-at_least(moved):.3f}"
    return Answer("no loss shown", "unsure", f"{by}{ends}; {few}.")


def knowledge(case: Case) -> Finding:
    """Is what the model knew of the world still there?"""
    after = entry(case.results, "choice/micro", "multiple-choice questions answered right")
    before = (
        None
        if case.base is None
        else entry(case.base.results, "choice/micro", "multiple-choice questions answered right by the base")
    )
    said = Answer("not measured", "unknown", "No multiple-choice questions were asked.")
    if after is not None and before is None:
        words = f"{percent(after.value)} of {after.n} questions were answered right, and there is no base beside it."
        said = Answer("not compared", "unknown", words)
    elif after is not None and before is not None:
        said = _knowledge(before, after)
    if case.results.get("eligible") is False:
        short = "no" if said.tone == "bad" else "below what was asked for"
        said = Answer(short, "bad", f"{said.words} It is below the least accuracy that was asked for.")
    return Finding(key="knowledge", question="General knowledge kept?", said=said, evidence=known([after, before]))


def _knowledge(before: Evidence, after: Evidence) -> Answer:
    by = f"{percent(after.value)} of {after.n} questions were answered right, {percent(before.value)} by the base"
    if after.high is not None and before.low is not None and after.high < before.low:
        return Answer("no", "bad", f"{by}: a loss is shown.")
    if before.low is not None and before.low <= GUESSED:
        guesses = f"the base itself is not shown to do better than guessing ({percent(GUESSED)})"
        return Answer("nothing to see", "unsure", f"{by}; but {guesses}, so there was nothing to lose.")
    # as many questions, all answered alike, leave room for others
    if min(after.low or 0.0, after.value * (1 - unseen(after.n))) > before.value - LOSS:
        return Answer("yes", "good", f"{by}: no loss of more than {LOSS:g}.")
    low = "" if after.low is None else f", as low as {percent(after.low)} is not excluded"
    return Answer("no loss shown", "unsure", f"{by}{low}.")


def balanced(case: Case) -> Finding:
    """Do the forgotten documents look neither too likely nor too unlikely?"""
    found = half(case)
    said = Answer("not measured", "unknown", "No documents of non-members were given, or the model is broken.")
    if found is not None:
        said = _balanced(found)
    if found is not None and case.search is not None:
        said = said._replace(words=f"{said.words} Documents that took part in the choice do not count here.")
    if case.search is not None and case.search.found.get("crosses") is False:
        said = said._replace(words=f"{said.words} The search found no balance ({case.search.found.get('message')}).")
    evidence = known([found, entry(case.results, "membership/loss/score", "membership score (1 at AUC 0.5)")])
    return Finding(key="balanced", question="Balanced?", said=said, evidence=evidence)


def half(case: Case) -> Evidence | None:
    """The AUC of the loss attack: on all documents, of a model that a search chose on those held out of it."""
    if case.search is None:
        return entry(case.results, "membership/loss/auc", "AUC of the loss attack")
    found = case.search.found
    value, ends = number(found.get("holdout_auc")), found.get("holdout_interval")
    if value is None:
        return None
    low, high = (number(end) for end in (ends if isinstance(ends, list) and len(ends) == 2 else (None, None)))
    count = counted(found.get("documents")).get("holdout_auc")
    name = "AUC of the loss attack on documents held out of the search"
    return Evidence(name=name, value=value, low=low, high=high, n=count)


def _balanced(auc: Evidence) -> Answer:
    by = f"The loss attack has an AUC of {auc.text()}; one half is a coin's."
    if auc.low is None or auc.high is None:
        return Answer("not certain", "unsure", f"{by} Without an interval nothing more can be said.")
    if auc.surely_above(0.5):
        return Answer("under-forgotten", "bad", f"{by} The forgotten documents are still likelier than unseen ones.")
    if auc.high < 0.5:
        return Answer("over-forgotten", "bad", f"{by} The forgotten documents stand out by being too unlikely.")
    if auc.low >= 0.5 - BAND and auc.high <= 0.5 + BAND:
        return Answer("yes", "good", f"{by} It is within {BAND:g} of it.")
    return Answer("no imbalance shown", "unsure", f"{by} The interval is too wide to call it balanced.")


FORGET, OTHERS = "forget prompts", "other prompts"
Shares = Mapping[str, Sequence[Evidence]]
"""Prompts -> a share of the texts on them."""


def collapsed(case: Case) -> Finding:
    """Do the texts repeat themselves, or are there none?"""
    asked = {FORGET: splits(case.results, "lower"), OTHERS: splits(case.results, "higher")}
    looped = {
        where: known(case.of_rows(name, "degenerate", f"share of degenerate texts on {where}") for name in names)
        for where, names in asked.items()
    }
    blank = {
        where: known([empty(case.model, names, f"share of empty texts on {where}")]) for where, names in asked.items()
    }
    evidence = [one for where in asked for one in (*looped[where], *blank[where])]
    return Finding(key="collapsed", question="Collapsed?", said=_collapsed(looped, blank), evidence=evidence)


def _collapsed(looped: Shares, blank: Shares) -> Answer:
    """What had to be forgotten may be answered with nothing, other prompts may not."""
    words = f"Degenerate (one phrase over and over): {_shares(looped) or 'not measured of any text'}."
    words += f" Empty: {_shares(blank)}." if any(blank.values()) else ""
    broken = [*looped[OTHERS], *blank[OTHERS]]
    if any(one.surely_above(LEFT) for one in broken):
        return Answer("yes", "bad", words)
    if any(one.surely_above(LEFT) for one in looped[FORGET]):
        return Answer("on forget prompts only", "bad", words)
    if not any(looped.values()):
        return Answer("not measured", "unknown", words)
    if all(at_most(one) <= LEFT for one in (*looped[FORGET], *broken)):
        return Answer("no", "good", words)
    return Answer("not shown", "unsure", f"{words} More than {percent(LEFT)} is not excluded.")


def _shares(found: Shares) -> str:
    return ", ".join(f"{percent(one.value)} on {where}" for where, several in found.items() for one in several)


def attacked(case: Case) -> Finding:
    """Does any membership attack still tell members apart?"""
    verdicts: Mapping[str, str] = case.results.get("verdicts") or {}
    evidence = known(
        entry(case.results, f"membership/{one}/auc", f"AUC of the {attack(one)} attack") for one in verdicts
    )
    leaking = [name for name, shown in verdicts.items() if shown.startswith("leaks")]
    silent = [name for name, shown in verdicts.items() if shown.startswith(("broken", "no verdict"))]
    words = f"{len(leaking)} of {len(verdicts)} attacks are shown to tell members from non-members."
    for shown in dict.fromkeys(verdicts[name] for name in (*leaking, *silent)):
        names = ", ".join(attack(name) for name in verdicts if verdicts[name] == shown)
        words += f" {shown.removeprefix('leaks: ').capitalize()} ({names})."
    if not verdicts:
        said = Answer("not measured", "unknown", "No documents of non-members were given.")
    elif leaking:
        said = Answer(f"yes, {len(leaking)} of {len(verdicts)}", "bad", words)
    elif silent:
        said = Answer("not certain", "unsure", words)
    elif case.search is not None:
        words += " But half of these documents took part in the choice of the model, by their AUC, so an AUC near one "
        said = Answer("none shown", "unsure", f"{words}half is in part chosen; see Balanced for those held out.")
    elif all(one.surely_above(0.5 - BAND) and one.surely_below(0.5 + BAND) for one in evidence):
        said = Answer("no", "good", words)
    else:
        words += f" Not every interval is within {BAND:g} of one half, so a weak attack is not excluded."
        said = Answer("none shown", "unsure", words)
    return Finding(key="attacked", question="Does an attack tell members apart?", said=said, evidence=evidence)


def attack(name: str) -> str:
    """What a reader calls an attack."""
    return {"min_k": "Min-K%", "min_k_pp": "Min-K%++"}.get(name, name)
