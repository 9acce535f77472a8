"""A moving average of the weights: the recursion, to the bit resumed, judged and exported beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facerec import distributed, load_model
from facerec.errors import ConfigError
from facerec.images.decode import ppm
from facerec.models import checkpoint
from facerec.models.checkpoint import newest_checkpoint
from facerec.packs.verification import write_verification
from facerec.training.ema import WeightAverage
from facerec.training.reporter import Reporter
from tests.folder_run import train
from tests.several import run_ranks
from tests.test_cli_train import command, failed
from tests.test_training import At, assert_identical, interrupt, weights
from tests.tiny_run import tiny_backbone, tiny_trainer

HALF: dict[str, Any] = {"trainer_ema": 0.5}


class States(Reporter):
    """Keeps the backbone's state, and its average, after each step."""

    def started(self, run: Any) -> None:
        self.raw = [{k: v.clone() for k, v in run.backbone.state_dict().items()}]

    def stepped(self, run: Any) -> None:
        self.raw.append({k: v.clone() for k, v in run.backbone.state_dict().items()})
        self.average = {k: v.clone() for k, v in run.ema.state_dict().items()}


def recursion(values: list[Tensor], decay: float) -> Tensor:
    average = values[0].double()
    for n, value in enumerate(values[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value.double()
    return average


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9999])
def test_the_average_is_the_recursion(decay: float) -> None:
    module = tiny_backbone().double()
    average = WeightAverage(module, decay)
    states = [{k: v.clone() for k, v in module.state_dict().items()}]
    for n in range(1, 51):
        for tensor in module.state_dict().values():
            tensor += torch.randn_like(tensor.double()).to(tensor.dtype)
        average.update(n)
        states.append({k: v.clone() for k, v in module.state_dict().items()})
    assert average.state_dict().keys() == module.state_dict().keys() - {"1.num_batches_tracked"}
    for name, tensor in average.state_dict().items():
        naive = recursion([state[name] for state in states], decay)
        torch.testing.assert_close(tensor, naive, rtol=0, atol=1e-12, msg=name)


