"""Which texts scorers have in common, by what the texts say and not by where they are kept."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_detox.data.labels import is_kept_from_scorers
from llm_detox.data.records import same_text_key
from llm_detox.errors import DetoxError
from llm_detox.recipe.scorers import ScorerSection, ScoringSection
from llm_detox.scoring.learnt import LEARNT_FILE, learnt_by, marks, share_in_common, write_marks


def labelled(path: Path, texts: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["is_offensive", "text"])
        table.writerows([(number % 2, text) for number, text in enumerate(texts)])
    return path


def learnable(count: int, word: str) -> list[str]:
    """Texts of which none is kept from scorers."""
    texts = (f"the {word} number {number} of the day" for number in range(10 * count))
    return [text for text in texts if not is_kept_from_scorers(same_text_key(text))][:count]


def test_spelling_makes_no_other_text() -> None:
    assert share_in_common(marks(["You FOOL!!", "good   day"]), marks(["you fool", "another"])) == 0.5


def test_texts_of_other_writings_are_told_apart() -> None:
    assert share_in_common(marks(["किताब"]), marks(["कताब"])) == 0


def test_what_is_not_known_is_not_nothing() -> None:
    assert learnt_by(ScorerSection(kind="bilstm")) is None
    assert share_in_common(None, marks(["a"])) is None
    assert share_in_common(marks(["a"]), None) is None


def test_labelled_text_is_compared_by_its_rows_whatever_its_file_is_called(tmp_path: Path) -> None:
    ours, theirs = learnable(40, "cat"), learnable(60, "dog")
    mixed = labelled(tmp_path / "other.csv", [*theirs, *ours[:20]])
    training = learnt_by(ScorerSection(kind="ngram", source=str(labelled(tmp_path / "one.csv", ours))))
    judging = learnt_by(ScorerSection(kind="ngram", source=str(mixed)))
    assert share_in_common(judging, training) == 0.25
    assert share_in_common(training, judging) == 0.5


def test_an_ensemble_has_learnt_what_its_members_have(tmp_path: Path) -> None:
    members = [{"kind": "ngram", "source": str(labelled(tmp_path / f"{word}.csv", learnable(10, word)))}
               for word in ("cat", "dog")]
    both = learnt_by(ScorerSection.model_validate({"kind": "ensemble", "members": members}))
    assert both is not None
    assert len(both) == 20
    unknown = [*members, {"kind": "bilstm"}]
    assert learnt_by(ScorerSection.model_validate({"kind": "ensemble", "members": unknown})) is None


def test_a_folder_of_train_scorer_says_what_it_has_learnt(tmp_path: Path) -> None:
    (tmp_path / "scorer.safetensors").write_bytes(b"")
    section = ScorerSection(kind="attributes", source=str(tmp_path))
    assert learnt_by(section) is None, "folders of before do not say it"
    write_marks(marks(["one", "two"]), tmp_path / LEARNT_FILE)
    assert share_in_common(learnt_by(section), marks(["two", "one"])) == 1
    (tmp_path / LEARNT_FILE).write_bytes(b"something else")
    with pytest.raises(DetoxError, match="not a list of learnt texts"):
        learnt_by(section)


def test_a_scorer_with_the_same_rows_in_another_file_is_not_independent(tmp_path: Path) -> None:
    from llm_detox.evaluation.opinions import ScorerIdentity
    from llm_detox.scoring.ngram import load_ngram_scorer

    ours = learnable(40, "cat")
    one, other = labelled(tmp_path / "one.csv", ours), labelled(tmp_path / "two.csv", [*ours, *learnable(10, "dog")])
    scoring = ScoringSection.model_validate({"training": {"kind": "ngram", "source": str(one)},
                                             "judging": {"kind": "bilstm"}})
    section = ScorerSection(kind="ngram", source=str(other))
    assert not scoring.in_common(section), "by their files they have nothing in common"
    identity = ScorerIdentity.of(load_ngram_scorer(str(other)), section, scoring)
    assert identity.rows_in_common == 0.8
    assert "80.0 % of the texts" in identity.rows_in_words
