"""facerec: train and evaluate face-recognition embeddings.

The names below are the Python API. They are loaded on first use, so that ``import facerec`` stays light and
only what needs torch imports it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facerec.backbones import create_backbone, list_backbones
    from facerec.evaluation.verify import verify
    from facerec.heads import create_head, list_heads
    from facerec.models.opening import load_model
    from facerec.packs.recordio import Record, RecordReader, RecordWriter
    from facerec.recognition.face_model import FaceModel
    from facerec.recognition.gallery import Gallery

__version__ = "0.1.0"
__all__ = [
    "FaceModel",
    "Gallery",
    "Record",
    "RecordReader",
    "RecordWriter",
    "create_backbone",
    "create_head",
    "list_backbones",
    "list_heads",
    "load_model",
    "verify",
]

_HOMES = {
    "FaceModel": "facerec.recognition.face_model",
    "Gallery": "facerec.recognition.gallery",
    "Record": "facerec.packs.recordio",
    "RecordReader": "facerec.packs.recordio",
    "RecordWriter": "facerec.packs.recordio",
    "create_backbone": "facerec.backbones",
    "create_head": "facerec.heads",
    "list_backbones": "facerec.backbones",
    "list_heads": "facerec.heads",
    "load_model": "facerec.models.opening",
    "verify": "facerec.evaluation.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'facerec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
