"""Losses over class weights; one family a module."""

from facerec.heads.base import HEADS, Head, HeadOutput, create_head

__all__ = ["HEADS", "Head", "HeadOutput", "create_head"]
