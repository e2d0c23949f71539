"""Vision backbones by one contract: images of any size in, a pyramid of feature maps out.

Nothing here imports torch before a backbone is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backbones.vision.config import BACKBONES

if TYPE_CHECKING:
    from backbones.vision.create import create_backbone, create_classifier

__all__ = ["BACKBONES", "create_backbone", "create_classifier"]


def __getattr__(name: str) -> Any:
    if name in ("create_backbone", "create_classifier"):
        from backbones.vision import create

        return getattr(create, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
