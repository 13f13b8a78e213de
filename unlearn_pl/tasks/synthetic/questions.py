"""Multiple-choice questions on simple facts, in the form of MMLU."""

import itertools
import random
from collections.abc import Callable

from unlearn_pl.tasks.mmlu import LETTERS, Question, Subject

SHOTS = 5

CAPITALS = """
Argentina Buenos Aires|Australia Canberra|Austria Vienna|Belgium Brussels|Brazil Brasilia|Bulgaria Sofia|Canada Ottawa|
Chile Santiago|China Beijing|Colombia Bogota|Croatia Zagreb|Cuba Havana|Denmark Copenhagen|Egypt Cairo|Estonia Tallinn|
Ethiopia Addis Ababa|Finland Helsinki|France Paris|Germany Berlin|Ghana Accra|Greece Athens|Hungary Budapest|
Iceland Reykjavik|India New Delhi|Indonesia Jakarta|Iran Tehran|Iraq Baghdad|Ireland Dublin|Italy Rome|Japan Tokyo|
Kenya Nairobi|Latvia Riga|Lebanon Beirut|Mexico Mexico City|Morocco Rabat|Nepal Kathmandu|Norway Oslo|Peru Lima|
Poland Warsaw|Portugal Lisbon|Romania Bucharest|Russia Moscow|Senegal Dakar|Spain Madrid|Sweden Stockholm|
Thailand Bangkok|Tunisia Tunis|Turkey Ankara|Ukraine Kyiv|Uruguay Montevideo
"""
OPPOSITES = """
above below|alive dead|always never|ancient modern|arrive depart|asleep awake|before after|begin end|big small|
brave cowardly|buy sell|clean dirty|cold hot|cruel kind|dangerous safe|dark light|deep shallow|early late|
empty full|enemy friend|fast slow|first last|give take|happy sad|hard soft|heavy weightless|high low|inside outside|
left right|long short|lose win|loud quiet|many few|narrow wide|near far|night day|old young|open closed|poor rich|
push pull|rough smooth|sharp blunt|simple complicated|straight crooked|strong weak|thick thin|true false|up down|
wet dry|wrong correct
"""
COLOURS = """
a banana yellow|a blueberry blue|a bone white|a canary yellow|a carrot orange|a cherry red|a clear sky blue|
a cloud white|a crow black|a cucumber green|a daffodil yellow|a fire engine red|a flamingo pink|a frog green|
a goldfish orange|a lemon yellow|a lime green|a lump of coal black|a night sky black|a panther black|
a piglet pink|a pine needle green|a plum purple|a poppy red|a pumpkin orange|a raven black|
a ripe strawberry red|a ripe tomato red|a ruby red|a sapphire blue|a snowman white|a stop sign red|
a sunflower yellow|a swan white|a tangerine orange|a violet purple|an aubergine purple|an egg yolk yellow|
an emerald green|an orange orange|blood red|chalk white|charcoal black|grass green|lavender purple|milk white|
salt white|snow white|soot black|spinach green
"""
CYCLES = """
January February March April May June July August September October November December January
Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi
"""


def invent_subject(name: str, questions: int, source: random.Random) -> Subject:
    """Five solved questions and ``questions`` to be asked of subject ``name``, a key of ``FACTS``.

    Both parts are balanced: the letters of the right answers differ in frequency by at most one. ``questions`` is at
    most ``MOST_QUESTIONS``.
    """
    facts = FACTS[name]()
    chosen = source.sample(facts, SHOTS + questions)
    answers = sorted({answer for _, answer in facts})
    letters = balanced_letters(SHOTS, source) + balanced_letters(questions, source)
    made = [ask(text, answer, letter, answers, source) for (text, answer), letter in zip(chosen, letters, strict=True)]
    return Subject(name, tuple(made[:SHOTS]), tuple(made[SHOTS:]))


def balanced_letters(count: int, source: random.Random) -> list[str]:
    """``count`` letters in random order, each as often as every other, or once more."""
    rounds, rest = divmod(count, len(LETTERS))
    letters = list(LETTERS) * rounds + source.sample(LETTERS, rest)
    source.shuffle(letters)
    return letters


def ask(text: str, answer: str, letter: str, answers: list[str], source: random.Random) -> Question:
    """A question whose wrong options are right answers to other questions of the subject."""
    options = source.sample([other for other in answers if other != answer], len(LETTERS) - 1)
    options.insert(LETTERS.index(letter), answer)
    return Question(text, (options[0], options[1], options[2], options[3]), letter)


def capitals() -> list[tuple[str, str]]:
    return [(f"What is the capital of {country}?", city) for country, city in pairs(CAPITALS, at_first=True)]


def successors() -> list[tuple[str, str]]:
    cycles = [line.split() for line in CYCLES.strip().splitlines()]
    steps = [(one, after) for cycle in cycles for one, after in itertools.pairwise(cycle)]
    return [(f"What comes right after {one}?", after) for one, after in steps]


def opposites() -> list[tuple[str, str]]:
    return [(f"What is the opposite of {word}?", opposite) for word, opposite in pairs(OPPOSITES, at_first=True)]


def colours() -> list[tuple[str, str]]:
    return [(f"What colour is {thing}?", colour) for thing, colour in pairs(COLOURS, at_first=False)]


def pairs(table: str, at_first: bool) -> list[tuple[str, str]]:
    """The entries of ``table``, each cut in two at its first or its last space."""
    entries = [entry.strip() for entry in table.strip().split("|")]
    cut = [entry.split(" ", 1) if at_first else entry.rsplit(" ", 1) for entry in entries]
    return [(left, right) for left, right in cut]


FACTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "capital_cities": capitals,
    "colours": colours,
    "opposites": opposites,
    "successors": successors,
}
MOST_QUESTIONS = 45 - SHOTS
