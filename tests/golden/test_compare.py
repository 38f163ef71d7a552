"""Off the recording machine a difference of rounding is no difference, and every other one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.compare import alike, differences


@pytest.mark.parametrize(("name", "before", "after"), [
    ("report.json", '{"loss": 7.10504674}', '{"loss": 7.10511262}'),
    ("report.json", '{"loss_last": 0.8845}', '{"loss_last": 0.8846}'),
    ("metrics.jsonl", '{"reward_accuracy": 0.0}\n', '{"reward_accuracy": 0.25}\n'),
    ("report.json", '{"reason": "0.982 of the base\'s"}', '{"reason": "0.983 of the base\'s"}'),
    ("report.md", "| base | 419.60 |", "| base | 419.61 |"),
    ("config.yml", "name: x\ntracking_id: 6460235f", "name: x\ntracking_id: 0b8a1c2d"),
    ("digests.json", '{"model.safetensors": "aa"}', '{"model.safetensors": "bb"}'),
])
def test_rounding_is_alike(name: str, before: str, after: str) -> None:
    assert alike(name, before, after)


@pytest.mark.parametrize(("name", "before", "after"), [
    ("report.json", '{"share": 0.5}', '{"share": 0.6}'),
    ("report.json", '{"loss": 7.1050467}', '{"loss": 7.1070467}'),
    ("report.json", '{"kept": 3}', '{"kept": 4}'),
    ("report.json", '{"share": 1.0}', '{"share": 1}'),
    ("report.json", '{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
    ("records.jsonl", '{"text": "a friend"}\n', '{"text": "a fiend"}\n'),
    ("records.jsonl", '{"id": 1}\n{"id": 2}\n', '{"id": 2}\n{"id": 1}\n'),
    ("records.jsonl", '{"id": 1}\n', '{"id": 1}\n{"id": 2}\n'),
    ("report.md", "| base | 419.60 |", "| base | 419.70 |"),
    ("report.md", "| base | 419.60 |", "| raw | 419.60 |"),
    ("digests.json", '{"model.safetensors": "aa"}', '{"adapter.safetensors": "aa"}'),
])
def test_anything_else_differs(name: str, before: str, after: str) -> None:
    assert not alike(name, before, after)


def test_missing_new_and_changed_files_are_named(tmp_path: Path) -> None:
    for folder, contents in (("before", {"kept": "1.00001", "gone": ""}), ("after", {"kept": "1.00002", "more": ""})):
        (tmp_path / folder).mkdir()
        for name, text in contents.items():
            (tmp_path / folder / f"{name}.json").write_text(text, "utf-8")
    folders = tmp_path / "before", tmp_path / "after"
    assert differences(*folders, exactly=False) == ["gone.json is missing", "more.json is new"]
    changed = differences(*folders, exactly=True)[-1]
    assert changed.startswith("kept.json differs:")
    assert "+1.00002" in changed
