"""What a device must do as float64 on the CPU does: heads, training, decoding, copies, evaluation.

Every test runs on the CPU, too, where there is such a thing; those marked ``gpu`` need one, and are what
`scripts/gpu_check` runs first.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from facerec.backbones import create_backbone
from facerec.cli.mistakes import config_folder
from facerec.heads import HEADS, create_head
from facerec.heads.base import Head
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import mirror_and_normalise, prepare
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.models.model import Model
from facerec.training.loop import Trainer
from facerec.training.parallel import synchronise_batch_norm
from facerec.training.run import assemble
from tests.folder_run import TINY, make_faces
from tests.heads_cases import CLASS_HEADS
from tests.several import run_ranks
from tests.test_device_decode import Mixed
from tests.tiny_run import TinyFaces, tiny_trainer

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
BATCH, CLASSES, SIZE = 32, 100, 64


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


@pytest.fixture
def _strict() -> Iterator[None]:
    """Convolutions in fp32 and not TF32, so that they can be compared with those of the CPU."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


# Heads -----------------------------------------------------------------------------------------------------


def loss_and_gradients(head: Head, x: Tensor, y: Tensor) -> list[Tensor]:
    """Loss, then gradients to embeddings and parameters, in float64 on the CPU."""
    x = x.clone().requires_grad_()
    output = head(x, y)
    gradients = torch.autograd.grad(output.loss, [x, *head.parameters()], allow_unused=True)
    return [t.detach().cpu().double() for t in (output.loss, *gradients) if t is not None]


