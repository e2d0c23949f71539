"""Configurations of mmsegmentation's decode heads, by names such as ``mmseg:UPerHead``. Standard library only.

Nothing of mmsegmentation is imported before ``build``, so that help, listings and wrong options answer without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.components import Registry
from graftwork.errors import ConfigError
from graftwork.names import unknown

if TYPE_CHECKING:
    from apps.segmentation.models.info import HeadInfo
    from apps.segmentation.models.mmseg_head import MMSegHead

MMSEG = "mmseg:"
"""Prefix of names that open heads of mmsegmentation: ``mmseg:UPerHead``."""


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What must be known of one of its heads before it is built.

    Args:
        levels: Levels of the backbone that are read unless told otherwise; empty for all.
        several: Whether the head itself sees to several levels; for others they are resized and joined.
        options: Values of its published configurations, where its constructor has no default or another one.
    """

    levels: tuple[int, ...] = (-1,)
    several: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _pyramid(levels: tuple[int, ...] = (), **options: Any) -> HeadFacts:
    return HeadFacts(levels=levels, several=True, options=options)


def _on_one_level(**options: Any) -> HeadFacts:
    return HeadFacts(options=options)


FACTS: Mapping[str, HeadFacts] = MappingProxyType(
    {
        "UPerHead": _pyramid(),
        "SegformerHead": _pyramid(channels=256),
        "FPNHead": _pyramid(channels=128),
        "LightHamHead": _pyramid(channels=256, ham_channels=256),
        "FCNHead": _on_one_level(),
        "DepthwiseSeparableFCNHead": _on_one_level(),
        "PSPHead": _on_one_level(),
        "ASPPHead": _on_one_level(),
        "DepthwiseSeparableASPPHead": _on_one_level(c1_channels=48),
        "CCHead": _on_one_level(),
        "NLHead": _on_one_level(),
        "GCHead": _on_one_level(),
        "DNLHead": _on_one_level(),
        "DAHead": _on_one_level(pam_channels=64),
        "ISAHead": _on_one_level(isa_channels=256),
        "APCHead": _on_one_level(),
        "DMHead": _on_one_level(),
        "EMAHead": _on_one_level(ema_channels=512, num_bases=64, num_stages=3),
        "SETRUPHead": _on_one_level(channels=256),
        "EncHead": _pyramid(),
        "ANNHead": _pyramid((-2, -1), project_channels=256),
    }
)
"""Heads that need no compiled operators, no mmdet and no output of another head."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "PSAHead": "needs compiled operators of mmcv",
        "PointHead": "refines the output of another head",
        "OCRHead": "refines the output of another head",
        "MaskFormerHead": "is a shell around mmdet; use mask2former",
        "Mask2FormerHead": "is a shell around mmdet; use mask2former",
        "LRASPPHead": "pools by 49 x 49 positions, which levels of our backbones seldom have",
        "DPTHead": "reads tokens of a plain ViT, not levels",
        "SETRMLAHead": "reads several levels of one size, of a plain ViT",
    }
)
"""Heads that users may look for, and why they are not there."""

SHARED: Mapping[str, Any] = MappingProxyType({"channels": 512, "norm_cfg": {"type": "BN"}})
"""What published configurations of all of them have; their SyncBN is BN here, which any device knows."""

FROM_BACKBONE = ("type", "in_channels", "in_index", "input_transform", "feature_strides", "c1_in_channels")
FROM_DATA = ("num_classes", "out_channels", "threshold", "ignore_index")


@dataclass(kw_only=True)
class MMSegHeadConfig:
    """A decode head of mmsegmentation, without a second head."""

    kind: ClassVar[str] = ""

    in_levels: tuple[int, ...] = ()
    """Levels of the backbone that are read, from 0 for the finest, negative ones from the end; empty for those the
    head is published with: all, or the coarsest for heads that read one. Several are resized and joined for these."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the head's constructor, as in its own configuration files: {channels: 256, norm_cfg: {type: GN,
    num_groups: 32}}, or --model.head.options.channels 256."""

    @property
    def facts(self) -> HeadFacts:
        """The head's row in the table."""
        return FACTS[self.kind]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor but for those of backbone and data."""
        return {**SHARED, **self.facts.options, **self.options}

    def problems(self) -> Iterator[str]:
        """Values at odds."""
        if len(set(self.in_levels)) < len(self.in_levels):
            yield f"in_levels={list(self.in_levels)} names a level twice"
        for names, source in ((FROM_BACKBONE, "the backbone and in_levels"), (FROM_DATA, "the data")):
            for name in names:
                if name in self.options:
                    yield f"options.{name}={self.options[name]} follows from {source}; leave it out"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        # the class of a head is made on demand, so another process must be told to make it
        return _unpickled, (self.kind, dict(vars(self)))

    def build(self, info: HeadInfo) -> MMSegHead:
        """The head for a backbone and classes.

        Raises:
            MissingPackageError: mmsegmentation is not installed.
            ConfigError: The constructor refuses its options.
        """
        from apps.segmentation.models.mmseg_head import MMSegHead

        return MMSegHead(self, info)


@cache
def config_class(kind: str) -> type[MMSegHeadConfig]:
    """The configuration class of a head, with its name filled in."""
    members = {"kind": kind, "__module__": __name__, "__doc__": MMSegHeadConfig.__doc__}
    return type(f"{kind}Config", (MMSegHeadConfig,), members)


def _unpickled(kind: str, values: dict[str, Any]) -> MMSegHeadConfig:
    return config_class(kind)(**values)


class HeadRegistry(Registry):
    """Names of heads: our own, ``mmseg:<class>`` and ``custom:`` paths."""

    def get(self, name: str, where: str = "") -> type:
        """The configuration class behind a name.

        Raises:
            ConfigError: No such name, and the nearest ones are given; or a head that cannot be used, and why.
        """
        if not name.startswith(MMSEG):
            return super().get(name, where)
        kind = name.removeprefix(MMSEG)
        if kind in REFUSED:
            raise ConfigError(f"{name} {REFUSED[kind]}", where)
        if kind not in FACTS:
            raise unknown(self.kind, name, [MMSEG + known for known in FACTS], where)
        return config_class(kind)

    def name_of(self, config: object) -> str:
        """The name of a configuration."""
        return MMSEG + config.kind if isinstance(config, MMSegHeadConfig) else super().name_of(config)
