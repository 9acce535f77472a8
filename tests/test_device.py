"""Devices and cores of a process that is one of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from facerec import distributed
from facerec.device import autocast, number_format, resolve_device
from facerec.errors import ConfigError
from facerec.threads import cores


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes on a machine of two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("two_gpus")
def test_each_process_takes_the_gpu_of_its_own_number_and_no_other_can_be_named() -> None:
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda:1")
    for one in ("cuda:0", "cuda:1"):
        with pytest.raises(ConfigError, match=r"^trainer\.device=cuda:\d: would put 2 processes on one GPU"):
            resolve_device(one)
    assert resolve_device("cuda:0", own=False) == torch.device("cuda:0"), "a program's own choice"


@pytest.mark.usefixtures("two_gpus")
def test_the_only_process_of_a_machine_may_name_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_processes_of_a_machine_share_the_cores_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for processes_here, each in (("1", 6), ("2", 3), ("4", 1), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes_here)
        assert cores() == each


@pytest.mark.parametrize(
    ("backends", "device", "direct"),
    [
        ("cpu:gloo,cuda:nccl", "cuda:1", True),
        ("cpu:gloo,cuda:nccl", "cpu", True),
        ("cuda:nccl", "cuda", True),
        ("cpu:gloo,cuda:gloo", "cuda", False),
        ("cpu:gloo,cuda:gloo,mps:gloo", "cpu", True),
    ],
)
def test_what_is_on_a_gpu_crosses_over_nccl_where_the_group_has_it(
    monkeypatch: pytest.MonkeyPatch, backends: str, device: str, direct: bool
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: backends)
    assert distributed.carries(torch.device(device)) == direct


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], object]]:
    """Write what the processor says of itself."""
    number_format.cache_clear()
    monkeypatch.setattr("facerec.device.Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    yield (tmp_path / "cpuinfo").write_text
    number_format.cache_clear()


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cpuinfo", "chosen"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 rdpid\n", "bf16"),
        ("flags : amx_bf16 amx_tile\n", "bf16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
        ("flags\t\t: fpu avx2 avx512f\n", "fp32"),
        ("", "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_has_its_instructions(
    processor: Callable[[str], object], cpuinfo: str, chosen: str
) -> None:
    processor(cpuinfo)
    assert number_format("auto", CPU) == chosen
    with autocast(CPU, "auto"):
        assert torch.is_autocast_enabled("cpu") == (chosen == "bf16")


@pytest.mark.parametrize("capable", [True, False])
def test_auto_asks_a_gpu(monkeypatch: pytest.MonkeyPatch, capable: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capable)
    assert number_format.__wrapped__("auto", torch.device("cuda")) == ("bf16" if capable else "fp32")
    assert number_format.__wrapped__("fp16", torch.device("cuda")) == "fp16"


def test_bf16_without_its_instructions_is_taken_and_warned_of_once(
    processor: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    processor("flags : avx2")
    assert [number_format(given, CPU) for given in ("bf16", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    (message,) = caplog.messages
    assert "no instructions" in message and "ten times slower than fp32" in message


def test_bf16_with_its_instructions_is_taken_without_a_word(
    processor: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    processor("flags : avx512_bf16")
    assert number_format("bf16", CPU) == "bf16" and not caplog.messages
