"""The model card of an export: README.md with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from facerec.errors import settings_text
from facerec.evaluation.results import Result
from facerec.models.model import Model

_USE = """\
```python
import facerec                                    # pip install 'facerec[align,hub]'
model = facerec.FaceModel("{name}")
print(model.verify("one.jpg", "other.jpg"))       # photographs; align=False for aligned faces
```"""

_LIMITS = """\
- Judged on the sets above only. Error rates differ between groups of people, ages, poses and cameras that a
  set does not tell apart: measure them on faces like yours before anything depends on them.
- A threshold holds for faces prepared as above. Among N identities (1:N) false accepts grow with N.
- Faces are personal data: whether they may be processed is not the model's to say."""


@dataclass(frozen=True)
class CardSettings:
    """What only its author knows of a model.

    Args:
        license: of the weights, an identifier of the hub such as ``mit`` or ``cc-by-nc-4.0``.
        data_license: of the training data, in words.
        limits: further limits, in words.
    """

    license: str | None = None
    data_license: str | None = None
    limits: str | None = None


def model_card(name: str, model: Model, results: Mapping[str, Result], settings: CardSettings) -> str:
    """The text of the card; `results` are those of the files that were written."""
    config = model.config
    backbone = config.get("backbone", {}).get("name", type(model.backbone).__name__)
    parameters = sum(one.numel() for one in model.backbone.parameters())
    not_stated = "not stated; ask whoever trained it before you use it"
    sections = {
        "Use": _USE.format(name=name),
        "Input and output": (
            f"RGB faces, aligned by five points to the ArcFace template: {model.input} of pixel values "
            f"0 … 255. {backbone}, {parameters:,} parameters. Cosines of embeddings are compared."
        ),
        "Data": _data(config.get("data", {}), model),
        "Recipe": _listed(config),
        "Results": _results(results),
        "Threshold": "none" if model.threshold is None else f"“Same” above {model.threshold}.",
        "Limits": "\n".join([_LIMITS, *([f"- {settings.limits}"] if settings.limits else [])]),
        "Licence": f"Weights: {settings.license or not_stated}.\n\n"
        f"Training data: {settings.data_license or not_stated}. Most sets of faces allow research only.",
    }
    front = ["---", f"license: {settings.license or 'unknown'}", "library_name: facerec"]
    front += ["pipeline_tag: image-feature-extraction", "tags: [face-recognition]", "---"]
    body = [f"# {name}", *(f"## {title}\n\n{text}" for title, text in sections.items())]
    return "\n".join(front) + "\n\n" + "\n\n".join(body) + "\n"


def _data(data: Mapping[str, Any], model: Model) -> str:
    if not data.get("name"):
        return "not recorded in the file that this was exported from"
    counts = [f"{data[key]:,} {key}" for key in ("identities", "images") if data.get(key)]
    return ", ".join([f"{data['name']}", *counts]) + (
        f"; step {model.step:,}, epoch {model.epoch}" if model.step and model.epoch is not None else ""
    )


def _listed(config: Mapping[str, Any]) -> str:
    """The settings of the training, one line per section."""
    lines = []
    for key in ("backbone", "head", "optimizer", "schedule", "trainer"):
        section = config.get(key, {})
        told = {k: v for k, v in section.items() if isinstance(v, int | float | str) and v is not False}
        plain = {k: v for k, v in told.items() if "/" not in str(v)}  # paths of another machine
        if plain:
            lines.append(f"- {key}: {settings_text(plain)}")
    return "\n".join(lines) or "not recorded in the file that this was exported from"


def _results(results: Mapping[str, Result]) -> str:
    if not results:
        return "not evaluated when it was exported"
    lines = ["| set | number | value | 95 % interval |", "|---|---|---|---|"]
    for name, result in results.items():
        numbers = [one for one in result.numbers() if one.value is not None]
        lines += [f"| {name} | {one.label} | {one.text} | {one.interval_text or '–'} |" for one in numbers]
        facts = ". ".join([result.protocol, *result.notes])
    return "\n".join([*lines, "", facts])
