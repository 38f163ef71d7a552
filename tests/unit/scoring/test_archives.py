"""A sentence encoder in a zip file: unpacked once, within limits, and nowhere but into the cache."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.scoring import similarity
from llm_detox.scoring.similarity import SentenceSimilarity
from tests.helpers.damage import copy_of, with_code


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    return archive


def test_an_encoder_in_a_zip_file_measures_similarity(tiny_llama: Path, tmp_path: Path) -> None:
    encoder = SentenceSimilarity(str(packed(tiny_llama, tmp_path / "encoder.zip")))
    same, other = encoder.cosine(["a fine day", "a fine day"], ["a fine day", "you stupid idiot"])
    assert same == pytest.approx(1, abs=1e-5)
    assert other < same


def test_an_encoder_in_a_zip_file_comes_through_the_door_of_all_models(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_code(copy_of(tiny_llama, tmp_path / "folder"))
    with pytest.raises(DetoxError, match="brings its own code"):
        SentenceSimilarity(str(packed(folder, tmp_path / "encoder.zip")))


def zeros(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.safetensors", b"\0" * (20 * 2**20))


def many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(1001):
            file.writestr(f"{number}.txt", "")


def with_a_flipped_byte(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{" + " " * 500 + "}")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bomb": (zeros, "unpacks to 2 files with 20 MiB, and has 0.0 MiB itself"),
    "a thousand files": (many, "unpacks to 1001 files"),
    "a flipped byte": (with_a_flipped_byte, "cannot be unpacked"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_archive_that_is_no_encoder_is_refused_and_leaves_nothing(tmp_path: Path, cache: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(archive := tmp_path / "encoder.zip")
    with pytest.raises(DetoxError, match=message) as caught:
        SentenceSimilarity(str(archive))
    assert caught.value.place == str(archive)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_an_archive_of_many_gigabytes_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                             tiny_llama: Path) -> None:
    monkeypatch.setattr(similarity, "_MOST_BYTES", 1000)
    with pytest.raises(DetoxError, match="the zip file unpacks to"):
        SentenceSimilarity(str(packed(tiny_llama, tmp_path / "encoder.zip")))


def test_names_that_lead_out_of_the_folder_stay_in_it(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(archive := tmp_path / "encoder.zip", "w") as file:
        file.writestr("../../outside.txt", "x")
        file.writestr("/outside.txt", "x")
    with pytest.raises(DetoxError, match=r"no config\.json"):
        SentenceSimilarity(str(archive))
    assert [path for path in tmp_path.rglob("outside.txt") if not path.is_relative_to(cache)] == []
