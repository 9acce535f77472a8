"""The errors a user may see, each one line that names the value, where it came from, and a hint."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

# Words of other programs for settings and subcommands of facerec-data; of each line, the last that exists is
# meant by any other.
_SYNONYMS = [
    line.split()
    for line in """
path dir directory folder root
data_dir data_path dataset_path root
out output outdir out_dir save_dir work_dir log_dir logdir exp_name output_dir
weights checkpoint model ckpt pretrained
lr learning_rate base_lr
bs batch batchsize batch_size
epoch num_epoch num_epochs n_epochs max_epochs epochs
iterations iters max_iters steps num_steps total_steps max_steps
amp dtype fp16 mixed_precision precision
num_workers num_threads threads workers
image_size img_size resolution input_size size
dim emb_size embedding_dim feature_dim embedding_size
margin m
augmentation augmentations transforms augment
pfc partial_fc sample_rate
syncbn sync_bn sync_batch_norm
grad_accum gradient_accumulation accumulate_grad_batches accumulate
distill distillation teacher
kfold k_fold n_folds folds
far fmr tar auc eer roc metrics
threshold thresholds
filter interclass_filtering_threshold interclass_filtering
temperature radius scale s
wd decay weight_decay
grad_clip clip_grad max_norm clip_norm
flip hflip mirror
loss criterion head
model net network arch architecture encoder backbone
dataset dataset_name train_data data
scheduler lr_scheduler lr_schedule schedule
optim opt optimizer
gpu gpus gpu_id devices device
classes num_classes n_classes identities
target val validation test val_set val_targets test_sets benchmarks targets
warmup_epochs warmup_epoch warmup_steps warmup
eval_every eval_interval val_interval every_steps
save_freq save_interval save_every
log_freq log_interval frequent verbose log_every
random_seed manual_seed seed
loggers wandb mlflow tensorboard logger
check validate verify
inspect show stats info
extract export unpack
convert import create make build pack
""".strip().splitlines()
]
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENODEV)


class FacerecError(Exception):
    """A failure of the run itself (exit status 1): damaged data, a diverged loss, a full disk."""

    exit_status = 1


class DamagedDataError(FacerecError):
    """A file that exists but does not hold what its format says; the message names file, key and offset."""


class ChangedDataError(FacerecError):
    """A file that was changed while it was in use: whatever is read from it now is something else."""


class NonFiniteError(FacerecError):
    """A loss, gradient or parameter became NaN or infinite."""


class StorageError(FacerecError):
    """Something could not be written; whatever was there before is still there."""


class LostContactError(FacerecError):
    """Another process of the run has ended; what it says is the reason."""


class UserError(FacerecError):
    """A mistake of the user's (exit status 2), found before any work is lost."""

    exit_status = 2


class MissingDataError(UserError):
    """A data set, index or list that should be there is not."""


class CheckpointError(UserError):
    """A checkpoint that is unreadable, unsafe, or made for something else."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; another one may serve."""


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type or out of range.

    Args:
        key: dotted name of the setting, e.g. ``head.m``.
        value: what was given.
        hint: what would be right, e.g. ``"must be 0 or more"``.
    """

    def __init__(self, key: str, value: object, hint: str) -> None:
        shown = f"{value:g}" if isinstance(value, float) else setting_text(value)
        super().__init__(f"{key}={shown}: {hint}")
        self.key = key
        self.value = value
        self.hint = hint

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.hint)


class Pruned(Exception):
    """The end of a run that a search gives up, because others did better at the same step; no mistake."""


def require(condition: bool, key: str, value: object, hint: str) -> None:
    """Raise `ConfigError` unless `condition` holds: ``require(m >= 0, "head.m", m, "must be 0 or more")``."""
    if not condition:
        raise ConfigError(key, value, hint)


def setting_text(value: object) -> str:
    """Return a setting as it is typed: ``null``, ``true``, ``[a,b]``, ``{key: value}``, all else as it is."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {setting_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(setting_text, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def settings_text(settings: Mapping[str, object]) -> str:
    """Return settings in one line: ``s=64.0, sharded=false``."""
    return ", ".join(f"{key}={setting_text(value)}" for key, value in settings.items())


def counted(number: int, one: str) -> str:
    """Return a number with its noun: ``1 identity``, ``2,000 identities``."""
    many = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    return f"{number:,} {one if number == 1 else many}"


def duration(seconds: float | None) -> str:
    """Return a time: ``1:02:03``, ``12 days, 1:02:03``; a dash where it is not known."""
    return "–" if seconds is None else str(timedelta(seconds=round(min(seconds, 8e13))))  # the most it takes


def size_text(n: float) -> str:
    """Return bytes in the unit that people read: 1 GB = 10⁹ bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def printable(text: str) -> str:
    """Escape control characters, which names out of files may hold and a terminal would obey."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


_MANY = 18  # names that one reads


def synonyms(word: str) -> list[str]:
    """Return the other words that this program or others have for the same setting, the likeliest first."""
    alike = [words for words in _SYNONYMS if word.lower() in words]
    return [other for words in alike for other in reversed(words) if other != word]


def nearest(name: str, known: Iterable[str], elsewhere: Sequence[str] = ()) -> str:
    """A hint for a wrong name: by synonyms, or by letters and then ``did you mean arcface? known: …``.

    `elsewhere` are names of other sections, which mean the same and come between the two.
    """
    names = sorted(known)
    section, dot, word = name.rpartition(".")
    meant = [other for other in (f"{section}{dot}{one}" for one in synonyms(word)) if other in names]
    if meant or elsewhere:
        return f"did you mean {[*meant, *elsewhere][0]}?"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    if len(names) > _MANY:
        near = difflib.get_close_matches(name, names, n=_MANY // 2, cutoff=0)
        return f"{hint}nearest of {len(names)} known: {', '.join(sorted(near))}"
    return f"{hint}known: {', '.join(names)}"


@contextmanager
def machine_errors() -> Iterator[None]:
    """Raise a `FacerecError` for what is no bug of ours: memory (a device's, too) that does not suffice, a
    disk that is full, failing, gone or read-only, a path that is forbidden, too long or a loop.
    """
    try:
        yield
    except OSError as error:
        named = isinstance(error.filename, str | bytes)
        if isinstance(error, BrokenPipeError) or not (named or error.errno in _STORAGE):
            raise
        what = os.fsdecode(error.filename) if named else "a file"
        raise StorageError(f"{what} could not be read or written: {error.strerror}") from error
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].strip()
        # torch has a class for a device's memory alone.
        told = any(sign in reason for sign in ("can't allocate memory", "not enough memory"))
        if not (told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        raise FacerecError(
            f"out of memory: {reason or 'none was left'}; lower trainer.batch_size or eval.batch_size, or "
            "take trainer.precision=bf16 or trainer.checkpoint_activations=true"
        ) from error
