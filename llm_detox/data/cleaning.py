"""Cleaning text, and recognising the same text twice."""

from __future__ import annotations

import html
import re
import unicodedata

_SPACE = re.compile(r"\s+")
_LINK = re.compile(r"https?://\S+|www\.\S+")
_RETWEET = re.compile(r"\bRT\b(?=\s*[@:])|(?<!\w)@\w+:?")
_WIKI = re.compile(r"\(?\b(?:talk|contribs)\b\)?|\(UTC\)|={2,}|'{2,}|\[\[|\]\]|<[^>]*>")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ue000-\uf8ff\ufffd]")
_NOT_WORD = re.compile(r"[^\w\s]|_")


def clean_text(text: str) -> str:
    """One line of readable text: entities resolved, links, mentions, wiki markup and control characters removed."""
    text = unicodedata.normalize("NFC", html.unescape(text))
    for noise in (_LINK, _RETWEET, _WIKI, _CONTROL):
        text = noise.sub(" ", text)
    return _SPACE.sub(" ", text).strip(" \"“”:;,|-–—")


def same_text_key(text: str) -> str:
    """Equal for texts that differ only in case, punctuation, accents' form or spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE.sub(" ", _NOT_WORD.sub(" ", folded)).strip()


def cut_at_word(text: str, max_chars: int) -> str:
    """The text, shortened to `max_chars` at the end of a sentence if one ends late enough, else of a word."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    stop = max(head.rfind(mark) for mark in (". ", "! ", "? "))
    if stop >= max_chars // 2:
        return head[: stop + 1]
    return head[: head.rfind(" ")] if " " in head else head
