"""Models: an architecture is mixer x visibility x block x stack x topology, described by frozen dataclasses."""

from __future__ import annotations

from torch import nn

# Imported to register kinds and the settings that --set accepts.
from headway.nn.models import disentangled as _disentangled  # noqa: F401
from headway.nn.models import score_biases as _score_biases  # noqa: F401
from headway.nn.models import settings as _settings  # noqa: F401
from headway.nn.models import token_dropout as _token_dropout  # noqa: F401
from headway.nn.models.act import Act, ActConfig, SceneEmbed, SceneEmbedConfig, act
from headway.nn.models.agents import (
    ConvolutionsConfig,
    GaussianHeadConfig,
    ObservationConfig,
    PatchesConfig,
    StatesEmbed,
    StatesEmbedConfig,
    StateVectorConfig,
    actor_critic,
    policy_head,
)
from headway.nn.models.block import Block, BlockConfig
from headway.nn.models.board import BoardEmbed, BoardEmbedConfig, FromToHeadConfig, SquaresHeadConfig
from headway.nn.models.captioner import Captioner, CaptionerConfig, ProjectorConfig
from headway.nn.models.chunks import ChunkHeadConfig, ChunkNoise, Chunks, DiffusionConfig, RegressionConfig
from headway.nn.models.describe import attention_maps, describe, outline
from headway.nn.models.embeds import EmbedConfig, TokenEmbedConfig, TokenInputs
from headway.nn.models.encoder_decoder import (
    BothBridgeConfig,
    BridgeConfig,
    EncodedSource,
    EncoderDecoder,
    EncoderDecoderConfig,
    MemoryBridgeConfig,
    OneHotEmbedConfig,
    StateBridgeConfig,
)
from headway.nn.models.frames import FramesEmbed, FramesEmbedConfig, SpectrogramEmbed, SpectrogramEmbedConfig
from headway.nn.models.heads import HeadConfig, Loss, TransformConfig, VocabularyHead, VocabularyHeadConfig
from headway.nn.models.keypoints import KeypointEmbed, KeypointEmbedConfig
from headway.nn.models.kinds import (
    CacheDtype,
    GenerationProgress,
    Generative,
    RobotPolicy,
    RobotPolicyConfig,
    evaluation_mode,
)
from headway.nn.models.patches import PatchEmbed, PatchEmbedConfig, PatchValuesHead, PatchValuesHeadConfig
from headway.nn.models.pooled import (
    DistilledHead,
    DistilledHeadConfig,
    PooledHead,
    PooledHeadConfig,
    ProbeHead,
    ProbeHeadConfig,
)
from headway.nn.models.robot import Observations, RobotEmbed, RobotEmbedConfig
from headway.nn.models.stack import Stack, StackConfig, cycle
from headway.nn.models.trajectories import (
    StepHead,
    StepHeadConfig,
    TrajectoryEmbed,
    TrajectoryEmbedConfig,
    TrajectoryInputs,
    step_heads,
)
from headway.nn.models.transformer import Decoding, ModelConfig, ModelFeatures, Prompt, Transformer, TransformerConfig
from headway.nn.models.two_tower import TwoTower, TwoTowerConfig
from headway.nn.models.unet_policy import KeypointsConfig, UNetConfig, UNetPolicy, UNetPolicyConfig
from headway.nn.parts import scaling as _scaling  # noqa: F401


def build(config: ModelConfig, seed: int | None = 0) -> nn.Module:
    """Build the model of `config` with weights sampled from `seed`; see ModelConfig.build."""
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
    "CacheDtype",
    "Captioner",
    "CaptionerConfig",
    "ChunkHeadConfig",
    "ChunkNoise",
    "Chunks",
    "ConvolutionsConfig",
    "Decoding",
    "DiffusionConfig",
    "DistilledHead",
    "DistilledHeadConfig",
    "EmbedConfig",
    "EncodedSource",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "FramesEmbed",
    "FramesEmbedConfig",
    "FromToHeadConfig",
    "GaussianHeadConfig",
    "GenerationProgress",
    "Generative",
    "HeadConfig",
    "KeypointEmbed",
    "KeypointEmbedConfig",
    "KeypointsConfig",
    "Loss",
    "MemoryBridgeConfig",
    "ModelConfig",
    "ModelFeatures",
    "ObservationConfig",
    "Observations",
    "OneHotEmbedConfig",
    "PatchEmbed",
    "PatchEmbedConfig",
    "PatchValuesHead",
    "PatchValuesHeadConfig",
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
    "StateVectorConfig",
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
    "evaluation_mode",
    "outline",
    "policy_head",
    "step_heads",
]
