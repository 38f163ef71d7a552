"""Public reports about filters of words and scorers of toxicity: what gets past them, and what they take for an insult.

Each text is read as every scorer of ours reads it, and looked through for one word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llm_detox.scoring.base import ToxicityScorer
from tests.public_inputs.case import Case, of


class _Word(ToxicityScorer):
    """1 for a text with the word as a word of its own, else 0."""

    def __init__(self, word: str) -> None:
        super().__init__("word", "word", ("toxicity",))
        self._word = word

    def score_batch(self, texts: Sequence[str]) -> list[Mapping[str, float] | None]:
        return [{"toxicity": float(self._word in re.findall("[a-z]+", text.lower()))} for text in texts]


def word(wanted: str, *texts: str) -> Callable[[Path], object]:
    """Whether the word is read in all of the texts; the texts in which it is, where it is not in all."""
    def read() -> object:
        scores = _Word(wanted).score(list(texts))
        seen = [text for text, score in zip(texts, scores, strict=True) if score]
        return len(seen) == len(texts) or seen

    return of(read)


_NEVER: list[str] = []
_LYRICS = ("'Cause there's a distance now", "It's alright, it's alright", "And I'll do my duty", "my mind's expired",
           "I wish I take it back", "I'm wishing you could see", "It's gonna hurt, it's gonna", "it fell apart so fast")

SEEN = (
    Case("jojoee/leo-profanity#26", "a symbol for a letter, and blanks between letters",
         word("idiot", "an !diot", "an i d i o t"), True),
    Case("developerdino/ProfanityFilter#6", "blanks between the letters of two words",
         word("idiot", "s t u p i d   i d i o t"), True),
    Case("CnCNet/xna-cncnet-client#665", "underscores, digits and stretched letters",
         word("idiot", "I_D_I_O-T", "1_d_1_0_t", "idddiiiooottt"), True),
    Case("ChaseFlorell/jQuery.ProfanityFilter#4", "digits for letters", word("idiot", "1d10t", "id1ot"), True),
    Case("lichess-org/lila#20973", "the dollar sign and the at sign", word("bastard", "b@$tard", "ba$t@rd"), True),
    Case("snguyenthanh/better_profanity#49", "Cyrillic letters, and words without blanks",
         word("idiot", "іdіоt", "idiotidiotidiot"), True),
    Case("naelstrof/KoboldKare#405", "thirteen invisible characters", word("idiot", *(
        f"id{sign}iot" for sign in
        "\u200b\u200c\u200d\ufeff\xad\u200e\u200f\u2060\u2061\u2062\u2063\u2064\u034f")), True),
    Case("microsoft/PyRIT#516", "a zero-width space between all letters", word("idiot", "\u200b".join("idiot")), True),
    Case("meta-llama/llama#1382", "Cyrillic letters, a Roman numeral and direction marks",
         word("previous", "іgnоre рrevіоus", "\u202eѕuоіvеrр\u202c", "p\u200brevious"), True),
    Case("liatrio-labs/claude-code-gauntlet#272", "wide, Cyrillic, mathematical and lowered letters",
         word("skip", "ｓkip", "ѕkip", "𝗌kip", "sₖip"), True),
    Case("BitterSecurity/Decepticon#480", "letters of the block of tags inside a word",
         word("idiot", "id\U000e0064iot"), True),
    Case("splorp/wordpress-comment-blocklist#10", "the Cyrillic і in short words", word("in", "come іn"), True),
    Case("nyvorin/badwords#2", "a sign right behind the word", word("idiot", "idiot<", "idiot_", "idiot~"), True),
    Case("stephenhaunts/ProfanityDetector#6", "a digit right behind the word", word("moron", "moron1"), True),
    Case("stephenhaunts/ProfanityDetector#18", "capitals", word("arsed", "ARSED"), True),
    Case("IEvangelist/GitHub.ProfanityFilter#14", "stars that make a letter bold", word("idiot", "id**i**ot"), True),
    Case("TwiN/go-away#37", "the word with blanks around it", word("crap", "this is crap"), True),
)

UNSEEN = (
    Case("snguyenthanh/better_profanity#52", "a number", word("ass", "455", "a bill of 455 dollars"), _NEVER),
    Case("TaloDev/backend#1016", "coordinates", word("goza", "142,460", "[142,460,9024]"), _NEVER),
    Case("TwiN/go-away#9", "keys of random letters", word("fag", "BwMAF4GiogA", "BwMBF4GiogA"), _NEVER),
    Case("jo3-l/obscenity#51", "a number before a word", word("bitch", "6 itch"), _NEVER),
    Case("TwiN/go-away#13", "a town", word("cunt", "I live in Scunthorpe.", "scunthorpe"), _NEVER),
    Case("sm64js/sm64js#77", "three short words", word("tit", "don't i think so"), _NEVER),
    Case("finnbear/rustrict#28", "lines of songs", word("shit", *_LYRICS), _NEVER),
    Case("BitfoxCanada/bruh-io-bug-tracker#60", "everyday words",
         word("butt", "button", "a button survived", "Hello, I played with glasses"), _NEVER),
    Case("unitaryai/detoxify#56", "names", word("shit", "Shital and Nishit selling lup pots"), _NEVER),
    Case("NousResearch/hermes-agent#18581", "an emoji of several characters",
         word("alive", "Keep the tension alive. 🤸‍♀️🤹⚖️"), True),
)

CASES = SEEN + UNSEEN
