"""Fixtures shared by all tests: small files of the repository, and larger shared data where present."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from pathlib import Path

# The suite runs a process a core; threads of their own would only make them wait for each other. Set before
# anything imports torch, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":  # processes of a test talk on this machine, whatever its name resolves to
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest

from .browser import browser  # noqa: F401 - a fixture
from .folder_run import orl, trained, work  # noqa: F401 - fixtures

# The same examples in every run; new ones by chance with --hypothesis-profile=default.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

FIXTURES = Path(__file__).parent / "fixtures"
# Modules of few tests that take long: begun last, one process would wait for the other.
LONG = ("kills", "launching", "launched_runs", "cli_train", "trajectories", "plugins", "benchmark", "search")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="session")
def recordio_files() -> Path:
    """Folder of RecordIO files written by the original mxnet, with their manifest."""
    return FIXTURES / "recordio"


@pytest.fixture
def golden(recordio_files: Path, tmp_path: Path) -> Path:
    """A writable copy of the files that the original mxnet wrote."""
    return Path(shutil.copytree(recordio_files, tmp_path / "golden"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the larger real data (LFW packs, golden verification numbers); skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FACEREC_SHARED", default))
    if not (folder / "lfw" / "train.rec").is_file():
        pytest.skip(f"shared data is not at {folder} (set FACEREC_SHARED)")
    return folder


@pytest.fixture(scope="session")
def lfw_root(shared_data: Path) -> Path:
    """Folder of the LFW pack: train.rec, train.idx, lfw.bin, lfw_set10.bin."""
    return shared_data / "lfw"


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Caches of read-only data go to a folder of the test run, not to the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _event_files_in_order() -> None:
    """Those of one process and second are read by a counter in their names, 10 before 9: it begins anew."""
    writer = sys.modules.get("tensorboard.summary.writer.event_file_writer")
    if writer is not None:
        writer._global_uid = type(writer._global_uid)(0)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _usual_logging() -> None:
    """Begin with the usual logging: a command in this process leaves levels, and handlers on closed files."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    ours = [
        logging.getLogger(name) for name in list(root.manager.loggerDict) if name.split(".")[0] == "facerec"
    ]
    for logger in ours:
        logger.setLevel(logging.NOTSET)
    for logger in [root, *ours]:
        for handler in list(logger.handlers):
            if not (
                isinstance(handler, logging.NullHandler) or type(handler).__module__ == "_pytest.logging"
            ):
                logger.removeHandler(handler)
