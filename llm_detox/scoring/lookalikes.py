"""A text as people see it: what every scorer reads in place of its characters.

Scorers know words by their letters. Unicode has many letters that look like those of Latin, characters that nobody
sees, and marks that strike letters through without hiding them; people read such a text as if it were plain. `plain`
gives what they read. Ordinary ASCII text stays as it is, and so do words of other scripts, with their vowel signs,
accents and joiners.

Sources: Unicode's normalisation forms (UAX 15), mixed scripts and look-alikes (UTS 39), the override characters of the
bidirectional algorithm (UAX 9).
"""

from __future__ import annotations

import re
import unicodedata

OVERRIDE = "\u202e"  # what follows is displayed from right to left, whatever it is
_OVERRIDDEN = re.compile("\u202e([^\u202a-\u202e\\n]*)\u202c?")
_BLANK_CONTROLS = re.compile(r"[\r\x0b\x0c\x1c-\x1f]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
# Joiners and their opposites shape the letters of Arabic and of Indian scripts; elsewhere they only part letters.
_STRAY_JOINER = re.compile("(?<![\u0600-\u1cff\ua840-\uabff])[\u200c\u200d]")
# Marks that are left where the letter with the mark is no letter of its own.
_STRAY_MARKS = re.compile("[\u0300-\u036f\u0488\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
_VARIATIONS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Letters, marks and symbols by their category; to the eye nothing, or a blank.
_NOTHING, _BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5"), frozenset("\u0085\u2800\u3164\uffa0")
_TYPOGRAPHY = {
    **dict.fromkeys("‘’‚‛′ʼ´", "'"), **dict.fromkeys("“”„‟″«»", '"'), **dict.fromkeys("‐‑‒–—―−", "-"), "…": "..."}
_PICTURE = re.compile("[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001f0ff\U0001f18e\U0001f200-\U0001faff]")
_INSULTS = {"\U0001f595": " fuck you "}  # the one picture that says something to everybody
_FULL_WIDTH = range(0xFF01, 0xFF5F)
_ORDINALS = frozenset("ªº")
_NAMED = re.compile(r"(?:LATIN LETTER SMALL CAPITAL (?:\w+ )?|REGIONAL INDICATOR SYMBOL LETTER |"
                    r"[A-Z ]*(?:CIRCLED|SQUARED|PARENTHESIZED) LATIN (?:CAPITAL|SMALL) LETTER )([A-Z])")
_LATIN = re.compile(r"LATIN (?:CAPITAL|SMALL) LETTER (?:[A-Z]+ )?([A-Z])(?: WITH .*)?")
# Cyrillic, Greek, Armenian and Cherokee letters with those of Latin that they are taken for.
_LOOK_ALIKES = {alike: latin for alikes, latins in (
    ("авгеёзийкмнопрстухчьяіїјѕһԁԛԝѵӏғқңүұҳҽ",
     "abreeennkmhonpctyxybriijshdqwvlfkhyyxe"),
    ("АВГЕЁЗИЙКМНОПРСТУХЬЯІЇЈЅҺԀԚԜѴӀҒҚҢҮҰҲԌ",
     "ABREEENNKMHONPCTYXBRIIJSHDQWVIFKHYYXG"),
    ("αβγεηικμνορσςτυχωάέήίϊόύϋώϲϳ",
     "abyenikuvopostuxwaeniiouuwcj"),
    ("ΑΒΕΖΗΙΚΛΜΝΟΡΣΤΥΧΆΈΉΊΪΌΎϹϿ",
     "ABEZHIKAMNOPETYXAEHIIOYCJ"),
    ("ագզլհյոսցօքՕՍՏԼ",
     "wqqlhjnugopOUSL"),
    ("ᎠᎡᎢᎥᎪᎫᎬᎳᎷᎻᎽᏀᏃᏙᏚᏞᏟᏢᏦᏴᏂᏒᎦ",
     "DRTIAJEWMHYGZVSLCPKBHRS"),
) for alike, latin in zip(alikes, latins, strict=True)}
_FOREIGN = re.compile(f"[{''.join(_LOOK_ALIKES)}]")
_WORD = re.compile(r"\w+")
_ASCII_LETTER = re.compile("[A-Za-z]")


def plain(text: str) -> str:
    """The text as it is seen, in the letters that it is read as; empty where there is nothing to be seen.

    Pictures part words and say nothing; a text of nothing else is the word `picture`. ASCII text is returned as it is,
    but for control characters.
    """
    if text.isascii() and text.isprintable():
        return text
    if not text.isascii():
        text = _plain(text)
    return _CONTROLS.sub("", _BLANK_CONTROLS.sub(" ", text))


def unaccented(word: str) -> str:
    """The word with the basic letter in place of each Latin letter that has a mark, a stroke or a bend."""
    return word if word.isascii() else "".join(map(_basic_letter, word))


def _plain(text: str) -> str:
    shown = unicodedata.normalize("NFC", _OVERRIDDEN.sub(lambda match: match[1][::-1], text))
    shown = _STRAY_JOINER.sub("", _VARIATIONS.sub("", shown))
    read = _STRAY_MARKS.sub("", shown.translate(_CHARACTERS))
    if _FOREIGN.search(read):
        read = _without_look_alikes(read)
    return "picture" if not read.strip() and _PICTURE.search(shown) else read


class _Characters(dict[int, str]):
    """What `str.translate` puts in place of each character, found out when it is met first."""

    def __missing__(self, code: int) -> str:
        self[code] = value = _character(chr(code))
        return value


_CHARACTERS = _Characters()


def _character(char: str) -> str:
    category = unicodedata.category(char)
    if char.isascii() or char in "\u200c\u200d":
        return char
    if char in _INSULTS:
        return _INSULTS[char]
    if category[0] == "Z" or char in _BLANK or _PICTURE.match(char):
        return " "
    if category[0] == "C" or char in _NOTHING:
        return ""
    if char in _TYPOGRAPHY:
        return _TYPOGRAPHY[char]
    if named := _NAMED.fullmatch(unicodedata.name(char, "")):
        return named[1].lower() if "SMALL" in unicodedata.name(char) else named[1]
    same = unicodedata.normalize("NFKC", char)
    is_letter = category[0] == "L" and same.isalpha() and char not in _ORDINALS
    is_digit = category == "Nd" and same.isdigit()
    return same if same.isascii() and (is_letter or is_digit or ord(char) in _FULL_WIDTH) else char


def _without_look_alikes(text: str) -> str:
    """Words that mix Latin with look-alikes, in Latin; where most of the text is Latin, words of look-alikes alone too.

    A Russian or Greek text keeps its words.
    """
    words = _WORD.findall(text)
    latin = sum(len(word) for word in words if _ASCII_LETTER.search(word))
    mostly_latin = latin > sum(len(word) for word in words if _is_foreign(word))

    def in_latin(match: re.Match[str]) -> str:
        word = match[0]
        if _is_foreign(word) or not (mostly_latin or _ASCII_LETTER.search(word)):
            return word
        return "".join(_LOOK_ALIKES.get(char, char) for char in word)

    return _WORD.sub(in_latin, text)


def _is_foreign(word: str) -> bool:
    """Whether a word has a letter of its own script that looks like none of Latin."""
    return not _ASCII_LETTER.search(word) and any(char.isalpha() and char not in _LOOK_ALIKES for char in word)


def _basic_letter(char: str) -> str:
    if char.isascii() or not (match := _LATIN.fullmatch(unicodedata.name(char, ""))):
        return char
    return match[1] if char.isupper() else match[1].lower()
