"""Memory stays in the process of a command and waiting threads sleep soon, unless the user says otherwise."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from facerec import process
from facerec.errors import UserError

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

STEPS = """
import hashlib, json, resource
from facerec.process import keep_memory
keep_memory()
import torch
from facerec.backbones.prelu import PReLU

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
torch.manual_seed(0)
# The first layers of a backbone: their blocks of 35 MB are more than glibc learns to keep by itself.
layers = (torch.nn.Conv2d(3, 64, 1), torch.nn.BatchNorm2d(64), PReLU(64), torch.nn.AvgPool2d(112))
backbone = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
image_BCHW = torch.randn(11, 3, 112, 112).to(memory_format=torch.channels_last)
counts = []
for _ in range(22):
    before = faults()
    optimizer.zero_grad()
    backbone(image_BCHW).square().sum().backward()
    optimizer.step()
    counts.append(faults() - before)
weights = b"".join(p.detach().numpy().tobytes() for p in backbone.parameters())
print(json.dumps({"faults": counts[14:], "weights": hashlib.sha256(weights).hexdigest()}))
"""


def steps(allocator: str) -> Any:
    environment = os.environ | {"FACEREC_ALLOCATOR": allocator}
    ran = subprocess.run(
        [sys.executable, "-c", STEPS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(ran.stdout)


@glibc
def test_a_step_maps_no_pages_once_memory_stays_and_its_bits_are_equal() -> None:
    kept, usual = steps("keep"), steps("system")
    # A step in thirty or so finds no block that fits, and maps one more.
    assert sum(kept["faults"]) / len(kept["faults"]) < 5_000 < 20_000 < min(usual["faults"])
    assert kept["weights"] == usual["weights"]


def test_the_allocator_is_left_alone_if_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_raise_thresholds", lambda: pytest.fail("was called"))
    monkeypatch.setenv("FACEREC_ALLOCATOR", "system")
    assert not process.keep_memory()
    monkeypatch.setenv("FACEREC_ALLOCATOR", "jemalloc")
    with pytest.raises(UserError, match=r"^FACEREC_ALLOCATOR=jemalloc: must be keep or system$"):
        process.keep_memory()


class Musl:
    """A C library without glibc's name."""


class OldGlibc:
    """As glibc before 2.35: it takes no threshold above 32 MiB."""

    calls: list[tuple[int, int]]

    def __init__(self) -> None:
        self.calls = []

    def gnu_get_libc_version(self) -> None: ...

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(value <= 1 << 25)


def test_the_most_that_the_c_library_takes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OldGlibc()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert process.keep_memory() == "freed blocks up to 32 MiB stay (FACEREC_ALLOCATOR=system)"
    assert library.calls == [(-3, 1 << 30), (-3, 1 << 25), (-1, -1)]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_nothing_happens_without_glibc(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", lambda _: Musl())
    assert not process.keep_memory()


@pytest.mark.parametrize(
    ("given", "after"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_wait_briefly_unless_the_user_has_said_how(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], after: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    process.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == after


def test_a_command_says_how_threads_wait_before_torch_is_loaded() -> None:
    code = (
        "import os, sys; from facerec.cli import base; "
        "base.run_command('facerec', lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == ["1000", "False"]


def test_a_training_loads_no_figures_before_there_is_something_to_draw() -> None:
    code = (
        "import sys, facerec.training.run; from pathlib import Path; "
        "from facerec.reporting.loggers import make_loggers; "
        "names = ('console', 'metrics', 'tensorboard', 'results', 'report'); "
        "config = {'trainer': {}, 'logger': {name: {'name': name} for name in names}}; "
        "make_loggers(config, Path()); "
        "print([name for name in ('matplotlib', 'bokeh', 'sklearn', 'tensorboard') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.strip() == "[]"


def test_a_start_loads_neither_a_compiler_nor_what_only_an_evaluation_needs(tmp_path: Path) -> None:
    code = (
        "import sys; from facerec.cli.train import main; from facerec.training.loop import Trainer\n"
        "step = Trainer.step\n"
        "def first(*given):\n"
        "    step(*given)\n"
        "    slow = ('torch._dynamo', 'sympy', 'triton', 'scipy', 'sklearn', 'bokeh', 'matplotlib')\n"
        "    print('loaded:', *(name for name in slow if name in sys.modules))\n"
        "Trainer.step = first; main()"
    )
    settings = "backbone=mobilefacenet backbone.embedding_size=16 data=synthetic data.identities=4"
    settings += " data.images=16 trainer.batch_size=4 trainer.max_steps=1 eval.targets=[]"
    settings += f" output_dir={tmp_path}"
    ran = subprocess.run(
        [sys.executable, "-c", code, *settings.split()], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stdout.splitlines() if line.startswith("loaded:")] == ["loaded:"]
