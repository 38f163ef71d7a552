"""Made-up sentences, harmless ones and ones with a mild insult. They are the captures' own: others may not change them.
"""

from __future__ import annotations

import random

_INSULTS = ("idiot", "moron", "stupid", "filthy", "scum")
_WORDS = (
    "you", "are", "a", "the", "my", "friend", "house", "garden", "people", "work", "very", "some", "old", "new", "read",
    "book", "talk", "page", "here", "today", "with", "and", "for", "was", "is", "good", "nice", "kind", "bad", "cold",
    "man", "woman", "town", "river", "evening", "train", "dinner")


def sentences(count: int, *, seed: int) -> list[tuple[str, bool]]:
    """So many sentences, each with whether it is rude; half of them are."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        words = rng.choices(_WORDS, k=rng.randint(5, 14))
        rude = number % 2 == 0
        for _ in range(rng.randint(1, 2) if rude else 0):
            words.insert(rng.randrange(len(words)), rng.choice(_INSULTS))
        made.append((" ".join(words).capitalize() + ".", rude))
    rng.shuffle(made)
    return made
