"""history.jsonl: each start of a run, with where and of what it was made, and each end."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import facerec
from facerec import distributed
from facerec.errors import Pruned
from facerec.evaluation.judgement import score
from facerec.evaluation.verify import VerificationResult
from facerec.files import append_line
from facerec.training.reporter import Reporter, Run

NAME = "history.jsonl"
_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "simplejpeg", "pillow", "hydra-core")


class History(Reporter):
    """Writes a row when a run starts, unless nothing is left to train, and one when it ends.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def started(self, run: Run) -> None:
        self._began = time.time()
        self._score: float | None = None
        self._writes = run.progress().fraction < 1
        if self._writes:
            self._append(provenance(run))

    def evaluated(self, run: Run, results: Mapping[str, VerificationResult]) -> None:
        self._score = score(results, run.eval_settings.select)

    def finished(self, run: Run) -> None:
        if not self._writes:
            return
        error = sys.exc_info()[1]  # that ends the run, which says farewell on its way
        why = f"signal {run.interrupted}" if run.interrupted is not None else "finished"
        if error is not None or run.failure is not None:
            why = "pruned" if isinstance(error, Pruned) else "failed"
        row = {"event": "end", "time": _now(), "step": run.position.step, "why": why}
        if why == "failed":
            row["error"] = " ".join(str(error or run.failure).split())[:300]
        elif self._score is not None:
            row["score"] = self._score
        self._append(row | {"seconds": round(time.time() - self._began, 3)})

    def _append(self, row: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(row, ensure_ascii=False).encode())


def provenance(run: Run) -> dict[str, Any]:
    """Return the row of a start: command, code, machine, data, seed and the settings that have changed."""
    device = run.device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "event": "start",
        "time": _now(),
        "step": run.position.step,
        "changes": dict(run.changes),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "commit": commit(),
        "versions": versions(),
        "host": socket.gethostname(),
        "device": f"{device} ({accelerator or platform.machine()})",
        "precision": run.settings.precision,
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "data": run.loader.faces.describe(),
        "fingerprint": run.loader.faces.fingerprint,
        "seed": run.config.get("seed"),
    }


def versions() -> dict[str, str]:
    """Return the versions of facerec, Python and the libraries that a result may depend on."""
    found = {"facerec": facerec.__version__, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found if torch.version.cuda is None else found | {"cuda": torch.version.cuda}


def commit() -> str | None:
    """Return the git commit of this code, ``-dirty`` after it where files differ; None outside a checkout."""

    def git(*question: str) -> str:
        command = ["git", "-C", str(Path(facerec.__file__).parent), *question]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--match=")
    except (OSError, subprocess.SubprocessError):  # no git, or an installed package
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S%z")
