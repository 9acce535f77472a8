"""`facerec-export`: write a trained backbone for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from facerec.cli.errors import reported, stopped_by_sigterm


def main() -> None:
    """Entry point of the console script."""
    sys.exit(stopped_by_sigterm(lambda: reported("facerec-export", _run)))


def _run() -> int:
    from facerec.cli.compose import compose_and_run
    from facerec.registry import build

    def run(config: dict[str, Any], _: object) -> None:
        build(_export, "", {key: value for key, value in config.items() if key != "plugins"})

    compose_and_run("export", run)
    return 0


def _export(
    *,
    ckpt: str,
    input: dict[str, Any],
    format: Literal["onnx", "safetensors"] = "onnx",
    opset: int | None = None,
    out: str | None = None,
    force: bool = False,
    output_dir: str,
) -> None:
    """Do what the settings say, which are those of configs/export.yaml."""
    from facerec.errors import require
    from facerec.models.export import export
    from facerec.models.opening import load_model

    hint = "has no effect here; out=FILE says where the network goes"
    require(Path(output_dir).resolve() == Path.cwd(), "output_dir", output_dir, hint)
    path = Path(out or Path(ckpt).with_suffix(f".{format}"))
    require(force or not path.exists(), "out", path, "is there already; force=true overwrites it")
    model = load_model(ckpt, device="cpu", input=input)
    print(export(model, path, format, opset=opset))
