"""`facerec-export`: write a trained backbone for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from facerec.cli.errors import reported


def _opset(given: Any) -> int | None:
    from facerec.errors import ConfigError

    if given is not None and type(given) is not int:
        raise ConfigError("opset", given, "must be a whole number, or null")
    return given


def main() -> None:
    """Entry point of the console script."""
    sys.exit(reported("facerec-export", _run))


def _run() -> int:
    from facerec.cli.compose import compose_and_run

    def write(config: dict[str, Any], _: object) -> None:
        from facerec.errors import ConfigError
        from facerec.evaluation.export import export
        from facerec.evaluation.loading import load_model

        if config["format"] not in ("onnx", "safetensors"):
            raise ConfigError("format", config["format"], "must be onnx or safetensors")
        path = Path(config["out"] or Path(config["ckpt"]).with_suffix(f".{config['format']}"))
        if path.exists() and not config["force"]:
            raise ConfigError("out", path, "is there already; force=true overwrites it")
        model = load_model(config["ckpt"], device="cpu", input=config["input"])
        print(export(model, path, config["format"], opset=_opset(config["opset"])))

    compose_and_run("export", write)
    return 0
