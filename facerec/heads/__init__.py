"""Losses over class weights; one family a module."""

from facerec.heads.base import HEADS, Head, HeadOutput, create_head, list_heads

__all__ = ["HEADS", "Head", "HeadOutput", "create_head", "list_heads"]
