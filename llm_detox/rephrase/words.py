"""Words of a text: how toxic each is, which to mask, a text without them that still reads well, and a rewrite as people
print it.

Comments come tokenised ("don 't", a space before each comma) and in lower case, and a word that was taken out leaves
doubled commas and spaces behind. In print the words stay as they are, but for the apostrophe that "dont" and "im" lack.
Quotation marks and apostrophes are straight ones, as in the comments: what a model learnt from books curls them, and a
language model that reads them scores the mark and not the words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

from llm_detox.rephrase.acceptance import Scorer

_VOWEL = re.compile(r"[aeiou]", re.IGNORECASE)
_LOOSE_PUNCTUATION = re.compile(r"\s+([,.!?;:)\]])")
_LOOSE_CLITIC = re.compile(r"(\w) ?(?:' ?(s|t|re|ve|ll|d|m)|(n't))\b", re.IGNORECASE)
_EDGE = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
# What cannot stand alone before a full stop or at the end.
_DANGLING = frozenset(re.findall(r"\w+", """
    a an the and or but of to with in on at by for from as like this that these those my your his her its our their
    such some any every is are was were be been being am very so too really
"""))


@runtime_checkable
class _Attributing(Protocol):
    def word_attributions(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[str, float]]]: ...


def attribute_words(scorer: Scorer, texts: Sequence[str]) -> list[list[float]]:
    """How much each whitespace word adds to the toxicity of its text.

    A scorer with `word_attributions` answers itself; any other is asked for each text without each of its
    words (occlusion), and a word's share is the fall of the score.
    """
    if isinstance(scorer, _Attributing):
        return [[share for _, share in row] for row in scorer.word_attributions(texts)]
    flat: list[str] = []
    for text in texts:
        words = text.split()
        flat += [text, *(" ".join(words[:i] + words[i + 1:]) for i in range(len(words)))]
    scores = iter([score or 0.0 for score in scorer.score(flat)])
    rows: list[list[float]] = []
    for text in texts:
        whole = next(scores)
        rows.append([whole - next(scores) for _ in text.split()])
    return rows


def smallest_masks(
    scorer: Scorer, texts: Sequence[str], *, below: float, largest_share: float
) -> list[frozenset[int] | None]:
    """For each text the fewest words, most toxic first, without which it scores under `below`.

    Args:
        below: the toxicity to come under; absolute, so harmless text is left alone.
        largest_share: of the words of a text that may go, in (0, 1]; two always may, all never.

    Returns:
        word positions for each text, None where even the largest allowed mask does not suffice.
    """
    ladders = [_ladder(row, largest_share) for row in attribute_words(scorer, texts)]
    steps = [without(text, mask) for text, ladder in zip(texts, ladders, strict=True) for mask in ladder]
    scores = iter(scorer.score(steps))
    masks: list[frozenset[int] | None] = []
    for ladder in ladders:
        rated = [(mask, next(scores)) for mask in ladder]
        masks.append(next((mask for mask, score in rated if score is not None and score < below), None))
    return masks


def _ladder(attributions: Sequence[float], largest_share: float) -> list[frozenset[int]]:
    most = min(max(2, int(largest_share * len(attributions))), len(attributions) - 1)
    order = sorted(range(len(attributions)), key=lambda i: -attributions[i])
    order = [i for i in order if attributions[i] > 0][:most]
    return [frozenset(order[: size + 1]) for size in range(len(order))]


def spans(mask: Collection[int]) -> list[tuple[int, int]]:
    """Neighbouring positions as half-open spans, from left to right: {1, 2, 5} -> [(1, 3), (5, 6)]."""
    if not mask:
        return []
    order = sorted(mask)
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(order), 1) if b != a + 1), len(order)]
    return [(order[a], order[b - 1] + 1) for a, b in pairwise(cuts)]


def without(
    text: str, mask: Collection[int], replacements: Mapping[int, str] | None = None, *, trim: bool = False
) -> str:
    """The text without the masked words.

    Args:
        mask: positions of whitespace words.
        replacements: first position of a masked span -> word that takes its place.
        trim: also drop articles and the like that would be left dangling before a stop.

    Returns:
        the text with tidy spaces, with the punctuation that ended a masked span kept, with `a`/`an` and the
        first capital adjusted.
    """
    words = text.split()
    out: list[str] = []
    seams: list[int] = []
    position = 0
    for start, end in spans(mask):
        out += words[position:start]
        opening = _parts(words[start])[0]
        closing = _parts(words[end - 1])[2]
        _close_gap(out, opening, (replacements or {}).get(start, ""), closing, trim=trim)
        seams.append(len(out) - 1 if (replacements or {}).get(start) else len(out))
        position = end
    out += words[position:]
    for seam in seams:
        _agree(out, seam)
    rebuilt = join_loose_marks(" ".join(out))
    if 0 in mask and not (replacements or {}).get(0):
        rebuilt = rebuilt.lstrip(" ,.!?;:") or rebuilt
    if text[:1].isupper():
        rebuilt = rebuilt[:1].upper() + rebuilt[1:]
    return rebuilt


def _close_gap(out: list[str], opening: str, word: str, closing: str, *, trim: bool) -> None:
    if word:
        out.append(opening + word + closing)
        return
    stop = re.sub(r"[^,.!?;:]", "", closing)[:1]
    if trim:
        while out and stop and out[-1].lower() in _DANGLING:
            out.pop()
    if stop and out and not out[-1].endswith((",", ".", "!", "?", ";", ":")):
        out[-1] += stop


def _agree(words: list[str], seam: int) -> None:
    """Set the article before `words[seam]` to `a` or `an`, by the letter that follows."""
    if not 0 < seam < len(words) or words[seam - 1].lower() not in ("a", "an") or not words[seam][:1].isalpha():
        return
    following = words[seam].lower()
    article = "an" if _VOWEL.match(following) and not following.startswith(("uni", "use", "one", "eu")) else "a"
    words[seam - 1] = article.capitalize() if words[seam - 1][:1].isupper() else article


def _parts(word: str) -> tuple[str, str, str]:
    match = _EDGE.match(word)
    return (match[1], match[2], match[3]) if match else ("", word, "")


def join_loose_marks(text: str) -> str:
    """Spaces as in print: one between words, none before a stop or inside a contraction."""
    text = re.sub(r"\s+", " ", text).strip()
    text = _LOOSE_PUNCTUATION.sub(r"\1", text)
    return _LOOSE_CLITIC.sub(lambda m: f"{m[1]}{chr(39) + m[2] if m[2] else m[3]}", text)


class Delete:
    """The fewest words, most toxic first, without which the scorer accepts the text.

    Args:
        scorer: attributes the toxicity and scores what is left.
        below: the toxicity that the rest must come under.
        largest_share: of a text's words that may go.
    """

    name = "delete"

    def __init__(self, scorer: Scorer, *, below: float, largest_share: float) -> None:
        self._scorer = scorer
        self._below = below
        self._largest_share = largest_share

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """The text without its toxic words, plain and with dangling articles trimmed."""
        masks = smallest_masks(self._scorer, texts, below=self._below, largest_share=self._largest_share)
        return [deletions(text, mask) if mask else [] for text, mask in zip(texts, masks, strict=True)]


def deletions(text: str, mask: frozenset[int]) -> list[str]:
    """The distinct ways to leave the masked words out."""
    return list(dict.fromkeys([without(text, mask, trim=True), without(text, mask)]))


_STRAIGHT = str.maketrans("‘’‚‛“”„‟", "'" * 4 + '"' * 4)
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=\w) ?' ?(?=(?:s|t|m|d|re|ve|ll)\b)", re.IGNORECASE), "'"),  # don 't, it ' s
    (re.compile(r"(?<=\w) (?=n't\b)", re.IGNORECASE), ""),  # do n't
    (re.compile(r" +(?=[,.!?;:%)\]])"), ""),
    (re.compile(r"(?<=[(\[]) +"), ""),
    (re.compile(r"([,;:])(?: ?[,;:])+(?=\s|$)"), r"\1"),  # what a deleted word stood between
    (re.compile(r"[,;:]+(?=[.!?])"), ""),
    (re.compile(r"^[\s,;:.!?]+(?=\w)"), ""),
    (re.compile(r"[\s,;:]+$"), ""),
    (re.compile(r"\bi\b(?![.'](?!(?:m|d|ll|ve)\b))"), "I"),  # not the one of "i.e."
]
# Those whose letters alone are no other word: "its", "ill", "were" and "lets" stay.
_CONTRACTIONS = {word.replace("'", "").lower(): word for word in [
    *(verb + "n't" for verb in ["ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is", "should",
                                "was", "were", "wo", "would"]),
    *(word + "'ll" for word in ["it", "they", "you"]), *(word + "'re" for word in ["they", "you"]),
    *(word + "'s" for word in ["he", "she", "that", "there", "what"]),
    *(word + "'ve" for word in ["I", "they", "we", "you"]), "I'm",
]}
_UNMARKED = re.compile(rf"\b(?!(?-i:IM)\b|wont to\b)(?:{'|'.join(_CONTRACTIONS)})\b(?!')", re.IGNORECASE)
_STARTS = re.compile(r"(?:^|(?<=[!?] )|(?<=\w\w\. ))(\W*)([a-z])(?!\w*[.:/@]\w)")  # not behind "i.e.", no address
_UNFINISHED = re.compile(r"[^\W_][)\]]?$")
_FEWEST_WORDS = 3


def as_printed(text: str) -> str:
    """The text with contractions joined, straight marks, capitals where sentences begin, and a final stop.

    A text of less than three words gets no stop: it is a title or a cry as likely as a sentence.
    """
    text = text.translate(_STRAIGHT)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _UNMARKED.sub(lambda match: _contraction(match[0]), text)
    text = _STARTS.sub(lambda match: match[1] + match[2].upper(), text.strip())
    ends_open = _UNFINISHED.search(text) and len(text.split()) >= _FEWEST_WORDS
    return text + "." if ends_open else text


def _contraction(letters: str) -> str:
    """dont -> don't, Dont -> Don't, DONT -> DON'T."""
    word = _CONTRACTIONS[letters.lower()]
    if letters.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if letters[0].isupper() else word
