"""The vision backbones by name: sizes and published facts. Standard library only, so that listings need no torch.

Sizes are those of the papers and of their official code; ``top1`` values are published ones (ImageNet-1K, at
``image_size``), never measured here. Parameters count a classifier of 1000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One size of a family.

    Args:
        family: Key of :data:`FAMILIES`.
        channels: Of every level, fine to coarse.
        strides: Pixels per position of every level.
        values: What the family's constructor needs besides.
        parameters: Of the classifier with 1000 classes.
        gmacs: Multiply-accumulates of the backbone on one image of ``image_size``, in 1e9, counted by
            ``python -m backbones show``.
        drop_path: Stochastic-depth rate to train it with on ImageNet-1K: the published one for NAT, DiNAT and ViG; for
            BiFormer its authors' advice (biformer_base: not verified); for Swin ours. None where we know of none.
        image_size: Side of the images it was published with.
        top1: Published accuracy in percent; None where it is not known to us.
    """

    family: str
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    values: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    gmacs: float = 0.0
    drop_path: float | None = None
    image_size: int = 224
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the variants of a family share.

    Args:
        title: Paper and year.
        config: Dotted path of the configuration dataclass.
        source: Where the official code and weights are, with their licence.
        operators: Attention operators it runs on, as ``attention.used()`` names them.
        keymaps: Dotted path of the key maps of its official weights, by family; empty for models of timm.
    """

    title: str
    config: str
    source: str
    operators: tuple[str, ...] = ()
    keymaps: str = ""


FAMILIES = {
    "swin": Family(
        title="Swin Transformer, Liu et al. 2021",
        config="backbones.vision.config:TimmConfig",
        source="timm; weights MIT",
    ),
    "maxvit": Family(
        title="MaxViT, Tu et al. 2022",
        config="backbones.vision.config:TimmConfig",
        source="timm; weights Apache-2.0",
    ),
    "tiny_vit": Family(
        title="TinyViT, Wu et al. 2022",
        config="backbones.vision.config:TimmConfig",
        source="timm; weights Apache-2.0",
    ),
    "shvit": Family(
        title="SHViT, Yun and Ro 2024",
        config="backbones.vision.config:TimmConfig",
        source="timm; weights MIT",
    ),
    "davit": Family(
        title="DaViT, Ding et al. 2022",
        config="backbones.vision.config:TimmConfig",
        source="timm; weights Apache-2.0",
    ),
    "nat": Family(
        title="Neighborhood Attention Transformer, Hassani et al. 2023",
        config="backbones.vision.config:DiNATConfig",
        keymaps="checkpoints.official.dinat:KEYMAPS",
        source="SHI-Labs/Neighborhood-Attention-Transformer, MIT",
        operators=("neighborhood_attention",),
    ),
    "dinat": Family(
        title="Dilated Neighborhood Attention Transformer, Hassani and Shi 2022",
        config="backbones.vision.config:DiNATConfig",
        keymaps="checkpoints.official.dinat:KEYMAPS",
        source="SHI-Labs/Neighborhood-Attention-Transformer, MIT",
        operators=("neighborhood_attention",),
    ),
    "dinat_s": Family(
        title="DiNAT in the layout of Swin, Hassani and Shi 2022",
        config="backbones.vision.config:DiNATConfig",
        keymaps="checkpoints.official.dinat:KEYMAPS",
        source="SHI-Labs/Neighborhood-Attention-Transformer, MIT",
        operators=("neighborhood_attention",),
    ),
    "dinat_isotropic": Family(
        title="Isotropic NAT and DiNAT, Hassani and Shi 2022",
        config="backbones.vision.config:DiNATConfig",
        keymaps="checkpoints.official.dinat:KEYMAPS",
        source="SHI-Labs/Neighborhood-Attention-Transformer, MIT",
        operators=("neighborhood_attention",),
    ),
    "biformer": Family(
        title="BiFormer, Zhu et al. 2023",
        config="backbones.vision.config:BiFormerConfig",
        keymaps="checkpoints.official.biformer:KEYMAPS",
        source="rayleizhu/BiFormer, MIT",
        operators=("routed_attention", "attend"),
    ),
    "biformer_stl": Family(
        title="BiFormer in the layout of Swin-T, Zhu et al. 2023",
        config="backbones.vision.config:BiFormerConfig",
        keymaps="checkpoints.official.biformer:KEYMAPS",
        source="rayleizhu/BiFormer, MIT",
        operators=("routed_attention", "attend"),
    ),
    "vig": Family(
        title="ViG with gated linear attention, Liao et al. 2024",
        config="backbones.vision.config:ViGConfig",
        keymaps="checkpoints.official.vig:KEYMAPS",
        source="hustvl/ViG, MIT",
        operators=("gated_linear_attention",),
    ),
    "vig_h": Family(
        title="ViG-H, the pyramid of ViG, Liao et al. 2024",
        config="backbones.vision.config:ViGConfig",
        keymaps="checkpoints.official.vig:KEYMAPS",
        source="hustvl/ViG, MIT",
        operators=("gated_linear_attention",),
    ),
}


def _doubling(width: int) -> tuple[int, ...]:
    return tuple(width * 2**level for level in range(4))


def _nat(family: str, width: int, depths: tuple[int, ...], heads: int, ratio: float, **facts: Any) -> Variant:
    """Pyramids of neighborhood attention: heads double with the width; dilations are listed beside the model."""
    values = {
        "depths": depths,
        "heads": tuple(heads * 2**level for level in range(4)),
        "mlp_ratio": ratio,
        "kernel_size": facts.pop("kernel_size", 7),
        "layer_scale": facts.pop("layer_scale", 0.0),
        "dilated": family != "nat",
    }
    return Variant(family=family, channels=_doubling(width), values=values, **facts)


_SHALLOW, _DEEP = (3, 4, 6, 5), (3, 4, 18, 5)

_NAT = {
    "nat_mini": _nat("nat", 64, _SHALLOW, 2, 3, parameters=19_984_174, drop_path=0.2, top1=81.8),
    "nat_tiny": _nat("nat", 64, _DEEP, 2, 3, parameters=27_901_582, drop_path=0.2, top1=83.2),
    "nat_small": _nat("nat", 96, _DEEP, 3, 2, layer_scale=1e-5, parameters=50_743_297, drop_path=0.3, top1=83.7),
    "nat_base": _nat("nat", 128, _DEEP, 4, 2, layer_scale=1e-5, parameters=89_769_652, drop_path=0.5, top1=84.3),
    "dinat_mini": _nat("dinat", 64, _SHALLOW, 2, 3, parameters=19_984_174, drop_path=0.2, top1=81.8),
    "dinat_tiny": _nat("dinat", 64, _DEEP, 2, 3, parameters=27_901_582, drop_path=0.2, top1=82.7),
    "dinat_small": _nat("dinat", 96, _DEEP, 3, 2, parameters=50_719_681, drop_path=0.3, top1=83.8),
    "dinat_base": _nat("dinat", 128, _DEEP, 4, 2, layer_scale=1e-5, parameters=89_769_652, drop_path=0.5, top1=84.4),
    "dinat_large": _nat("dinat", 192, _DEEP, 6, 2, parameters=200_943_514, drop_path=0.35, top1=86.6),
    "dinat_large_384": _nat(
        "dinat", 192, _DEEP, 6, 2, parameters=200_943_514, drop_path=0.35, image_size=384, top1=87.4
    ),
    "dinat_large_384_11x11": _nat(
        "dinat", 192, _DEEP, 6, 2, kernel_size=11, parameters=201_144_250, drop_path=0.35, image_size=384, top1=87.5
    ),
    "dinat_s_tiny": _nat("dinat_s", 96, (2, 2, 6, 2), 3, 4, parameters=28_288_354, drop_path=0.2, top1=81.8),
    "dinat_s_small": _nat("dinat_s", 96, (2, 2, 18, 2), 3, 4, parameters=49_606_258, drop_path=0.3, top1=83.5),
    "dinat_s_base": _nat("dinat_s", 128, (2, 2, 18, 2), 4, 4, parameters=87_768_224, drop_path=0.5, top1=83.8),
    "dinat_s_large": _nat("dinat_s", 192, (2, 2, 18, 2), 6, 4, parameters=196_532_476, drop_path=0.35, top1=86.5),
    "dinat_s_large_384": _nat(
        "dinat_s", 192, (2, 2, 18, 2), 6, 4, parameters=196_532_476, drop_path=0.35, image_size=384, top1=87.4
    ),
}

_ISOTROPIC = {
    f"{kind}_isotropic_small": Variant(
        family="dinat_isotropic",
        channels=(384,),
        strides=(16,),
        values={"depths": (12,), "heads": (12,), "mlp_ratio": 4, "kernel_size": 7, "dilated": kind == "dinat"},
        parameters=21_999_736,
        drop_path=0.1,
        top1=top1,
    )
    for kind, top1 in (("nat", 80.0), ("dinat", 80.8))
}


def _biformer(width: int, depths: tuple[int, ...], family: str = "biformer", **facts: Any) -> Variant:
    ratio = facts.pop("mlp_ratio", 3)
    values = {"depths": depths, "mlp_ratio": ratio, "topks": (1, 4, 16, -2), "regions": 7, "head_width": 32}
    return Variant(family=family, channels=_doubling(width), values=values, **facts)


_BIFORMER = {
    "biformer_tiny": _biformer(64, (2, 2, 8, 2), parameters=13_142_760, drop_path=0.1, top1=81.4),
    "biformer_small": _biformer(64, (4, 4, 18, 4), parameters=25_536_232, drop_path=0.15, top1=83.8),
    "biformer_base": _biformer(96, (4, 4, 18, 4), parameters=56_804_968, drop_path=0.4, top1=84.3),
    "biformer_stl": _biformer(96, (2, 2, 6, 2), "biformer_stl", mlp_ratio=4, parameters=28_372_552, top1=82.7),
}


def _vig(width: int, heads: int, activations: bool, **facts: Any) -> Variant:
    values = {"depth": 12, "heads": heads, "conv_activation": activations, "out_activation": activations}
    return Variant(family="vig", channels=(width,), strides=(16,), values=values, **facts)


def _vig_h(width: int, depths: tuple[int, ...], heads: int, **facts: Any) -> Variant:
    values = {"depths": depths, "heads": tuple(heads * 2**level for level in range(4))}
    return Variant(family="vig_h", channels=_doubling(width), values=values, **facts)


_VIG = {
    "vig_tiny": _vig(192, 3, True, parameters=5_834_536, drop_path=0.0, top1=77.2),
    "vig_small": _vig(384, 6, False, parameters=22_615_144, drop_path=0.2, top1=81.7),
    "vig_base": _vig(768, 12, False, parameters=89_022_184, drop_path=0.5, top1=82.6),
    "vig_h_tiny": _vig_h(96, (2, 2, 5, 2), 3, parameters=28_600_680, drop_path=0.2, top1=82.8),
    "vig_h_small": _vig_h(96, (2, 2, 17, 2), 3, parameters=50_051_688, drop_path=0.3, top1=83.8),
    "vig_h_base": _vig_h(128, (2, 2, 17, 2), 4, parameters=88_904_360, drop_path=0.6, top1=84.2),
}


def _timm(family: str, model: str, channels: tuple[int, ...], **facts: Any) -> Variant:
    return Variant(family=family, channels=channels, values={"model": model}, **facts)


def _swin(model: str, width: int, **facts: Any) -> Variant:
    return _timm("swin", model, _doubling(width), **facts)


_SWIN = {
    "swin_tiny": _swin("swin_tiny_patch4_window7_224.ms_in1k", 96, parameters=28_288_354, drop_path=0.2),
    "swin_small": _swin("swin_small_patch4_window7_224.ms_in1k", 96, parameters=49_606_258, drop_path=0.3),
    "swin_base": _swin("swin_base_patch4_window7_224.ms_in1k", 128, parameters=87_768_224, drop_path=0.5),
    "swin_large": _swin("swin_large_patch4_window7_224.ms_in22k_ft_in1k", 192, parameters=196_532_476),
    "swinv2_tiny": _swin("swinv2_tiny_window8_256.ms_in1k", 96, parameters=28_347_154, drop_path=0.2, image_size=256),
    "swinv2_small": _swin("swinv2_small_window8_256.ms_in1k", 96, parameters=49_728_418, drop_path=0.3, image_size=256),
    "swinv2_base": _swin("swinv2_base_window8_256.ms_in1k", 128, parameters=87_918_816, drop_path=0.5, image_size=256),
}


def _maxvit(model: str, width: int, **facts: Any) -> Variant:
    return _timm("maxvit", model, _doubling(width), **facts)


_MAXVIT = {
    "maxvit_pico": _maxvit("maxvit_pico_rw_256", 32, parameters=7_457_996, image_size=256),
    "maxvit_nano": _maxvit("maxvit_nano_rw_256.sw_in1k", 64, parameters=15_451_148, image_size=256),
    "maxvit_tiny": _maxvit("maxvit_tiny_tf_224.in1k", 64, parameters=30_916_528),
    "maxvit_small": _maxvit("maxvit_small_tf_224.in1k", 96, parameters=68_927_956),
    "maxvit_base": _maxvit("maxvit_base_tf_224.in1k", 96, parameters=119_467_708),
    "maxvit_large": _maxvit("maxvit_large_tf_224.in1k", 128, parameters=211_785_560),
    "maxvit_xlarge": _maxvit("maxvit_xlarge_tf_224.in21k", 192, parameters=474_951_952),
}


def _tiny_vit(size: str, channels: tuple[int, ...], **facts: Any) -> Variant:
    return _timm("tiny_vit", f"tiny_vit_{size}_224.dist_in22k_ft_in1k", channels, **facts)


_TINY_VIT = {
    "tiny_vit_5m": _tiny_vit("5m", (64, 128, 160, 320), parameters=5_392_764),
    "tiny_vit_11m": _tiny_vit("11m", (64, 128, 256, 448), parameters=10_996_972),
    "tiny_vit_21m": _tiny_vit("21m", (96, 192, 384, 576), parameters=21_198_568),
}


def _shvit(size: str, channels: tuple[int, ...], **facts: Any) -> Variant:
    return _timm("shvit", f"shvit_{size}.in1k", channels, strides=(16, 32, 64), **facts)


_SHVIT = {
    "shvit_s1": _shvit("s1", (128, 224, 320), parameters=6_330_808),
    "shvit_s2": _shvit("s2", (128, 308, 448), parameters=11_483_072),
    "shvit_s3": _shvit("s3", (192, 352, 448), parameters=14_245_273),
    "shvit_s4": _shvit("s4", (224, 336, 448), parameters=16_588_484, image_size=256),
}

_DAVIT = {
    f"davit_{size}": _timm("davit", f"davit_{size}.msft_in1k", _doubling(width), **facts)
    for size, width, facts in (
        ("tiny", 96, {"parameters": 28_360_168}),
        ("small", 96, {"parameters": 49_745_896}),
        ("base", 128, {"parameters": 87_954_408}),
    )
}

_TIMM = {**_SWIN, **_MAXVIT, **_TINY_VIT, **_SHVIT, **_DAVIT}

_GMACS = {
    "swin_tiny": 4.49,
    "swin_small": 8.74,
    "swin_base": 15.43,
    "swin_large": 34.474,
    "swinv2_tiny": 5.939,
    "swinv2_small": 11.545,
    "swinv2_base": 20.324,
    "maxvit_pico": 1.802,
    "maxvit_nano": 4.416,
    "maxvit_tiny": 5.551,
    "maxvit_small": 11.588,
    "maxvit_base": 23.921,
    "maxvit_large": 43.518,
    "maxvit_xlarge": 97.251,
    "tiny_vit_5m": 1.255,
    "tiny_vit_11m": 2.016,
    "tiny_vit_21m": 4.25,
    "shvit_s1": 0.241,
    "shvit_s2": 0.365,
    "shvit_s3": 0.6,
    "shvit_s4": 0.986,
    "davit_tiny": 4.521,
    "davit_small": 8.772,
    "davit_base": 15.473,
    "nat_mini": 2.876,
    "nat_tiny": 4.537,
    "nat_small": 8.136,
    "nat_base": 14.162,
    "dinat_mini": 2.802,
    "dinat_tiny": 4.433,
    "dinat_small": 7.979,
    "dinat_base": 13.952,
    "dinat_large": 30.87,
    "dinat_large_384": 91.14,
    "dinat_large_384_11x11": 94.127,
    "dinat_s_tiny": 4.582,
    "dinat_s_small": 8.878,
    "dinat_s_base": 15.614,
    "dinat_s_large": 34.75,
    "dinat_s_large_384": 102.437,
    "nat_isotropic_small": 4.4,
    "dinat_isotropic_small": 4.354,
    "biformer_tiny": 2.321,
    "biformer_small": 4.702,
    "biformer_base": 10.116,
    "biformer_stl": 4.692,
    "vig_tiny": 1.164,
    "vig_small": 4.474,
    "vig_base": 17.531,
    "vig_h_tiny": 4.534,
    "vig_h_small": 8.812,
    "vig_h_base": 15.639,
}
"""Counted by ``python -m backbones show NAME``; own operators in their fast forms, which multiply some masked pairs."""

_ALL = {**_TIMM, **_NAT, **_ISOTROPIC, **_BIFORMER, **_VIG}
VARIANTS: dict[str, Variant] = {name: replace(variant, gmacs=_GMACS[name]) for name, variant in _ALL.items()}
"""Name to variant, in the order of listings."""

_PYRAMID = "any size; strides 4, 8, 16, 32"
_BOUND = "images of 224 x 224 pixels, or of image_size"

MORE_TRUNKS = {
    "timm:crossvit_9_240": "CrossViT, Chen et al. 2021: classifies only, images of 240 x 240 pixels; it has two grids",
    "timm:tnt_s_patch16_224": f"TNT, Han et al. 2021: {_BOUND}; stride 16, the last three blocks",
    "timm:convit_tiny": f"ConViT, d'Ascoli et al. 2021: {_BOUND} if square; stride 16, the last three blocks",
    "timm:efficientformer_l1": "EfficientFormer, Li et al. 2022: images of 224 x 224 pixels; strides 4, 8, 16, 32",
    "timm:efficientformerv2_s0": f"EfficientFormerV2, Li et al. 2023: {_BOUND}; strides 4, 8, 16, 32",
    "timm:hiera_tiny_224": f"Hiera, Ryali et al. 2023: {_BOUND}; strides 4, 8, 16, 32",
    "timm:nest_tiny": f"NesT, Zhang et al. 2022: {_BOUND} if square; strides 4, 8, 16",
    "timm:coatnet_0_rw_224": f"CoAtNet, Dai et al. 2021: {_BOUND}; strides 4, 8, 16, 32",
    "timm:twins_svt_small": f"Twins, Chu et al. 2021: {_PYRAMID}",
    "timm:pvt_v2_b0": f"PVT v2, Wang et al. 2022: {_PYRAMID}",
    "timm:focalnet_tiny_srf": f"FocalNet, Yang et al. 2022: {_PYRAMID}",
    "timm:poolformer_s12": f"PoolFormer, Yu et al. 2022: {_PYRAMID}",
    "timm:nextvit_small": f"Next-ViT, Li et al. 2022: {_PYRAMID}",
    "timm:mambaout_tiny": f"MambaOut, Yu and Wang 2025: {_PYRAMID}",
    "timm:convnext_tiny": f"ConvNeXt, Liu et al. 2022: {_PYRAMID}",
    "timm:resnet50": "ResNet, He et al. 2016: any size; strides 2, 4, 8, 16, 32",
    "timm:vit_small_patch16_224": "ViT, Dosovitskiy et al. 2021: any size; stride 16, the last three blocks",
}
"""Further trunks that papers name: what to know of them. Other models of timm are there under their names, too."""
