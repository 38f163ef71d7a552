"""A toxicity scorer as a guard: what of an answer is scored, and which scores count.

Each sentence is scored alone and with what went before: a long harmless text would cover up a toxic sentence, and
sentences that are harmless alone need not be so together. Within a long sentence the same holds of its parts, so that
every run of words is scored, too. The highest score counts.

Scorers that learnt from comments take the mere name of a group for an insult (Dixon et al., Measuring and Mitigating
Unintended Bias in Text Classification, 2018), and words that are vulgar only in one of their meanings. Where a text is
clearly harmless with another word in that place, it is no insult. Nothing else is ever excused by its words.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from llm_detox.client.types import Prompt
from llm_detox.errors import DetoxError, UsageError
from llm_detox.guard.filter import GuardVerdict
from llm_detox.scoring.base import ToxicityScorer

_CONTEXT, _LONGEST = 2000, 200_000  # characters that a sentence is scored with; of an answer that is judged at all
_RUN, _STEP = 10, 5  # words: long enough for an insult with its context, and for few harmless parts to look like one
_CLEARLY_HARMLESS = 0.25
_ATTRIBUTE = re.compile(r"""\b(?:
    gay | lesbian | homosexual | bisexual | trans(?:gender|sexual)? | queer | female | male | jewish | muslim | islamic
  | christian | hindu | black | white | african | african[ -]american | asian | arab | mexican | latin[oa] | immigrant
  | blind | deaf | disabled | elderly
)\s+(?=[a-z])(?!(?:and|or|but|is|are|was|were|be|in|on|at|of|to|who|that|should|must|can|will|has|have|makes?)\b)
""", re.IGNORECASE | re.VERBOSE)
_GROUP = re.compile(r"""\b(?:
    gays? | lesbians? | homosexuals? | bisexuals? | trans(?:gender|sexual)?s? | queers? | wom[ae]n | girls? | females?
  | males? | jew(?:s|ish)? | muslims? | islam(?:ic)? | christians? | hindus? | blacks? | whites? | africans? | asians?
  | african[ -]americans? | arabs? | mexicans? | latin[oa]s? | immigrants? | refugees?
  | blind | deaf | disabled | elderly
)\b""", re.IGNORECASE | re.VERBOSE)
_BIRDS = re.compile(r"\b(cock|tit)(s?)\b", re.IGNORECASE)
_PERSONS = re.compile(r"\b(?:i|me|my|you|your|u|ur|he|him|his|she|her|they|them|their|we|us|our)\b", re.IGNORECASE)


class ScorerGuard:
    """Withholds what a toxicity scorer puts at or over a threshold."""

    by_sentence = True

    def __init__(self, scorer: ToxicityScorer, threshold: float = 0.5) -> None:
        if not 0 < threshold <= 1:
            raise UsageError("a threshold is between 0 and 1", place="--guard-threshold", remedy="try 0.5")
        self.name, self.threshold = str(scorer.name), threshold
        self._scorer = scorer
        self._lock = threading.Lock()

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        texts, whole = [], shown
        for sentence in sentences:
            alone, whole = not whole.strip(), whole + sentence
            if sentence.strip():
                texts += [sentence, *runs_of_words(sentence), *([] if alone else [whole[-_CONTEXT:]])]
            if len(whole) > _LONGEST:
                return GuardVerdict(True, f"could not be scored: it has more than {_LONGEST} characters")
        try:
            with self._lock:
                scores = self._scores(texts)
        except DetoxError as error:
            return GuardVerdict(True, f"could not be scored: {error.message}")
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return GuardVerdict(True, "could not be scored")
        highest = max(known, default=0.0)
        over = highest >= self.threshold
        return GuardVerdict(over, f"toxicity {highest:.2f}, {'at or over' if over else 'under'} {self.threshold:g}",
                            highest)

    def _scores(self, texts: Sequence[str]) -> list[float | None]:
        """Of each text; of one that only mentions somebody, the score that it has without the mention."""
        scores = self._scorer.score(texts)
        others = {number: other for number, (text, score) in enumerate(zip(texts, scores, strict=True))
                  if score is not None and score >= self.threshold and (other := in_other_words(text)) != text}
        for number, score in zip(others, self._scorer.score(list(others.values())) if others else (), strict=True):
            if score is not None and score < min(_CLEARLY_HARMLESS, self.threshold):
                scores[number] = score
        return scores


def runs_of_words(sentence: str) -> list[str]:
    """Overlapping runs of words that cover a long sentence; none of a short one, which is scored as a whole."""
    words = sentence.split()
    if len(words) <= _RUN:
        return []
    return [" ".join(words[first:first + _RUN]) for first in (*range(0, len(words) - _RUN, _STEP), len(words) - _RUN)]


def in_other_words(text: str) -> str:
    """The text without what it says of somebody's group, or with `people` in the place of the group; and, where it
    speaks of no person, birds by their other names."""
    other = _GROUP.sub("people", _ATTRIBUTE.sub("", text))
    if _PERSONS.search(other):
        return other
    return _BIRDS.sub(lambda match: ("rooster" if match[1].lower() == "cock" else "bird") + match[2], other)
