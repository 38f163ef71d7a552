"""The prompts that the speed of sampling is measured with."""

from __future__ import annotations

PROMPTS = [
    "I was walking home from work when", "The worst thing about this city is", "My neighbour thinks that",
    "You know what they say about people who", "When she opened the door he", "So I told him to",
    "Nobody in the meeting expected that the manager would", "The comments under the video were full of",
    "After the game the fans began to", "What really makes me angry about politicians is that they",
    "He looked at me and said", "In the old days a man",
]


def chosen(count: int) -> list[str]:
    """So many prompts, from the beginning again where there are not enough."""
    return (PROMPTS * -(-count // len(PROMPTS)))[:count]
