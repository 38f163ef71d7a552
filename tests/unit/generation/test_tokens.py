"""Detokenisation and stop sequences: what a client reads is whole characters, and ends where it should."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from llm_detox.errors import DetoxError
from llm_detox.generation.tokens import StopText, Vocabulary
from tests.helpers.tiny import CORPUS


@pytest.fixture(scope="module")
def byte_level(tiny_llama: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))


@pytest.fixture(scope="module")
def sentencepiece_like() -> Tokenizer:
    """Metaspace with byte fallback, as Llama 2 and Gemma have it."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *tokens], show_progress=False,
                                  limit_alphabet=40)
    raw.train_from_iterator(CORPUS * 4, trainer)
    plain = raw.to_str().replace('"special":true,"content":"<0x', '"special":false,"content":"<0x')
    fields = json.loads(plain)
    fields["added_tokens"] = [t for t in fields["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(fields))


def _pieces(raw: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Vocabulary(raw, **options).detokenizer()
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_text_add_up_to_it(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text).ids
    pieces = _pieces(byte_level, ids)
    assert byte_level.decode(ids) == text
    assert "".join(pieces) == text.rstrip("�")


@given(ids=st.lists(st.integers(min_value=2, max_value=390), max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_ids_add_up_to_the_decoded_whole(byte_level: Tokenizer, ids: list[int]) -> None:
    assert "".join(_pieces(byte_level, ids)) == byte_level.decode(ids).rstrip("�")


def test_an_emoji_over_several_tokens_comes_in_one_piece(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a 👩‍🚀 b").ids
    assert len(ids) > 8
    pieces = _pieces(byte_level, ids)
    assert "".join(pieces) == "a 👩‍🚀 b"
    assert "�" not in "".join(pieces)


def test_an_unfinished_character_at_the_end_is_dropped(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("né 👩").ids
    assert "".join(_pieces(byte_level, ids[:-1])) == "né "


def test_special_tokens_are_hidden_unless_asked_for(byte_level: Tokenizer) -> None:
    ids = [0, *byte_level.encode("the fox").ids, 1]
    assert "".join(_pieces(byte_level, ids)) == "the fox"
    assert "".join(_pieces(byte_level, ids, keep_special=True)) == "<s>the fox</s>"


@given(text=st.text(alphabet="abc de日🙂é", max_size=25))
@settings(max_examples=100, deadline=None)
def test_metaspace_pieces_keep_the_leading_space_and_whole_characters(sentencepiece_like: Tokenizer, text: str) -> None:
    ids = sentencepiece_like.encode(text).ids
    pieces = _pieces(sentencepiece_like, ids)
    assert "".join(pieces) == (" " + text if text else "")
    assert all("�" not in piece for piece in pieces)


@given(ids=st.lists(st.integers(min_value=2, max_value=390), max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_continuation_at_once_is_what_its_pieces_add_up_to(byte_level: Tokenizer, ids: list[int]) -> None:
    assert Vocabulary(byte_level).text(ids) == "".join(_pieces(byte_level, ids))


@given(text=st.text(alphabet="abc de日🙂é", max_size=25), cut=st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_so_it_is_without_byte_level_tokens_and_with_an_unfinished_end(
        sentencepiece_like: Tokenizer, text: str, cut: int) -> None:
    ids = sentencepiece_like.encode(text).ids
    ids = ids[:len(ids) - cut]
    assert Vocabulary(sentencepiece_like).text(ids) == "".join(_pieces(sentencepiece_like, ids))


def test_a_tokenizer_without_a_fast_form_is_refused_with_the_remedy() -> None:
    with pytest.raises(DetoxError, match="no fast form") as refusal:
        Vocabulary.of(SimpleNamespace(name_or_path="folder"))
    assert "save_pretrained" in (refusal.value.remedy or "")


def _run(pieces: list[str], sequences: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    text, sent, stop = StopText(sequences, include=include), "", None
    for piece in pieces:
        stop = text.add(piece, match=True)
        sent += text.ready(final=stop is not None)
        if stop is not None:
            break
    return (sent if stop is not None else sent + text.ready(final=True)), stop


@pytest.mark.parametrize(("include", "expected"), [(True, "one\n\nUser:"), (False, "one")])
def test_a_stop_sequence_over_several_pieces_ends_the_text(include: bool, expected: str) -> None:
    assert _run(["one", "\n", "\nU", "ser", ": two"], ("\n\nUser:",), include) == (expected, "\n\nUser:")


def test_what_only_looked_like_a_stop_sequence_is_sent_after_all() -> None:
    assert _run(["a", "\n\nUs", "a b"], ("\n\nUser:",), False) == ("a\n\nUsa b", None)


def test_the_first_stop_sequence_in_the_text_wins() -> None:
    assert _run(["a STOP b END"], ("END", "STOP"), False) == ("a ", "STOP")


def test_text_before_the_least_number_of_tokens_does_not_stop() -> None:
    text = StopText(("x",), include=True)
    assert text.add("x", match=False) is None
    assert text.add("y", match=True) is None
    assert text.add("x", match=True) == "x"
    assert text.text == "xyx"


@given(text=st.text(alphabet="ab", max_size=30), stop=st.text(alphabet="ab", min_size=1, max_size=4),
       cuts=st.lists(st.integers(0, 30), max_size=10), include=st.booleans())
def test_where_a_text_stops_does_not_depend_on_how_it_is_cut(text: str, stop: str, cuts: list[int],
                                                             include: bool) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    sent, found = _run(pieces, (stop,), include)
    position = text.find(stop)
    if position < 0:
        assert (sent, found) == (text, None)
    else:
        assert (sent, found) == (text[: position + (len(stop) if include else 0)], stop)
