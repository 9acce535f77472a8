"""Networks from a face image to an embedding; one family a module."""

from facerec.backbones.base import BACKBONES, create_backbone, list_backbones

__all__ = ["BACKBONES", "create_backbone", "list_backbones"]
