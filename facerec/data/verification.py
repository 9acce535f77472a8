"""Former name of `facerec.packs.verification`."""

from facerec.packs.verification import VerificationSet, load_verification, write_verification

__all__ = ["VerificationSet", "load_verification", "write_verification"]
