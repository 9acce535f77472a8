"""The settings of the config group `data`: which images, in what order, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args, get_type_hints

from facerec.errors import ConfigError, MissingDataError, nearest, require
from facerec.images.augment import AugmentSettings
from facerec.registry import build
from facerec.settings import Applied, Free
from facerec.threads import cores

_LOADING: Final = (
    *("shuffle", "block_size", "window", "images_per_identity"),
    *("on_error", "mirror", "drop_last", "prefetch", "decoder"),
)
OF_A_SOURCE: Final = (
    *("kind", "name", "root", "identities", "images", "obtain", "options"),
    *("label_noise", "noise_kind", "noise_seed"),
)


@dataclass(frozen=True)
class DataSettings:
    """The images to train on, and how they are loaded.

    Args:
        kind: how the images are stored, a module of `facerec.loading.sources`: ``rec``, ``folder``,
            ``synthetic``, ``orl``.
        name: of the data set, for logs and errors; null: the name of its folder.
        root: where it is: a folder, or a `.rec`.
        targets: the verification sets it is usually judged by, each a `.bin` file in `eval.root`.
        identities, images: how many there are: for ``synthetic`` to make, for others what is usual, so that a
            pack that differs is noticed; null: not known.
        obtain: what to get and where from, for the error where it is missing.
        options: settings of the kind's own, see its module.
        sources: for the kind ``mix``: the settings of each source, those of `OF_A_SOURCE`; on a command line
            also the name of a data set, or a path.
        weights: for the kind ``mix``: the fraction of the samples that each source gives, in any unit; null:
            an epoch has each image once.
        size: height and width of the images in pixels, or [height, width].
        workers: decoding threads per rank; null: one per core, eight at most.
        shuffle: ``full`` any image at any time; ``block`` whole blocks of neighbours, for hard disks;
            ``identity`` several images of each identity in a batch, for pair losses; ``none``.
        block_size: neighbouring images in a block.
        window: blocks that are mixed with each other. The images of two windows should fit into memory.
        images_per_identity: for ``identity``: images of each in a batch, a divisor of the batch size.
        label_noise: fraction of the images that get a wrong label, in [0, 1), for experiments.
        noise_kind: ``uniform`` any other label; ``confusable`` that of an identity that looks alike.
        noise_seed: chooses which images and labels.
        mirror: mirror half of the images, another half each epoch.
        augment: further changes of the images, see `AugmentSettings`; none by default.
        on_error: what to do at an image that does not decode: ``raise`` stops the run and names it, ``skip``
            takes the next one instead, and counts.
        drop_last: leave out the rest of an epoch that fills no batch; null: only where it has fewer than two
            images for each rank, which batch norm cannot take.
        prefetch: batches decoded ahead of the model.
        decoder: ``threads`` decode; ``device``: JPEGs are decoded on the training device (CUDA: nvJPEG).

    Raises:
        ConfigError: for a value out of range.
    """

    kind: str = "rec"
    name: str | None = None
    root: Free[str | None] = None
    targets: Free[list[str]] = field(default_factory=list)
    identities: int | None = None
    images: int | None = None
    obtain: Free[str | None] = None
    options: dict[str, Any] = field(default_factory=dict)
    sources: Free[list[Any]] = field(default_factory=list)  # the images are compared at a resume
    weights: list[float] | None = None
    size: int | list[int] = 112
    workers: Free[int | None] = None
    shuffle: Literal["full", "block", "identity", "none"] = "full"
    block_size: int = 1024
    window: int = 64
    images_per_identity: int = 4
    label_noise: float = 0.0
    noise_kind: Literal["uniform", "confusable"] = "uniform"
    noise_seed: int = 0
    mirror: bool = True
    augment: dict[str, Any] = field(default_factory=dict)
    on_error: Applied[Literal["raise", "skip"]] = "raise"
    drop_last: Applied[bool | None] = None
    prefetch: Free[int] = 4
    decoder: Applied[Literal["threads", "device"]] = "threads"

    def __post_init__(self) -> None:
        for key in ("identities", "images", "workers", "block_size", "window", "prefetch"):
            value = getattr(self, key)
            most = 1024 if key in ("workers", "prefetch") else 10**10
            good = value is None or 1 <= value <= most
            require(good, f"data.{key}", value, f"must be 1 or more, and at most {most:,}")
        good = len(self.shape) == 2 and all(16 <= side <= 1024 for side in self.shape)
        require(good, "data.size", self.size, "must be 16 to 1024 pixels, or [height, width]")
        k, noise = self.images_per_identity, self.label_noise
        require(k >= 2, "data.images_per_identity", k, "must be 2 or more")
        require(0 <= noise < 1, "data.label_noise", noise, "must be 0 or more, and below 1")
        for key in ("shuffle", "on_error", "noise_kind", "decoder"):
            value, choices = getattr(self, key), get_args(get_type_hints(type(self))[key])
            require(value in choices, f"data.{key}", value, f"must be one of {', '.join(choices)}")
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
            require(
                isinstance(source, Mapping),
                key,
                source,
                "must be a mapping such as {kind: rec, root: FOLDER}",
            )
            for name in source:
                known = {one.name for one in fields(self)}
                hint = (
                    f"is of all sources together: data.{name}"
                    if name in known
                    else nearest(name, OF_A_SOURCE)
                )
                require(name in OF_A_SOURCE, f"{key}.{name}", source[name], hint)
            require(source.get("kind") != "mix", f"{key}.kind", "mix", "a source is no mixture itself")
            with of_source(i):
                both = {"size": self.size, "on_error": self.on_error}
                parts.append(build(DataSettings, "data", {**source, **both}))
        return parts

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) of the images in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def loading(self) -> dict[str, Any]:
        """The arguments of `facerec.loading.loader.Loader` that are settings of this group."""
        return {name: getattr(self, name) for name in _LOADING} | {
            "size": self.shape,
            "workers": self.workers or min(8, cores()),
            "augment": build(AugmentSettings, "data.augment", self.augment),
        }


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
