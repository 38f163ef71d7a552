"""What a text says of somebody's group is no insult by itself.

Scorers that learnt from comments take the mere name of a group for an insult (Dixon et al., Measuring and Mitigating
Unintended Bias in Text Classification, 2018), and words that are vulgar only in one of their meanings. Where a text is
clearly harmless with another word in that place, it is no insult. Nothing else is ever excused by its words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from llm_detox.scoring.base import Scores

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

Scoring = Callable[[Sequence[str]], Sequence[Scores | None]]


def excused_scores(score: Scoring, texts: Sequence[str], thresholds: Mapping[str, float]) -> list[Scores | None]:
    """The scores of each text; of one that only mentions somebody, those that it has without the mention.

    Args:
        score: gives the attributes of texts, None for a text that could not be scored.
        thresholds: attribute -> the score that matters; only what reaches it is asked about again.
    """
    results = list(score(texts))
    others = {number: other for number, (text, scores) in enumerate(zip(texts, results, strict=True))
              if scores and _over(scores, thresholds) and (other := in_other_words(text)) != text}
    for number, scores in zip(others, score(list(others.values())) if others else (), strict=True):
        before = results[number]
        if before and scores:
            results[number] = before | {name: scores[name] for name in _over(before, thresholds)
                                        if scores[name] < min(_CLEARLY_HARMLESS, thresholds[name])}
    return results


def _over(scores: Scores, thresholds: Mapping[str, float]) -> list[str]:
    return [name for name, threshold in thresholds.items() if scores[name] >= threshold]


def in_other_words(text: str) -> str:
    """The text without what it says of somebody's group, or with `people` in the place of the group; and, where it
    speaks of no person, birds by their other names."""
    other = _GROUP.sub("people", _ATTRIBUTE.sub("", text))
    if _PERSONS.search(other):
        return other
    return _BIRDS.sub(lambda match: ("rooster" if match[1].lower() == "cock" else "bird") + match[2], other)
