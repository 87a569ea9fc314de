"""Models: an architecture is mixer x visibility x block x stack x topology, as frozen data."""

from __future__ import annotations

from torch import nn

from headway.models import settings as _settings  # noqa: F401 -- registers what --set takes
from headway.models.act import Act, ActConfig, act
from headway.models.agents import GaussianHeadConfig, StatesEmbed, StatesEmbedConfig, actor_critic, policy_head
from headway.models.block import Block, BlockConfig
from headway.models.board import BoardEmbed, BoardEmbedConfig, FromToHeadConfig, SquaresHeadConfig
from headway.models.bridge import BothBridgeConfig, BridgeConfig, MemoryBridgeConfig, StateBridgeConfig
from headway.models.captioner import Captioner, CaptionerConfig, ProjectorConfig
from headway.models.chunks import ChunkHeadConfig, Chunks, Drawn, RegressionConfig
from headway.models.describe import describe, outline
from headway.models.diffusion import DiffusionConfig
from headway.models.embeds import EmbedConfig, OneHotEmbedConfig, TokenEmbedConfig, TokenInputs
from headway.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, Heard
from headway.models.frames import FramesEmbed, FramesEmbedConfig, SpectrogramEmbed, SpectrogramEmbedConfig
from headway.models.generative import Cache, GenerationProgress, Generative
from headway.models.heads import HeadConfig, Loss, TransformConfig, VocabularyHead, VocabularyHeadConfig
from headway.models.keypoints import KeypointsConfig
from headway.models.maps import attention_maps
from headway.models.observations import ConvolutionsConfig, NumbersConfig, ObservationConfig, PatchesConfig
from headway.models.patches import PatchEmbed, PatchEmbedConfig
from headway.models.policies import RobotPolicy, RobotPolicyConfig
from headway.models.pooled import (
    DistilledHead,
    DistilledHeadConfig,
    PooledHead,
    PooledHeadConfig,
    ProbeHead,
    ProbeHeadConfig,
)
from headway.models.robot import Observations, RobotEmbed, RobotEmbedConfig
from headway.models.scene import SceneEmbed, SceneEmbedConfig
from headway.models.stack import Stack, StackConfig, cycle
from headway.models.trajectories import (
    StepHead,
    StepHeadConfig,
    TrajectoryEmbed,
    TrajectoryEmbedConfig,
    TrajectoryInputs,
    step_heads,
)
from headway.models.transformer import Decoding, Encoded, ModelConfig, Prompt, Transformer, TransformerConfig
from headway.models.two_tower import TwoTower, TwoTowerConfig
from headway.models.unet_policy import UNetConfig, UNetPolicy, UNetPolicyConfig


def build(config: ModelConfig, seed: int | None = 0) -> nn.Module:
    """The model of `config` with weights drawn from `seed`; see ModelConfig.build."""
    return config.build(seed)


__all__ = [
    "Act",
    "ActConfig",
    "Block",
    "BlockConfig",
    "BoardEmbed",
    "BoardEmbedConfig",
    "BothBridgeConfig",
    "BridgeConfig",
    "Cache",
    "Captioner",
    "CaptionerConfig",
    "ChunkHeadConfig",
    "Chunks",
    "ConvolutionsConfig",
    "Decoding",
    "DiffusionConfig",
    "DistilledHead",
    "DistilledHeadConfig",
    "Drawn",
    "EmbedConfig",
    "Encoded",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "FramesEmbed",
    "FramesEmbedConfig",
    "FromToHeadConfig",
    "GaussianHeadConfig",
    "GenerationProgress",
    "Generative",
    "HeadConfig",
    "Heard",
    "KeypointsConfig",
    "Loss",
    "MemoryBridgeConfig",
    "ModelConfig",
    "NumbersConfig",
    "ObservationConfig",
    "Observations",
    "OneHotEmbedConfig",
    "PatchEmbed",
    "PatchEmbedConfig",
    "PatchesConfig",
    "PooledHead",
    "PooledHeadConfig",
    "ProbeHead",
    "ProbeHeadConfig",
    "ProjectorConfig",
    "Prompt",
    "RegressionConfig",
    "RobotEmbed",
    "RobotEmbedConfig",
    "RobotPolicy",
    "RobotPolicyConfig",
    "SceneEmbed",
    "SceneEmbedConfig",
    "SpectrogramEmbed",
    "SpectrogramEmbedConfig",
    "SquaresHeadConfig",
    "Stack",
    "StackConfig",
    "StateBridgeConfig",
    "StatesEmbed",
    "StatesEmbedConfig",
    "StepHead",
    "StepHeadConfig",
    "TokenEmbedConfig",
    "TokenInputs",
    "TrajectoryEmbed",
    "TrajectoryEmbedConfig",
    "TrajectoryInputs",
    "TransformConfig",
    "Transformer",
    "TransformerConfig",
    "TwoTower",
    "TwoTowerConfig",
    "UNetConfig",
    "UNetPolicy",
    "UNetPolicyConfig",
    "VocabularyHead",
    "VocabularyHeadConfig",
    "act",
    "actor_critic",
    "attention_maps",
    "build",
    "cycle",
    "describe",
    "outline",
    "policy_head",
    "step_heads",
]