def test_a_run_averages_its_weights_and_running_statistics_after_each_step(tmp_path: Path) -> None:
    states = States()
    trainer = tiny_trainer(tmp_path, **HALF, reporters=[states])
    trainer.fit()
    assert trainer.position.averaged == trainer.position.step == len(states.raw) - 1
    assert "1.running_mean" in states.average
    for name, tensor in states.average.items():
        naive = recursion([state[name] for state in states.raw], 0.5)
        torch.testing.assert_close(tensor.double(), naive, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(tensor, states.raw[-1][name])


def test_the_average_changes_nothing_of_what_is_learnt(tmp_path: Path) -> None:
    without = tiny_trainer(tmp_path / "without")
    without.fit()
    with_it = tiny_trainer(tmp_path / "with", **HALF)
    with_it.fit()
    assert_identical(weights(with_it), weights(without))
    state = checkpoint.load(tmp_path / "without" / "checkpoints" / "last.pt")
    assert without.ema is None and "ema" not in state, "off, there is nothing to update or to save"


def test_a_run_resumed_in_the_middle_has_the_average_of_the_whole_to_the_bit(tmp_path: Path) -> None:
    whole = tiny_trainer(tmp_path / "whole", **HALF)
    whole.fit()
    tiny_trainer(tmp_path / "parts", **HALF, reporters=[At(4, interrupt)]).fit()
    resumed = tiny_trainer(tmp_path / "parts", **HALF)
    resumed.resume(tmp_path / "parts" / "checkpoints" / "last.pt")
    resumed.fit()
    assert whole.ema is not None and resumed.ema is not None
    assert_identical(resumed.ema.state_dict(), whole.ema.state_dict())


def test_an_average_may_begin_and_end_at_a_resume(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, trainer_max_steps=3).fit()
    last = tmp_path / "checkpoints" / "last.pt"
    begun = tiny_trainer(tmp_path, **HALF, trainer_max_steps=5)
    begun.resume(last)
    assert begun.ema is not None and begun.position.averaged == 0
    for name, tensor in begun.ema.state_dict().items():
        assert torch.equal(tensor, begun.backbone.state_dict()[name])
    begun.fit()
    assert begun.position.averaged == 2
    ended = tiny_trainer(tmp_path, trainer_max_steps=7)
    ended.resume(last)
    ended.fit()
    again = tiny_trainer(tmp_path, **HALF, trainer_max_steps=8)
    again.resume(last)
    assert again.position.averaged == 0, "that of before has missed two steps"


def test_the_network_has_its_own_weights_again_after_its_average() -> None:
    module = nn.Linear(2, 2)
    average, before = WeightAverage(module, 0.9), module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    average.update(1)
    with pytest.raises(KeyError), average.in_place():
        assert not torch.equal(module.weight, before + 1)
        raise KeyError
    assert torch.equal(module.weight, before + 1)


def test_a_weight_with_two_names_is_exchanged_with_its_average_and_back() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    average, before = WeightAverage(nn.Sequential(first, second), 0.9), first.weight.detach().clone()
    with torch.no_grad():
        first.weight += 1
    average.update(1)
    averages = {name: value.clone() for name, value in average.state_dict().items()}
    with average.in_place():
        assert torch.equal(first.weight, averages["0.weight"])
    assert torch.equal(first.weight, before + 1)
    assert_identical(average.state_dict(), averages)


def sharded(folder: Path) -> None:
    given: dict[str, Any] = {**HALF, "trainer_batch_size": 3, "head_options": {"sharded": True}}
    whole = tiny_trainer(folder / "whole", **given, trainer_save_every=3)
    whole.fit()
    tiny_trainer(folder / "parts", **given, trainer_save_every=3, reporters=[At(6, interrupt)]).fit()
    resumed = tiny_trainer(folder / "parts", **given, trainer_save_every=3)
    last = newest_checkpoint(folder / "parts" / "checkpoints")
    assert last is not None
    resumed.resume(last)
    resumed.fit()
    assert whole.ema is not None and resumed.ema is not None
    assert_identical(resumed.ema.state_dict(), whole.ema.state_dict())
    for own in distributed.all_gather_object({k: v.numpy() for k, v in resumed.ema.state_dict().items()}):
        for name, tensor in resumed.ema.state_dict().items():
            assert np.array_equal(own[name], tensor.numpy()), name
    state = checkpoint.load(newest_checkpoint(folder / "whole" / "checkpoints") or Path())
    assert_identical(state["ema"], whole.ema.state_dict())


def test_all_ranks_hold_one_average_and_a_sharded_checkpoint_has_it(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, sharded)


def pairs(path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [ppm(generator.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(80)]
    write_verification(path, images, [True, False] * 20)


def test_both_are_evaluated_saved_exported_and_told_apart(work: Path) -> None:
    pairs(work / "pairs.bin")
    evaluated = ["eval.targets=[pairs]", "eval.root=.", "eval.bootstrap=0", "eval.figures=false"]
    run = train(work, *evaluated, "output_dir=ema", "trainer.max_steps=3", "trainer.ema=0.9")
    assert run.returncode == 0, run.stderr
    assert "\n[pairs][3]Accuracy-Flip: " in run.stdout and "\n[ema/pairs][3]Accuracy-Flip: " in run.stdout
    assert run.stdout.count("highest_acc") == 1 and "\nema/pairs: exact accuracy " in run.stdout
    rows = [json.loads(line) for line in (work / "ema" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "mean/accuracy" in row]
    results = json.loads((work / "ema" / "results.json").read_text())
    assert row["ema/pairs/accuracy"] == row["ema/mean/accuracy"] == results["ema"]["pairs"]["accuracy"]
    assert row["pairs/accuracy"] == row["mean/accuracy"] == results["targets"]["pairs"]["accuracy"]

    best = work / "ema" / "checkpoints" / "best.pt"
    raw, averaged = load_model(best), load_model(best, weights="ema")
    state, average = raw.backbone.state_dict(), averaged.backbone.state_dict()
    saved = checkpoint.load(best)["ema"]
    assert all(torch.equal(average[name], tensor) for name, tensor in saved.items())
    assert not any(torch.equal(average[name], state[name]) for name in saved if name.endswith("weight"))

    ckpt = f"ckpt={best}"
    export = command(
        "facerec-export", ckpt, "weights=ema", "format=safetensors", "out=e.safetensors", cwd=work
    )
    assert export.returncode == 0, export.stderr
    written = load_model(work / "e.safetensors").backbone.state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in saved.items())

    def judged(*settings: str) -> Any:
        found = command("facerec-eval", *settings, *evaluated, "output_dir=judged", cwd=work)
        assert found.returncode == 0, found.stderr
        return json.loads((work / "judged" / "results.json").read_text()), found.stdout

    for given, expected in (([ckpt], results["targets"]), ([ckpt, "weights=ema"], results["ema"])):
        for _ in range(2):  # the second time from the cache, which knows them apart
            document, said = judged(*given, "eval.cache=cache")
            assert document["targets"]["pairs"]["xnorm"] == expected["pairs"]["xnorm"]
            assert document.get("weights", "raw") == ("ema" if len(given) > 1 else "raw")
            assert (", averaged weights, input" in said) == (len(given) > 1)


def test_an_average_that_is_not_there_or_of_no_decay_is_refused(work: Path) -> None:
    line = failed(command("facerec-eval", "ckpt=run/checkpoints/last.pt", "weights=ema", cwd=work))
    assert "weights=ema: run/checkpoints/last.pt has no averaged weights (trainer.ema); leave it out" in line
    with pytest.raises(ConfigError, match="has no averaged weights"):
        load_model(work / "run" / "checkpoints" / "last.pt", weights="ema")
    for decay in ("1", "0", "-0.5"):
        line = failed(train(work, "output_dir=x", f"trainer.ema={decay}"))
        assert f"trainer.ema={decay}: must be above 0 and below 1, or null" in line
    frozen = train(work, "output_dir=x", "trainer.ema=0.9", "backbone.frozen=true", "trainer.max_steps=1")
    assert "trainer.ema=0.9 (for a backbone that is trained)" in frozen.stdout
