"""The protocols besides verification as the config group `eval` knows them: settings that can be run.

Each is a settings dataclass, checked like all settings, whose `run` gives results by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from facerec.errors import ConfigError, nearest, require
from facerec.evaluation.settings import EvalSettings
from facerec.registry import build

if TYPE_CHECKING:
    from facerec.evaluation.results import Result
    from facerec.models.model import Model


@dataclass(frozen=True)
class YtfSettings(EvalSettings):
    """YouTube Faces.

    Args:
        root: folder of ``splits.txt`` and the videos' folders.
        frames: how many frames of a video, evenly spaced; null: all.
    """

    protocol: Literal["ytf"] = "ytf"
    frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root != ".", "eval.root", None, "must be the folder of splits.txt and the videos")
        require(
            self.frames is None or self.frames >= 1, "eval.frames", self.frames, "must be 1 or more, or null"
        )

    def run(self, model: Model) -> Mapping[str, Result]:
        """Results by name."""
        from facerec.evaluation.protocols.template_sets import evaluate_ytf

        return {"ytf": evaluate_ytf(model, self.root, self, frames=self.frames)}


@dataclass(frozen=True)
class IjbSettings(EvalSettings):
    """IJB-B and IJB-C.

    Args:
        root: folder of ``loose_crop/`` and the lists.
        targets: ``[ijbb]`` or ``[ijbc]``.
    """

    protocol: Literal["ijb"] = "ijb"
    targets: list[str] = field(default_factory=lambda: ["ijbc"])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root != ".", "eval.root", None, "must be the folder of loose_crop and the lists")
        known = len(self.targets) == 1 and self.targets[0] in ("ijbb", "ijbc")
        require(known, "eval.targets", self.targets, "must be [ijbb] or [ijbc]")

    def run(self, model: Model) -> Mapping[str, Result]:
        """Results by name: 1:1 and, where its lists are there, 1:N, each without and with detector score."""
        from facerec.evaluation.protocols.template_sets import evaluate_ijb

        return evaluate_ijb(model, self.root, self.targets[0], self)


@dataclass(frozen=True)
class IdentificationSettings(EvalSettings):
    """Gallery and probes in folders of identities.

    Args:
        gallery, probes: folders with a folder for each person.
        distractors: folder of more gallery images; null: none.
        leave_out: file that lists images to leave out, a relative path a line; null: none.
    """

    protocol: Literal["identification"] = "identification"
    gallery: str | None = None
    probes: str | None = None
    distractors: str | None = None
    leave_out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("gallery", "probes"):
            require(
                getattr(self, key) is not None, f"eval.{key}", None, "must be a folder of people's folders"
            )

    def run(self, model: Model) -> Mapping[str, Result]:
        """Results by name."""
        from facerec.evaluation.protocols.folders import evaluate_folders, read_leave_out

        assert self.gallery is not None and self.probes is not None
        skip = read_leave_out(self.leave_out) if self.leave_out else ()
        result = evaluate_folders(
            model, self.gallery, self.probes, self, distractors=self.distractors, leave_out=skip
        )
        return {"identification": result}


@dataclass(frozen=True)
class MegafaceSettings(EvalSettings):
    """MegaFace challenge 1.

    Args:
        probes: the FaceScrub probe set, a folder for each person.
        distractors: the MegaFace distractors.
        leave_out: file that lists noisy images of either folder, a relative path a line; null: none.
    """

    protocol: Literal["megaface"] = "megaface"
    probes: str | None = None
    distractors: str | None = None
    leave_out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.probes is not None, "eval.probes", None, "must be the folder of the FaceScrub probe set")
        require(
            self.distractors is not None, "eval.distractors", None, "must be the folder of the distractors"
        )

    def run(self, model: Model) -> Mapping[str, Result]:
        """Results by name."""
        from facerec.evaluation.protocols.folders import evaluate_megaface, read_leave_out

        assert self.probes is not None and self.distractors is not None
        skip = read_leave_out(self.leave_out) if self.leave_out else ()
        return {"megaface": evaluate_megaface(model, self.probes, self.distractors, self, leave_out=skip)}


ProtocolSettings = YtfSettings | IjbSettings | IdentificationSettings | MegafaceSettings

PROTOCOLS: Final[dict[str, type[ProtocolSettings]]] = {
    "ytf": YtfSettings,
    "ijb": IjbSettings,
    "identification": IdentificationSettings,
    "megaface": MegafaceSettings,
}


def protocol_settings(given: Mapping[str, Any]) -> ProtocolSettings:
    """The settings of ``given["protocol"]``; null values stand for the defaults.

    Raises:
        ConfigError: unknown protocol or setting, or a value of the wrong type or out of range.
    """
    name = given["protocol"]
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ConfigError("eval.protocol", name, nearest(str(name), ["verification", *PROTOCOLS]))
    chosen = {key: value for key, value in given.items() if value is not None}
    return cast(ProtocolSettings, build(PROTOCOLS[name], "eval", chosen))
