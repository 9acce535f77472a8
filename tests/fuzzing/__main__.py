"""Fuzz one kind of list: `python -m tests.fuzzing KIND SECONDS [SEED]`."""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzzing import check, corpus, keep, mutated


def main(kind: str, seconds: float, seed: int = 0) -> int:
    """Fuzz for a time; inputs with an outcome that no earlier one had are mutated further."""
    logging.disable()
    rng = random.Random(seed)
    known = corpus(kind)
    outcomes: dict[str, bytes] = {}
    end, executions, bad = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        path = Path(scratch) / "list"
        while time.monotonic() < end and bad < 5:
            data = known[executions] if executions < len(known) else mutated(rng, known)
            executions += 1
            try:
                outcome = check(kind, data, path)
            except Exception as error:  # whatever a reader raises besides its own errors is a finding
                bad += 1
                keep(kind, data)
                print(f"{kind}: {type(error).__name__}: {error!s:.400}\n  {data[:200]!r}", flush=True)
                continue
            new = outcome not in outcomes or (outcome == "read" and rng.random() < 0.001)
            if new and len(data) < 2000 and len(known) < 500:
                known.append(data)
            if len(data) < len(outcomes.get(outcome, data + b" ")):
                outcomes[outcome] = data
    for data in sorted(outcomes.values(), key=len)[:16]:
        if data not in corpus(kind):
            keep(kind, data)
    print(f"{kind}: {executions:,} executions, {len(outcomes)} outcomes, {bad} findings", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])) > 0)
