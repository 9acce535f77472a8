"""Checkpoints from anywhere: nothing of them runs, none takes more than it holds, changed bits are seen."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facerec import create_backbone, load_model
from facerec.errors import CheckpointError
from facerec.models import checkpoint

PIECES: dict[str, Any] = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "part": torch.arange(100, dtype=torch.float64)[7:50:3],
    "half": torch.ones(3, dtype=torch.bfloat16),
    "complex": torch.ones(2, dtype=torch.complex64),
    "number": torch.tensor(3),
    "empty": torch.zeros(0, 5),
    "yes": torch.tensor([True, False]),
    "parameter": nn.Parameter(torch.ones(2)),
    "unsigned": torch.ones(3, dtype=torch.uint16),
    "eight bits": torch.ones(3).to(torch.float8_e4m3fn),
    "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "plain": [1, 2.5, "text", b"bytes", None, True, (1, 2), {"a": {"b": -(2**40)}}, torch.Size([1, 2])],
}


def as_numbers(tensor: Tensor) -> Tensor:
    """As a type that can be compared."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor.detach().double()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_and_plain_values_come_back_as_torch_reads_them(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    path = tmp_path / "x.pt"
    tied = {**PIECES, "tied": PIECES["weight"]}
    torch.save(tied, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    ours = checkpoint.load(path)
    assert ours.keys() == tied.keys()
    for name, value in tied.items():
        if isinstance(value, Tensor):
            assert ours[name].dtype == value.dtype and ours[name].stride() == value.stride(), name
            assert torch.equal(as_numbers(ours[name]), as_numbers(value)), name
    assert ours["plain"] == PIECES["plain"]
    assert ours["tied"].data_ptr() == ours["weight"].data_ptr()


def test_a_file_whose_checksums_were_never_computed_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert checkpoint.load(tmp_path / "x.pt")["a"].tolist() == [0, 1, 2, 3, 4]


# What a file asks for ------------------------------------------------------------------------------------


def archive(
    program: bytes, parts: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A ZIP file as torch writes it, around a pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, part in (parts or {}).items():
            file.writestr(f"archive/data/{name}", part)
    return content.getvalue()


def call(function: str, arguments: bytes) -> bytes:
    return b"c" + function.replace(" ", "\n").encode() + b"\n" + arguments + b"R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(count: int) -> bytes:
    kind = b"ctorch\nFloatStorage\n"
    return b"(" + text("storage") + kind + text("0") + text("cpu") + number(count) + b"tQ"


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(count: int, size: bytes, stride: bytes) -> bytes:
    return call(
        "torch._utils _rebuild_tensor_v2", b"(" + storage(count) + b"K\x00" + size + stride + b"\x89}t"
    )


def doubled(times: int) -> bytes:
    return b"]" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


def in_dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + value + b"s."


def tensor_of(size: bytes, stride: bytes, claimed: int = 2, part: bytes = bytes(8)) -> bytes:
    """A file whose only tensor has this size and stride over a storage of a claimed length."""
    return archive(in_dict(tensor(claimed, size, stride)), {"0": part})


HUGE = number(2**40)
BOMBS: dict[str, bytes] = {
    "a tensor made by size": archive(in_dict(call("torch Tensor", b"(" + HUGE + HUGE + b"t"))),
    "a storage made by size": archive(in_dict(call("torch.storage UntypedStorage", b"(" + HUGE + b"t"))),
    "a bytearray made by size": archive(in_dict(call("builtins bytearray", b"(" + HUGE + b"t"))),
    "a storage that claims more": tensor_of(HUGE + b"\x85", b"K\x01\x85", 2**40),
    "a tensor larger than its storage": tensor_of(HUGE + b"\x85", b"K\x01\x85"),
    "one element a terabyte of times": tensor_of(HUGE + b"\x85", b"K\x00\x85"),
    "sizes that overflow": tensor_of(HUGE + HUGE + b"\x86", b"K\x01K\x01\x86"),
    "a compressed part": archive(
        in_dict(tensor(2**20, number(2**20) + b"\x85", b"K\x01\x85")),
        {"0": bytes(2**22)},
        zipfile.ZIP_DEFLATED,
    ),
    "a compressed pickle": archive(b"\x80\x02}" + bytes(10**6), None, zipfile.ZIP_DEFLATED),
    "a key of tuples": archive(b"\x80\x02}" + doubled(60) + b"K\x01s."),
    "a value of tuples": archive(in_dict(doubled(60))),
    "a dict that holds itself": archive(b"\x80\x02}q\x00" + text("model") + b"h\x00s."),
    "a storage whose name is tuples": archive(
        in_dict(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + doubled(60) + text("cpu") + b"K\x01tQ")
    ),
    "one storage in a thousand tensors": archive(
        b"\x80\x02}("
        + b"".join(text(str(i)) + tensor(2**18, number(2**18) + b"\x85", b"K\x01\x85") for i in range(1000))
        + b"u.",
        {"0": bytes(2**20)},
    ),
    "a storage before ZIP that claims more": b"".join(
        pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    + in_dict(tensor(2**40, HUGE + b"\x85", b"K\x01\x85"))
    + pickle.dumps(["0"], 2)
    + struct.pack("<q", 2**40),
    "no dict": archive(b"\x80\x02]."),
    "a cut archive": archive(b"\x80\x02}.", None)[:-22],
}


def with_little_memory(folder: Path, expression: str) -> dict[str, str]:
    """Return what `expression` gives for each .pt file of a folder, or its error by name, in a process
    that may take 600 MB more than torch itself."""
    code = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from facerec import load_model\n"
        "from facerec.models import checkpoint\n"
        "from facerec.errors import FacerecError\n"
        "held = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 600 * 2**20,) * 2)\n"
        "said = {}\n"
        "for path in Path(sys.argv[1]).glob('*.pt'):\n"
        f"    try: said[path.stem] = str({expression})\n"
        "    except FacerecError as error: said[path.stem] = str(error).partition('.pt: ')[2]\n"
        "print(json.dumps(said))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    said: dict[str, str] = json.loads(done.stdout)
    return said


def test_no_small_file_takes_much_memory_or_time(tmp_path: Path) -> None:
    """In a process with little memory to spare: each gives a line, or loads without what it asked for."""
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    said = with_little_memory(tmp_path, "{k: type(v).__name__ for k, v in checkpoint.load(path).items()}")
    assert said.keys() == BOMBS.keys()
    others = {
        "a tensor made by size": "{'a': 'Inert'}",
        "a storage made by size": "{'a': 'Inert'}",
        "a key of tuples": "{<facerec.pickles.stand_ins.Inert",
        "no dict": "holds a list",
    }
    for name, line in said.items():
        assert line.startswith(others.get(name, "not a checkpoint, or a damaged one (")), (name, line)
        assert len(line) < 200, name
    assert "compressed" in said["a compressed part"] and "compressed" in said["a compressed pickle"]


def test_an_archive_whose_names_are_no_text_is_damaged(tmp_path: Path) -> None:
    content = archive(b"\x80\x02}.", {"é": b""}).replace("é".encode(), b"\xff\xff")
    (tmp_path / "x.pt").write_bytes(content)
    for read in (checkpoint.load, load_model):
        with pytest.raises(CheckpointError, match=r"x\.pt: not a checkpoint, or a damaged one"):
            read(tmp_path / "x.pt")


def test_a_storage_of_more_elements_than_can_be_counted_is_refused_for_its_size(tmp_path: Path) -> None:
    begin = (pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    content = b"".join(begin) + in_dict(tensor(2**64, b"K\x01\x85", b"K\x01\x85")) + pickle.dumps(["0"], 2)
    (tmp_path / "x.pt").write_bytes(content + bytes(8))
    with pytest.raises(CheckpointError, match="sizes that no tensor has"):
        checkpoint.load(tmp_path / "x.pt")


# What a checkpoint says of its network --------------------------------------------------------------------

SMALL = {"name": "mobilefacenet", "embedding_size": 8, "input_size": 32}


TIMM = {"name": "timm", "model": "resnet10t", "embedding_size": 8, "input_size": 32}


def ours(tmp_path: Path, network: dict[str, Any] = SMALL, **said: Any) -> Path:
    """A checkpoint with the weights of a network, that says other things of it."""
    torch.manual_seed(0)
    state = {"backbone": create_backbone(**network).state_dict(), "input": {"size": 32}, "classes": []}
    checkpoint.save(tmp_path / "best.pt", state | {"config": {"backbone": network | said}, "step": 3})
    return tmp_path / "best.pt"


def test_a_network_that_does_not_fit_its_weights_takes_no_memory(tmp_path: Path) -> None:
    """Names and sizes are compared on the meta device, before the network is built."""
    six_gigabytes = {"name": "iresnet100", "embedding_size": 65_536, "input_size": 112}
    sizes = [10**9, 2**62, 10**30, "x" * 10**6, [[[1]]], None]
    for number, settings in enumerate([six_gigabytes, *({"embedding_size": size} for size in sizes)]):
        ours(tmp_path, **settings).rename(tmp_path / f"{number}.pt")
    torch.save(create_backbone(**SMALL).state_dict(), tmp_path / "asked.pt")
    asked = f"{six_gigabytes} if path.stem == 'asked' else None"
    said = with_little_memory(tmp_path, f"load_model(path, device='cpu', backbone={asked})")
    assert len(said) == 2 + len(sizes)
    assert "the weights do not fit the backbone iresnet100 it names" in said["0"]
    assert "does not fit the backbone" in said["asked"]
    for line in said.values():
        assert 0 < len(line) < 500 and "\n" not in line, line


def test_a_stored_value_that_is_no_setting_is_refused_by_the_place_of_it(tmp_path: Path) -> None:
    path = ours(tmp_path, dropout={"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"best\.pt: its config holds other things than settings"):
        load_model(path, device="cpu")


def test_a_stored_network_never_looks_for_weights_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("went to the network")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    path = ours(tmp_path, TIMM, imagenet=True)
    assert load_model(path, device="cpu").config["backbone"]["name"] == "timm"
    for options in (
        {"pretrained": True},
        {"checkpoint_path": "/etc/hostname"},
        {"pretrained_cfg": {"url": "http://localhost/x"}},
    ):
        with pytest.raises(CheckpointError, match=r"best\.pt: .*takes weights from elsewhere"):
            load_model(ours(tmp_path, TIMM, options=options), device="cpu")
    for model in ("hf-hub:someone/model", "local-dir:/etc"):
        with pytest.raises(CheckpointError, match="timm has no such model"):
            load_model(ours(tmp_path, TIMM, model=model), device="cpu")


def test_a_stored_network_of_a_billion_layers_is_given_up(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = ours(tmp_path, TIMM, options={"layers": [10**9, 1, 1, 1]})
    with pytest.raises(CheckpointError, match=r"best\.pt: its \d+ entries are too few"):
        load_model(path, device="cpu")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made_by_a_pickle",)


def test_nothing_beside_the_weights_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ours(tmp_path)
    state = torch.load(path)
    torch.save({**state, "evil": Evil(), "classes": [Evil(), "a name"]}, path)
    model = load_model(path, device="cpu")
    assert list(model.identities) == ["a name"]
    torch.save({**state, "step": Evil()}, path)
    with pytest.raises(CheckpointError, match="its step is no integer"):
        load_model(path, device="cpu")
    assert not Path("made_by_a_pickle").exists()
