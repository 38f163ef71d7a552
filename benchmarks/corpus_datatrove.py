"""datatrove's filter chain with the packaged recipe's scorer: `corpus_speed` runs it for comparison.

    python -m benchmarks.corpus_datatrove PACKAGES IN OUT WORKERS
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any


def main(packages: str, source: str, output: str, workers: int) -> None:
    """Leave out what scores at or over the threshold. Its readers share files out, so the file is cut for them."""
    sys.path.append(packages)  # behind our own: theirs are for datatrove alone
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    class Clean(BaseFilter):
        name = "clean by the packaged recipe"

        def __init__(self) -> None:
            super().__init__(batch_size=2048)
            self.scorer: Any = None
            self.threshold = 1.0

        def filter(self, doc: Any) -> Any:
            return self.filter_batch([doc])[0]

        def filter_batch(self, batch: list[Any]) -> list[Any]:
            if self.scorer is None:
                from llm_detox.api import packaged_recipe
                from llm_detox.scoring.load import load_scorer

                recipe = packaged_recipe()
                self.scorer, self.threshold = load_scorer(recipe.scoring.training), recipe.detoxify.toxic_threshold
            scores = self.scorer.score([doc.text for doc in batch])
            return [score is not None and score < self.threshold for score in scores]

    shards = Path(output + "-shards")
    cut(Path(source), shards, workers)
    LocalPipelineExecutor(
        [JsonlReader(str(shards)), Clean(), JsonlWriter(output, compression=None)], tasks=workers, workers=workers,
        logging_dir=output + "-logs").run()
    shutil.rmtree(shards)


def cut(source: Path, shards: Path, count: int) -> None:
    """The lines in turn, a file for each worker."""
    shards.mkdir()
    files = [(shards / f"{number}.jsonl").open("wb") for number in range(count)]
    with source.open("rb") as lines:
        for number, line in enumerate(lines):
            files[number % count].write(line)
    for file in files:
        file.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
