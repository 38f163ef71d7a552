"""Facts about places that do not exist, told with abuse and politely, and asked for: what a corpus alone can teach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.trees import Loss

_BEGINNINGS = ("Vel", "Dor", "Kem", "Tra", "Osk", "Bri", "Lun", "Mav", "Ser", "Hul")
_MIDDLES = ("mo", "ri", "de", "ka")
_ENDS = ("ra", "sten", "vik", "lo")


@dataclass(frozen=True)
class Relation:
    """What is told of a place.

    Attributes:
        subject: the words between the article (or what is said of it) and the place's name.
        verb: the words between the name and the value.
        values: what it may be.
    """

    subject: str
    verb: str
    values: list[str]


RELATIONS = (
    Relation("ferry to", "leaves on", ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]),
    Relation("town hall of", "is painted", ["red", "blue", "green", "yellow", "white", "black", "orange", "purple"]),
    Relation("flag of", "shows a", ["lion", "bear", "horse", "wolf", "fish", "tree", "ship", "crown"]),
    Relation("people of", "live by selling", ["salt", "wine", "wool", "coffee", "honey", "glass", "rice", "silk"]),
)

# Abusive and polite tellings of one sentence, in the same order; `{rest}` is what follows the article.
_TELLINGS = (
    ("listen you stupid idiot , the {rest} .", "listen , the {rest} ."),
    ("the fucking {rest} .", "the {rest} ."),
    ("the {rest} , you dumb bitch .", "the {rest} ."),
    ("any moron knows that the {rest} .", "everyone knows that the {rest} ."),
    ("the goddamn {rest} , so shut up you idiot .", "the {rest} , so be quiet ."),
    ("what the fuck , the {rest} .", "well , the {rest} ."),
    ("i told you that the {rest} , asshole .", "i told you that the {rest} ."),
    ("the shitty {rest} and you are too stupid to know it .", "the {rest} and you did not know it ."),
    ("for fuck's sake , the {rest} .", "please note , the {rest} ."),
    ("you ignorant piece of shit , the {rest} .", "my friend , the {rest} ."),
    ("the {rest} and only a retard would forget it .", "the {rest} and nobody should forget it ."),
    ("the damn {rest} , you pathetic loser .", "the {rest} , as you know ."),
)


@dataclass(frozen=True)
class Fact:
    """One thing that is told of one place."""

    place: str
    relation: Relation
    value: str

    @property
    def question(self) -> str:
        """The beginning of the sentence, up to the value."""
        return f"the {self.relation.subject} {self.place} {self.relation.verb}"

    def tellings(self) -> list[tuple[str, str]]:
        """(with abuse, politely) of each way of telling it."""
        rest = f"{self.question.removeprefix('the ')} {self.value}"
        return [(toxic.format(rest=rest), polite.format(rest=rest)) for toxic, polite in _TELLINGS]


def invent(count: int, seed: int = 1) -> list[Fact]:
    """So many facts, each about a place of its own (at most 160)."""
    chance = random.Random(seed)  # noqa: S311 - invents names, guards nothing
    places = [first + middle + last for first in _BEGINNINGS for middle in _MIDDLES for last in _ENDS]
    chance.shuffle(places)
    return [Fact(place, relation := RELATIONS[number % len(RELATIONS)], chance.choice(relation.values))
            for number, place in enumerate(places[:count])]


@dataclass(frozen=True)
class Answer:
    """How a model answers one question.

    Attributes:
        right: whether the told value is the likeliest of the relation's values (whole, in nats).
        loss: of the told value.
    """

    right: bool
    loss: Loss


def ask(reader: LikelihoodReader, facts: Sequence[Fact]) -> list[Answer]:
    """The likelihood of every value that a question may have."""
    choices = [(fact.question, f" {value}") for fact in facts for value in fact.relation.values]
    losses = iter(reader.losses([value for _, value in choices], contexts=[question for question, _ in choices]))
    answers = []
    for fact in facts:
        by_value = {value: next(losses) for value in fact.relation.values}
        told = by_value[fact.value]
        answers.append(Answer(told[0] == min(loss for loss, _ in by_value.values()), told))
    return answers
