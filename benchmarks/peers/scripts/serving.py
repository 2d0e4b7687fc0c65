"""The loop of a peer's script: it reads requests from standard input and answers on standard output, a line each.

A request names a file with a JSON list of inputs, the file to write the outputs to, and the batch size. The scripts run
in environments of their own and do not import hugqueue.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Takes inputs and a batch size, and returns an array of vectors or a list of texts.
Run = Callable[[Sequence[Any], int], Any]


def serve(load: Callable[[], Run]) -> None:
    """Load a model, then answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    run = load()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        outputs = run(json.loads(Path(request["inputs"]).read_text()), request["batch"])
        if isinstance(outputs, np.ndarray):
            np.save(request["outputs"], outputs)
        else:
            Path(request["outputs"]).write_text(json.dumps(outputs))
        print("done", file=answers, flush=True)
