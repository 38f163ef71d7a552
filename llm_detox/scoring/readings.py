"""The readings of a text, of which a scorer takes the worst: as it is seen, and with disguised words in plain ones.

A word that is spelled with spaces or dots between its letters, with digits for letters, with letters stretched, or run
together with others is read by people without effort, and unknown to scorers. The second reading is made only where a
text shows such signs, and where a word of the language comes of it: ordinary text has one reading.

Words that run together are parted by dynamic programming over their frequencies (Norvig, Natural Language Corpus Data,
2009).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby, islice, product

from llm_detox.data.sources import fetch
from llm_detox.scoring.lookalikes import OVERRIDE, plain, unaccented

VERSION = "r3"  # of the readings: a change makes other scores, and with them other fingerprints
_WORDS = "package://symspellpy/symspellpy/frequency_dictionary_en_82_765.txt"  # a word and its count a line
_MOST_WORDS = 30_000
# Of one letter two words, of two letters these: what runs together would else fall into pieces.
_SHORT = frozenset(re.findall(r"\w+", """
    a i ad ah am an as at be by do eh go ha he hi if in is it me my no of oh ok on or ow so to uh up us we ye yo"""))
# Rare in books, common where they are disguised; so are contractions.
_INSULTS = frozenset(re.findall(r"\w+", """
    fuck fucking fucker fucked motherfucker shit shitty bullshit bitch bitches cunt asshole assholes dumbass
    jackass idiot idiots moron morons stupid retard retarded whore slut bastard dick dickhead pussy prick twat
    wanker imbecile loser losers scum scumbag faggot fag nigger nigga ugly pathetic worthless disgusting dumb
    crap garbage trash fool"""))
_SPOKEN_RANK = 400
_BETWEEN = r"(?:(?!['\n])[\W_]){1,5}"
_LETTER_BY_LETTER = re.compile(rf"(?<![A-Za-z0-9'])[A-Za-z](?:{_BETWEEN}[A-Za-z](?![A-Za-z0-9'])){{2,}}")
_SIGN = re.compile(r"""
    ([A-Za-z])\1\1                                  # stretched
  | [A-Za-z][*._~^]+[A-Za-z]                        # something between letters
  | [A-Za-z].*[0-9@$|+] | [0-9@$!|+].*[A-Za-z]      # digits, and signs like them, among letters
  | [A-Za-z']{11}                                   # long enough for several words
  | [\u00c0-\u024f\u0250-\u02af\u1e00-\u1eff]       # a Latin letter with something added
""", re.VERBOSE)
_MEASURE = re.compile(r"[0-9]+(?:[.,][0-9]+)*[a-z]{1,3}|[a-z]{1,2}[0-9]+")  # 10km, 4.5s, 2nd, A4
_EDGES = re.compile(r"([^\w@$!|+]*)(.*?)([^\w$]*)", re.DOTALL)
_PART = re.compile(r"[^\s,;:?()\[\]{}<>\"-]+")
_ADDRESS = re.compile(r"//|www\.|\w@\w+\.\w")
_MEANT = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s",
          "!": "i", "|": "il", "+": "t"}
_FILLERS = re.compile(r"[._~^]+")
_MOST_GUESSES = 64
_LONGEST_WORD, _LONGEST_PART, _REMEMBERED = 20, 400, 2**15
_CROWDED = 12  # characters a word, over a whole text: its spaces have been left out
_FEWEST_LETTERS, _FEWEST_CROWDED = 11, 6  # of words that run together
_COMMON = 200  # the most frequent words, of which nearly every sentence has two
_EACH_WORD, _UNKNOWN_LETTER = 0.5, 10.0  # costs, beside the logarithm of a word's rank (Zipf's law)


def readings(text: str) -> tuple[str, ...]:
    """The text as it is seen, then its other readings; one that is the same is not repeated.

    Args:
        text: as somebody wrote it; ordinary ASCII text is its only reading.
    """
    seen = plain(text)
    others = [plain(text.replace(OVERRIDE, ""))] if OVERRIDE in text else []
    others += [other for one in (seen, *others) if (other := undisguised(one))]
    return tuple(dict.fromkeys([seen, *others]))


def undisguised(text: str) -> str | None:
    """The text with its disguised words in plain ones; None where none of its words is disguised."""
    spelled = _LETTER_BY_LETTER.sub(lambda match: _joined(match[0]), text)
    crowded = len(text) > _CROWDED * (len(text.split()) or 1)
    read = _PART.sub(lambda match: _read_part(match[0], crowded), spelled)
    return None if read == text else read


def _joined(spelled: str) -> str:
    """Letters with something between them as words: what is mostly between them parts letters, as any one sign does."""
    parts = re.split(r"([\W_]+)", spelled)
    usual, times = Counter(parts[1::2]).most_common(1)[0]
    if times < 2 or (spelled.isupper() and len(parts) < 7):
        return spelled  # single names, and initials
    words = "".join(part if number % 2 == 0 else "" if part == usual or (len(part) == 1 and not part.isspace()) else " "
                    for number, part in enumerate(parts))
    return " ".join(_parted(word.lower(), word) for word in words.split(" "))


@lru_cache(_REMEMBERED)
def _read_part(part: str, crowded: bool) -> str:
    if not (crowded or _SIGN.search(part)) or _ADDRESS.search(part):
        return part
    match = _EDGES.fullmatch(part[:_LONGEST_PART])
    if match is None:
        return part
    before, core, behind = match.groups()
    return before + _read_word(core, crowded) + behind + part[_LONGEST_PART:]


def _read_word(word: str, crowded: bool) -> str:
    """A known word for a disguised one, several for those that run together; else the word itself."""
    lower, known = unaccented(word).lower(), _ranks()
    if lower in known or _MEASURE.fullmatch(lower):
        return word if word.isascii() else lower
    pieces = _FILLERS.split(lower)
    if 1 < len(pieces) < len("".join(pieces)) and all(piece in known or len(piece) == 1 for piece in pieces):
        return word  # a name of a file, or a space that is missing
    guesses = list(dict.fromkeys(_guesses("".join(pieces))))
    best = min((guess for guess in guesses if len(guess) > 2 and guess in known), key=known.__getitem__, default=None)
    if best or len(lower) < (_FEWEST_CROWDED if crowded else _FEWEST_LETTERS):
        return best or word
    return _parted(guesses[0], word, sentence=not crowded)


def _guesses(word: str) -> Iterator[str]:
    """What a word may be meant to be, the likeliest first."""
    options = [_options(char, len(list(run))) for char, run in groupby(word)]
    return islice(map("".join, product(*options)), _MOST_GUESSES)


def _options(char: str, count: int) -> Sequence[str]:
    if char in _MEANT:
        return [letter * count for letter in _MEANT[char]]
    if char == "*":
        return ["", *"aeiou"] if count == 1 else [""]
    return [char * count] if count == 1 or not char.isalpha() else [char * 2, char] if count == 2 else [char, char * 2]


def _parted(letters: str, otherwise: str, *, sentence: bool = False) -> str:
    """The words that run together in these letters.

    Args:
        letters: in lower case.
        otherwise: what is given where they make no words.
        sentence: whether they must be a sentence's, for nothing but their length is odd about them.
    """
    if letters in _ranks():
        return otherwise if otherwise.isascii() and otherwise.lower() == letters else letters
    words = _segments(letters)
    unknown = sum(len(word) for word in words if word not in _ranks())
    if 5 * unknown > len(letters) or (sentence and not _is_sentence(words)):
        return otherwise
    return " ".join(words)


def _is_sentence(words: Sequence[str]) -> bool:
    """Whether words in a row can hardly be one long word by chance, as a name can be of two or three of them."""
    common = sum(len(word) > 2 and _ranks().get(word, _COMMON) < _COMMON for word in words)
    return common > 1 or (len(words) > 3 and min(map(len, words)) > 2)


def _segments(letters: str) -> list[str]:
    """The likeliest words in a row; letters that belong to none stay together."""
    known = _ranks()
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the letters up to here, where the last word begins
    for end in range(1, len(letters) + 1):
        choices = [(best[end - 1][0] + _UNKNOWN_LETTER, end - 1)]
        for start in range(max(0, end - _LONGEST_WORD), end):
            rank = known.get(letters[start:end])
            if rank is not None:
                choices.append((best[start][0] + _EACH_WORD + math.log(rank + 2), start))
        best.append(min(choices))
    words: list[str] = []
    end = len(letters)
    while end:
        start = best[end][1]
        words.append(letters[start:end])
        end = start
    return _with_unknown_together(words[::-1])


def _with_unknown_together(words: list[str]) -> list[str]:
    runs = groupby(words, key=lambda word: word in _ranks())
    return [word for is_known, run in runs for word in (run if is_known else ["".join(run)])]


@cache
def _ranks() -> dict[str, int]:
    """Words of English with how many are more frequent; what is spoken, not printed, stands higher than in books."""
    lines = fetch(_WORDS, kind="dataset").read_text("utf-8-sig").splitlines()
    words = [line.partition(" ")[0] for line in lines]
    known = [word for word in words if len(word) > 2 or word in _SHORT][:_MOST_WORDS]
    ranks = {word: rank for rank, word in enumerate(known)}
    spoken = _INSULTS.union(word for word in words if "'" in word)
    return ranks | {word: min(ranks.get(word, _SPOKEN_RANK), _SPOKEN_RANK) for word in spoken}
