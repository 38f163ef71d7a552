"""python -m serving.engine --model-name FOLDER [...]"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from llm_detox.errors import DetoxError
from llm_detox.progress import safe_output
from serving.caikit.lifeline import end_with_stdin
from serving.engine.settings import Settings, parse

_TERMINATION_LOG = Path("/dev/termination-log")


def main() -> int:
    """Run the engine; the exit code is 0 after an orderly end, 1 where it failed, 2 where it was called wrongly."""
    try:
        settings = parse(sys.argv[1:])
        _set_up_logging(settings)
        if settings.end_with_stdin:
            end_with_stdin()
        from serving.engine.server import Server

        Server(settings).run()
    except DetoxError as error:
        print(error, file=sys.stderr)
        if _TERMINATION_LOG.exists():  # what Kubernetes shows as the reason
            _TERMINATION_LOG.write_text(str(error), "utf-8")
        return error.exit_code
    return 0


def _set_up_logging(settings: Settings) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if settings.json_output
                         else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "target": record.name,
                "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


if __name__ == "__main__":
    with safe_output():
        sys.exit(main())
