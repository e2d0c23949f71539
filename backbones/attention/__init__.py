"""The attention core: one operator per file, each with a literal ``math`` form and faster ones.

Operators are imported from their own files (``from backbones.attention.attend import attend``); this package offers
what steers them: ``with attention.force("math")``, ``attention.used()``. It imports no torch.
"""

from __future__ import annotations

from backbones.attention.dispatch import explain, force, reset_used, set_default, used

__all__ = ["explain", "force", "reset_used", "set_default", "used"]
