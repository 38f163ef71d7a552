"""python -m serving.guard --guard bilstm [...]"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from llm_detox.detector.samples import live_samples
from llm_detox.errors import DetoxError, UsageError
from llm_detox.guard.build import open_guard
from llm_detox.progress import safe_output, say
from serving.guard.server import GuardServer


def main() -> int:
    """Judge until SIGTERM or SIGINT; the exit code is 1 where it failed, 2 where it was called wrongly."""
    parser = argparse.ArgumentParser(prog="python -m serving.guard", description=__doc__)
    parser.add_argument("--guard", required=True,
                        help="a scorer: ngram, bilstm, transformers=SOURCE, attributes=FOLDER")
    parser.add_argument("--threshold", type=float, default=0.5, help="answers that score this or more are withheld")
    parser.add_argument("--host", default="0.0.0.0" if "KUBERNETES_SERVICE_HOST" in os.environ else "127.0.0.1")  # noqa: S104
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--sample-file", type=Path, help="keep some of the answers here, as records of an evaluation")
    parser.add_argument("--sample-rate", type=float, help="the share that is kept; 0.01 without it")
    parser.add_argument("--sample-text", action="store_true", help="keep the texts, too, not only the scores")
    options = parser.parse_args()
    try:
        if options.guard.partition("=")[0] == "judge":
            raise UsageError("a judge reads the question too, and a graph passes only the answer",
                             place="--guard", remedy="use a scorer here; a judge works in the client")
        samples = live_samples(options.sample_file, options.sample_rate, options.sample_text)
        server = GuardServer(open_guard(options.guard, options.threshold), options.host, options.port, samples=samples)
    except DetoxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        # `close` waits for the loop, which runs in this very thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.close).start())
    say(f"judging with {options.guard} at {options.host}:{server.port}")
    server.serve()
    return 0


if __name__ == "__main__":
    with safe_output():
        sys.exit(main())
