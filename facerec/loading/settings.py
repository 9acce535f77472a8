"""The settings of the config group `data`: which images, in what order, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Final, Literal

from facerec.errors import ConfigError, MissingDataError, nearest, require
from facerec.images.augment import AugmentSettings
from facerec.registry import build
from facerec.settings import Applied, BelowOne, Count, CountOrNull, Few, FewOrNull, Free, Range, check_ranges

_Several = Annotated[int, Range(lambda k: k >= 2, "must be 2 or more")]

OF_A_SOURCE: Final = (
    *("kind", "name", "root", "identities", "images", "obtain", "options"),
    *("label_noise", "noise_kind", "noise_seed"),
)


@dataclass(frozen=True)
class DataSettings:
    """The images to train on, and how they are loaded; configs/data/ says what each setting means.

    Raises:
        ConfigError: for a value out of range.
    """

    kind: str = "rec"
    name: str | None = None
    root: Free[str | None] = None
    targets: Free[list[str]] = field(default_factory=list)
    identities: CountOrNull = None
    images: CountOrNull = None
    obtain: Free[str | None] = None
    options: dict[str, Any] = field(default_factory=dict)
    sources: Free[list[Any]] = field(default_factory=list)  # the images are compared at a resume
    weights: list[float] | None = None
    size: int | list[int] = 112
    workers: Free[FewOrNull] = None
    shuffle: Literal["full", "block", "identity", "none"] = "full"
    block_size: Count = 1024
    window: Count = 64
    images_per_identity: _Several = 4
    label_noise: BelowOne = 0.0
    noise_kind: Literal["uniform", "confusable"] = "uniform"
    noise_seed: int = 0
    mirror: bool = True
    augment: dict[str, Any] = field(default_factory=dict)
    on_error: Applied[Literal["raise", "skip"]] = "raise"
    drop_last: Applied[bool | None] = None
    prefetch: Free[Few] = 4
    decoder: Applied[Literal["threads", "device"]] = "threads"

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        good = len(self.shape) == 2 and all(16 <= side <= 1024 for side in self.shape)
        require(good, "data.size", self.size, "must be 16 to 1024 pixels, or [height, width]")
        build(AugmentSettings, "data.augment", self.augment)
        number = len(self.parts())
        good = (number > 0) == (self.kind == "mix")
        hint = "must name one data set or more: '[casia,webface4m]'" if number == 0 else "needs data=mix"
        require(good, "data.sources", self.sources, hint)
        good = self.weights is None or (len(self.weights) == number and min(self.weights, default=0) > 0)
        hint = f"must be null, or a number above 0 for each of data.sources ({number} here)"
        require(good, "data.weights", self.weights, hint)

    def parts(self) -> list[DataSettings]:
        """Return the settings of each source; raise `ConfigError` where one has others than its own."""
        parts = []
        for i, source in enumerate(self.sources):
            key = f"data.sources[{i}]"
            hint = "must be a mapping such as {kind: rec, root: FOLDER}"
            require(isinstance(source, Mapping), key, source, hint)
            for name in (name for name in source if name not in OF_A_SOURCE):
                shared = name in (one.name for one in fields(self))
                hint = f"is of all sources together: data.{name}" if shared else nearest(name, OF_A_SOURCE)
                raise ConfigError(f"{key}.{name}", source[name], hint)
            require(source.get("kind") != "mix", f"{key}.kind", "mix", "a source is no mixture itself")
            with of_source(i):
                both = {"size": self.size, "on_error": self.on_error}
                parts.append(build(DataSettings, "data", {**source, **both}))
        return parts

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) of the images in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)


@contextmanager
def of_source(i: int) -> Iterator[None]:
    """Name source i in errors over its settings and files."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            error.key.replace("data", f"data.sources[{i}]", 1), error.value, error.hint
        ) from error
    except MissingDataError as error:
        raise MissingDataError(str(error).replace("data.root", f"data.sources[{i}].root")) from error
