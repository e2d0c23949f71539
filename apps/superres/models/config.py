"""Names of the restoration networks; each has its configuration in a file of its own. No torch until ``build``."""

from __future__ import annotations

from graftwork.components import Registry

MODELS = Registry(
    "model",
    {
        "cfsr": "apps.superres.models.cfsr_config:CFSRConfig",
        "hat_s": "apps.superres.models.hat_config:HATSmallConfig",
        "hat": "apps.superres.models.hat_config:HATConfig",
        "hat_l": "apps.superres.models.hat_config:HATLargeConfig",
        "craft": "apps.superres.models.craft_config:CRAFTConfig",
        "dlgsanet_tiny": "apps.superres.models.dlgsanet_config:DLGSANetTinyConfig",
        "dlgsanet_light": "apps.superres.models.dlgsanet_config:DLGSANetLightConfig",
        "dlgsanet": "apps.superres.models.dlgsanet_config:DLGSANetConfig",
        "maxim_s1": "apps.superres.models.maxim_config:MAXIMConfig",
        "maxim_s2": "apps.superres.models.maxim_config:MAXIM2Config",
        "maxim_s3": "apps.superres.models.maxim_config:MAXIM3Config",
        "trunk": "apps.superres.models.trunk_config:TrunkConfig",
    },
)
"""Each entry: a dataclass with ``problems()`` (standard library only) and ``build(info: ImageInfo) -> nn.Module``."""
