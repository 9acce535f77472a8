"""`facerec-export`: write a trained backbone for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from facerec.cli.base import run_hydra_command


def main() -> None:
    """Entry point of the console script."""
    run_hydra_command("facerec-export", "export", export_checkpoint)


def export_checkpoint(config: dict[str, Any], _: object) -> None:
    """Check the settings, which are those of configs/export.yaml, and write the backbone."""
    from facerec.registry import build

    build(_export, "", {key: value for key, value in config.items() if key != "plugins"})


def _export(
    *,
    ckpt: str,
    weights: Literal["raw", "ema"] = "raw",
    input: dict[str, Any],
    format: Literal["onnx", "safetensors", "hub"] = "onnx",
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    opset: int | None = None,
    preprocessing: bool = False,
    normalise: bool = False,
    calibration: str | None = None,
    eval: dict[str, Any],
    far: float | None = None,
    card: dict[str, Any],
    upload: str | None = None,
    out: str | None = None,
    force: bool = False,
    output_dir: str,
) -> None:
    from facerec.errors import require
    from facerec.models import hub
    from facerec.models.opening import load_model
    from facerec.reporting.exported import export_and_judge

    hint = "has no effect here; out=FILE says where the network goes"
    require(Path(output_dir).resolve() == Path.cwd(), "output_dir", output_dir, hint)
    require(upload is None or format == "hub", "upload", upload, "needs format=hub")
    path = Path(out or Path(ckpt).with_suffix(f".{format}"))
    require(path.resolve() != Path(ckpt).resolve(), "out", path, "is the model itself; name another file")
    require(force or not path.exists(), "out", path, "is there already; force=true overwrites it")
    options = {"precision": precision, "opset": opset, "preprocessing": preprocessing, "normalise": normalise}
    lines = export_and_judge(
        load_model(ckpt, device="cpu", input=input, weights=weights),
        path,
        format=format,
        eval=eval,
        far=far,
        calibration=calibration,
        card=card,
        options=options,
    )
    for line in lines:
        print(line, flush=True)
    if upload is not None:
        print(f"uploaded to {hub.upload(path, upload)}")