def head_and_batch(name: str, **settings: Any) -> tuple[Head, Tensor, Tensor]:
    torch.manual_seed(0)
    head = create_head(name, num_classes=CLASSES, embedding_size=SIZE, **settings)
    y = torch.arange(BATCH) % (BATCH // 4)  # four images of each of eight identities
    return head.eval(), 3 * torch.randn(BATCH, SIZE), y


def largest_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest error, relative to the norm of what it is in."""
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", HEADS.names())
def test_a_head_in_fp32_computes_what_float64_does(name: str, device: torch.device) -> None:
    settings = {"products": "fp32"} if name in CLASS_HEADS else {}
    head, x, y = head_and_batch(name, **settings)
    wanted = loss_and_gradients(copy.deepcopy(head).double(), x.double(), y)
    got = loss_and_gradients(head.to(device), x.to(device), y.to(device))
    assert largest_error(got, wanted) < 2e-4


@pytest.mark.parametrize(("products", "error"), [("tf32", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", CLASS_HEADS)
def test_products_on_tensor_cores_err_little(
    name: str, products: str, error: float, device: torch.device
) -> None:
    head, x, y = head_and_batch(name, products=products)
    wanted = loss_and_gradients(copy.deepcopy(head).double(), x.double(), y)
    got = loss_and_gradients(head.to(device), x.to(device), y.to(device))
    assert largest_error(got, wanted) < error
    if products == "bf16":
        assert largest_error(got, wanted) > 1e-6  # they were used


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLASS_HEADS)
def test_fused_passes_compute_what_float64_does(name: str) -> None:
    require_gpu()
    torch._dynamo.reset()
    head, x, y = head_and_batch(name, products="fp32", fused=True)
    wanted = loss_and_gradients(copy.deepcopy(head).double(), x.double(), y)
    got = loss_and_gradients(head.to("cuda"), x.to("cuda"), y.to("cuda"))
    assert largest_error(got, wanted) < 2e-4


# Batches ---------------------------------------------------------------------------------------------------


def test_batches_copied_beside_the_work_before_are_the_cpus(device: torch.device) -> None:
    loader = Loader(TinyFaces(), 5, DataSettings(size=16), pin=device.type == "cuda")
    square = torch.randn(1024, 1024, device=device)
    got = []
    for epoch in range(3):
        for batch in loader.batches(epoch):
            got.append(prepare(batch, device, Preprocessing(size=16)))
            for _ in range(20 if device.type == "cuda" else 0):  # work that the next copies need not wait for
                square = (square @ square).clamp(-1, 1)
    batches = (batch for epoch in range(3) for batch in loader.batches(epoch))
    wanted = [prepare(batch, torch.device("cpu"), Preprocessing(size=16)) for batch in batches]
    for ours, expected in zip(got, wanted, strict=True):
        for tensor, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(tensor.cpu(), other, rtol=0, atol=1.2e-7)


def test_one_kernel_mirrors_and_normalises_as_the_eager_code_does(device: torch.device) -> None:
    torch._dynamo.reset()
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    fused = torch.compile(mirror_and_normalise, backend=backend, fullgraph=True)
    channels = {"mean": [120.0, 110.0, 100.0], "std": [60.0, 59.0, 58.0], "channels": "bgr"}
    for settings in ({}, channels):
        input = Preprocessing(size=16, **settings)  # type: ignore[arg-type]
        for batch in Loader(TinyFaces(), 7, DataSettings(size=16)).batches(0):
            (wanted, _), (got, label_B) = (prepare(batch, device, input, way) for way in (None, fused))
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
            assert got.stride() == wanted.stride() and torch.equal(label_B.cpu(), batch.label_B)


# Training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        pytest.param("cpu", "fp32", marks=pytest.mark.slow),
        *(pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in ("fp32", "bf16", "fp16")),
    ],
)
def test_a_loss_falls_in_every_precision(kind: str, precision: str, tmp_path: Path) -> None:
    rows = train(tmp_path, kind, f"trainer.precision={precision}")
    assert sum(rows[-4:]) < 0.92 * sum(rows[:4])


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_backbone_trains_as_eager_code_does(precision: str, mode: str, tmp_path: Path) -> None:
    require_gpu()
    eager = train(tmp_path / "eager", "cuda", f"trainer.precision={precision}")
    rows = train(tmp_path, "cuda", f"trainer.precision={precision}", f"trainer.compile={mode}")
    assert rows[:4] == pytest.approx(eager[:4], rel=0.02 if precision == "fp32" else 0.1)
    assert sum(rows[-4:]) < 0.92 * sum(rows[:4])


def train(folder: Path, kind: str, *settings: str) -> list[float]:
    """Return the losses of a run of `facerec-train` over 24 images of three identities."""
    from tests.folder_run import train as command

    if kind == "cuda":
        require_gpu()
    make_faces(folder / "faces")
    device = [f"trainer.device={kind}", "trainer.max_steps=16", "trainer.epochs=16"]
    device += ["output_dir=run", "head.s=16"]
    ended = command(folder, *device, *settings)
    assert ended.returncode == 0, ended.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def require_gpu(count: int = 1) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs" if count > 1 else "needs a GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLASS_HEADS)
def test_no_step_waits_for_the_gpu(name: str, tmp_path: Path) -> None:
    require_gpu()
    trainer = on_gpu(tiny_trainer(tmp_path, head=name, trainer_log_every=1000))
    trainer.set_modes()
    with contextlib.closing(trainer.batches_of_steps()) as batches_of_steps:  # type: ignore[type-var]
        trainer.step(next(batches_of_steps))  # libraries and kernels are loaded
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batches in itertools.islice(batches_of_steps, 2):
                trainer.step(batches)
                trainer.after_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def on_gpu(trainer: Trainer) -> Trainer:
    """The same trainer on the GPU, with pinned batches."""
    gpu = torch.device("cuda")
    trainer.backbone.to(gpu)
    trainer.head.to(gpu)
    trainer.loader.pin = True
    return replace(trainer, device=gpu, reporters=[])


# Several ranks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
def test_two_ranks_on_one_device_train_as_one_does(kind: str, tmp_path: Path) -> None:
    if kind == "cuda":
        require_gpu()
    make_faces(tmp_path / "faces")
    run_ranks(2, tmp_path / "two", both_on_one_device, str(tmp_path), kind)
    two, one = (torch.load(tmp_path / name, weights_only=True) for name in ("two.pt", "one.pt"))
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def both_on_one_device(folder: Path, data: str, kind: str) -> None:
    """Train on two ranks that share a device over gloo, then on rank 0 alone with batches twice as large."""
    os.chdir(data)
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # as if each had a machine of its own, with its own cuda:0
    device = "cuda:0" if kind == "cuda" else "cpu"

    def final_weights(batch_size: int, name: str) -> dict[str, Tensor]:
        settings = [*TINY, f"trainer.device={device}", f"trainer.batch_size={batch_size}", "head.s=8"]
        frozen_statistics = ["backbone.freeze_batch_norm=true", f"output_dir={folder / name}"]
        with initialize_config_dir(str(config_folder()), version_base=None):
            composed = compose("train", overrides=[*settings, *frozen_statistics, "trainer.max_steps=3"])
        trainer = assemble(OmegaConf.to_container(composed, resolve=True), folder / name)  # type: ignore[arg-type]
        trainer.fit()
        return {key: value.detach().cpu() for key, value in trainer.backbone.state_dict().items()}

    rank, world_size = dist.get_rank(), dist.get_world_size()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    weights = final_weights(4, "two")
    if rank == 0:
        torch.save(weights, Path(data) / "two.pt")
    dist.barrier()
    if rank == 0:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            del os.environ[name]
        dist.destroy_process_group()
        torch.save(final_weights(8, "one"), Path(data) / "one.pt")
        dist.init_process_group("gloo", init_method=f"file://{folder}/alone", rank=0, world_size=1)
    else:
        dist.destroy_process_group()
        dist.init_process_group("gloo", init_method=f"file://{folder}/other", rank=0, world_size=1)


@pytest.mark.gpu
def test_batch_norm_over_ranks_is_that_of_one_batch(tmp_path: Path) -> None:
    require_gpu()
    run_ranks(2, tmp_path, half_a_batch_each)
    torch.manual_seed(0)
    image_BCHW = torch.randn(8, 3, 6, 6, device="cuda")
    wanted = nn.BatchNorm2d(3, device="cuda")(image_BCHW).cpu()
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat(halves), wanted, rtol=1e-4, atol=1e-5)


def half_a_batch_each(folder: Path) -> None:
    torch.manual_seed(0)
    image_BCHW = torch.randn(8, 3, 6, 6, device="cuda").chunk(2)[dist.get_rank()]
    layer = nn.Sequential(nn.BatchNorm2d(3)).to("cuda")
    synchronise_batch_norm(layer, torch.device("cuda"))
    torch.save(layer(image_BCHW).detach().cpu(), folder / f"{dist.get_rank()}.pt")


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["trainer.check_replicas=true", "trainer.fsdp=true"])
def test_torchrun_trains_on_every_gpu_over_nccl(way: str, tmp_path: Path) -> None:
    require_gpu(2)
    from tests.test_cli_train import command

    make_faces(tmp_path / "faces")
    world_size = min(torch.cuda.device_count(), 4)
    torchrun = [f"--nproc-per-node={world_size}", "--no-python", "facerec-train"]
    settings = ["trainer.device=cuda", "trainer.batch_size=2", "trainer.max_steps=3", "head.sharded=true"]
    both = ["trainer.sync_batch_norm=true", "trainer.save_every=1", "output_dir=run"]
    ended = command("torchrun", *torchrun, *TINY, *settings, *both, way, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"in each of {world_size} processes" in ended.stderr + ended.stdout
    assert ("FSDP2" in ended.stderr + ended.stdout) == ("fsdp" in way)


# Images and evaluation -------------------------------------------------------------------------------------


def test_a_device_decodes_jpegs_to_nearly_the_pixels_of_the_cpu(device: torch.device) -> None:
    pytest.importorskip("torchvision")
    images = {}
    for decoder in ("threads", "device"):
        data = DataSettings(size=32, decoder=decoder)
        loader = Loader(Mixed(), 8, data, pin=device.type == "cuda")
        batches = (prepare(batch, device, Preprocessing(size=32)) for batch in loader.batches(0))
        images[decoder] = torch.cat([image_BCHW.cpu() for image_BCHW, _ in batches])
    difference = (images["device"] - images["threads"]).abs() * 127.5
    assert difference.mean() < 1 and difference.max() < 16


def test_batches_are_pinned_for_a_gpu_and_arrive_whole(device: torch.device, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    plain = [batch.image_BHWC.clone() for (batch,) in trainer.batches_of_steps()]
    trainer.loader.pin = device.type == "cuda"
    for (batch,), wanted in zip(trainer.batches_of_steps(), plain, strict=True):
        assert batch.image_BHWC.is_pinned() == (device.type == "cuda")
        prepared, _ = prepare(batch, device, trainer.input)
        assert prepared.device.type == device.type and prepared.is_contiguous(
            memory_format=torch.channels_last
        )
        mirrored = torch.where(batch.mirror_B[:, None, None, None], wanted.flip(2), wanted)
        torch.testing.assert_close(
            prepared.cpu().permute(0, 2, 3, 1), (mirrored.float() - 127.5) / 127.5, rtol=0, atol=1e-6
        )


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet18", "vit_t"])
def test_embeddings_are_those_of_float64(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name, embedding_size=32, input_size=48).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    image_BCHW = (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() - 127.5) / 127.5
    with torch.no_grad():
        wanted = copy.deepcopy(backbone).double()(image_BCHW).float()
    model = Model(backbone.to(device, memory_format=torch.channels_last), Preprocessing(size=48))
    with torch.inference_mode():
        got = model.forward(torch.from_numpy(pixels).to(device), "fp32").float().cpu()
    assert nn.functional.cosine_similarity(got, wanted).min() > 1 - 1e-5
