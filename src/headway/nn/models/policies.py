"""All policies of robots there are: models that say chunks of actions."""

from __future__ import annotations

from headway.nn.models.act import Act, ActConfig
from headway.nn.models.unet_policy import UNetPolicy, UNetPolicyConfig

RobotPolicy = Act | UNetPolicy
RobotPolicyConfig = ActConfig | UNetPolicyConfig
