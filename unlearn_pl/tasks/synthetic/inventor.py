"""Invented names and facts, each drawn at most once, so that no two documents share one."""

import datetime
import random
from collections.abc import Callable

from unlearn_pl.errors import InputError

ONSETS = (
    "Ald Bel Bram Cal Cor Dar Del Dor Eld Ev Fal Fen Gal Gar Hal Hes Il Ith Jor Kel Kor Lan Lor Mal Mer Nal Ner "
    "Ol Or Pel Per Quil Ral Ren Sel Sor Tal Tor Ul Val Ver Wil Wen Yar Zel Zor"
)
MIDDLES = "a ad an e el en i il in o ol on u un"
FIRST_ENDS = "bel dra dric fin gard la len lia lis mir mond na nia ra rek ric ris sa seth th thea ver vin wyn"
LAST_ENDS = "bourne brand by croft den dyke fell gast hart holt lock mark mere quist rell ridge shaw stead tarn wick"
PLACE_ENDS = "bridge burgh castle dale field ford gate harbour haven hollow moor port quay stow vale water well worth"
MATERIALS = (
    "bone brass bronze cedar clay copper coral crystal felt glass granite jade leather linen marble paper pewter "
    "silk silver slate straw tin velvet walnut wax wicker"
)
OBJECTS = (
    "bell bowl box button candle chain comb compass crown cup dagger dial drum feather flute hammer hourglass key "
    "kite ladle lantern letter lock map mask mirror needle ring spoon thimble whistle"
)
SHAPES = (
    "badger beetle boat boot cloud crab crow dragon fish fox hare heron leaf lion moth pear rose seal shell snail "
    "spider star swan tower wheel wolf wren"
)
STREETS = "Alley Avenue Close Court Crescent Drive Lane Mews Passage Place Road Row Street Terrace Walk Way"
FIRST_BIRTHDAY, BIRTHDAYS = datetime.date(1930, 1, 1), 27_000
ATTEMPTS = 500


class Inventor:
    """A source of invented facts: a function of its seed and of the order of calls, and never the same fact twice.

    SSNs lie in the area 900 to 999, which is never issued; phone numbers in 555-0100 to 555-0199, which are kept for
    fiction; e-mail addresses in the domains that are reserved for examples.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"synthetic benchmark {seed}")
        self.drawn: list[str] = []
        """Everything drawn so far, in order, in lower case."""
        self._taken: set[str] = set()
        self._names: set[str] = set()
        self._pieces: set[str] = set()
        """What stands in the names so far."""

    def once(self, draw: Callable[[], str], is_fit: Callable[[str], bool] = bool) -> str:
        """The first result of ``draw`` that was not drawn before and, in lower case, ``is_fit``.

        Raises InputError if there seems to be none left: the benchmark asked for is larger than the invented world.
        """
        for _ in range(ATTEMPTS):
            fact = draw()
            if fact.lower() not in self._taken and is_fit(fact.lower()):
                self._taken.add(fact.lower())
                self.drawn.append(fact.lower())
                return fact
        raise InputError(
            f"the synthetic benchmark ran out of new facts after {len(self.drawn)}; ask for fewer documents"
        )

    def pick(self, words: str) -> str:
        """One of the space-separated ``words``; it may come again."""
        return self.random.choice(words.split())

    def first_name(self) -> str:
        return self._name(FIRST_ENDS)

    def surname(self) -> str:
        return self._name(LAST_ENDS)

    def place(self) -> str:
        return self._name(PLACE_ENDS)

    def treasure(self) -> str:
        """Such as ``silver whistle shaped like a heron``."""
        pick = self.pick
        return self.once(lambda: f"{pick(MATERIALS)} {pick(OBJECTS)} shaped like a {pick(SHAPES)}")

    def birthday(self) -> str:
        """A date between 1930 and 2003, as ``1984-12-31``."""
        return self.once(lambda: str(FIRST_BIRTHDAY + datetime.timedelta(self.random.randrange(BIRTHDAYS))))

    def ssn(self) -> str:
        digits = self.random.randint
        return self.once(lambda: f"{digits(900, 999)}-{digits(10, 99)}-{digits(1000, 9999)}")

    def phone(self) -> str:
        digits = self.random.randint
        return self.once(lambda: f"{digits(201, 989)}-555-{digits(100, 199):04d}")

    def email(self, first: str, last: str) -> str:
        first, last, number = first.lower(), last.lower(), str(self.random.randint(2, 99))
        forms = (
            f"{first}.{last}",
            f"{last}_{first}",
            f"{first[0]}{last}{number}",
            f"{last}{number}",
            f"{first}{number}",
        )
        return self.once(lambda: f"{self.random.choice(forms)}@example.{self.pick('com org net')}")

    def address(self) -> str:
        """Such as ``3904 Calemark Lane, Dorimoor, 40318``; its street and town are new names as well."""
        street, town, digits = self.surname(), self.place(), self.random.randint
        return self.once(lambda: f"{digits(10, 9999)} {street} {self.pick(STREETS)}, {town}, {digits(10000, 99999)}")

    def identifier(self) -> str:
        """Sixteen hexadecimal digits, the id of a document."""
        return self.once(lambda: f"{self.random.getrandbits(64):016x}")

    def _name(self, ends: str) -> str:
        """A name that stands in none drawn before and holds none: Korilbourne would give Orilbourne away."""
        name = self.once(lambda: self.pick(ONSETS) + self.pick(MIDDLES) + self.pick(ends), self._is_apart)
        self._names.add(name.lower())
        self._pieces |= pieces(name.lower())
        return name

    def _is_apart(self, name: str) -> bool:
        return name not in self._pieces and self._names.isdisjoint(pieces(name))


def pieces(name: str) -> set[str]:
    """Every string that stands in ``name``."""
    return {name[start:end] for end in range(len(name) + 1) for start in range(end)}
