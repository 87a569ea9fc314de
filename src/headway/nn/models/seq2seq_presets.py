"""The sequence-to-sequence models of 2014, with their published sizes."""

from __future__ import annotations

from headway.nn.mixers import BidirectionalConfig, ConditionalGRUConfig, GRUConfig, LSTMConfig, MixerConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.embeds import EmbedConfig, TokenEmbedConfig
from headway.nn.models.encoder_decoder import (
    BothBridgeConfig,
    BridgeConfig,
    EncoderDecoderConfig,
    OneHotEmbedConfig,
    StateBridgeConfig,
)
from headway.nn.models.heads import VocabularyHeadConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.transformer import TransformerConfig
from headway.nn.parts.init import InitConfig

_TABLE = TokenEmbedConfig()


_UNIFORM = InitConfig(uniform=0.08)


# Cho et al. 2014, appendix A, and Bahdanau et al. 2015, appendix B.1, after Saxe et al. 2014.
_GAUSSIAN = InitConfig(std=0.01, residual="same", embedding=0.01, recurrent="orthogonal")


def lstm_2014(
    width: int = 1000, depth: int = 4, source: int = 160_000, target: int = 80_000, dropout: float = 0.0
) -> EncoderDecoderConfig:
    """Sutskever, Vinyals and Le 2014, section 3.4: two deep LSTMs; the second starts from the final states of the
    first, layer by layer. The source is reversed (`task.reverse_source`).

    A layer has 4 x 1,000 x (1,000 + 1,000) weights, so the eight have 64 million; the embeddings have 160 and 80
    million and the softmax 80: 384 million, the paper's "384M parameters". Biases add 32,000 (one per gate) and 80,000
    (one per target word).
    """
    block = _plain(LSTMConfig(out=False, forget_bias=0.0), dropout)
    head = VocabularyHeadConfig(bias=True)
    return _pair((block, block), width, (source, target), StateBridgeConfig(), head, depth)


def gru_2014(
    width: int = 100, cells: int = 1000, vocab_size: int = 15_001, maxout: int = 500, full_rank: bool = False
) -> EncoderDecoderConfig:
    """Cho et al. 2014 (RNN Encoder-Decoder), section 4.1 and appendix A: c = tanh(V h) of the encoder's last state h,
    the decoder starts from tanh(V' c), and c enters its cell at every step and its deep output of maxout units.

    Weights: embeddings 2 x 100 x 15,001 (input matrices of rank 100); encoder 3 x 1,000 x (100 + 1,000); V and V'
    1,000 x 1,000 each; decoder 3 x 1,000 x (100 + 1,000 + 1,000); 2 x 500 x (1,000 + 100 + 1,000) before the maxout;
    500 x 15,001 after it: 24,200,700. With `full_rank`, input matrices of 3 x 1,000 x 15,000 for source and target and
    of 1,000 x 15,000 for the output replace the embeddings: 125,500,000 with 15,000 tokens. The "130M" in histories of
    the field is either that or a memory size: the 500 MB that the sister paper (Cho et al. 2014, on the properties of
    neural machine translation) reports are 125 million numbers of 4 bytes.
    """
    embed = OneHotEmbedConfig() if full_rank else TokenEmbedConfig()
    encoder = _plain(GRUConfig(cells, out=False))
    decoder = _plain(ConditionalGRUConfig(cells, out=False, context="fixed", reset_after=True))
    bridge = BothBridgeConfig(summary=cells, project=True, activation="tanh")
    head = VocabularyHeadConfig(bias=True, maxout=maxout)
    return _pair((encoder, decoder), width, (vocab_size, vocab_size), bridge, head, embed=embed, init=_GAUSSIAN)


def rnnenc(width: int = 620, cells: int = 1000, vocab_size: int = 30_001, maxout: int = 500) -> EncoderDecoderConfig:
    """RNNencdec of Bahdanau, Cho and Bengio 2015, section 4.2: the model of Cho et al. 2014 with embeddings of 620.

    Weights: embeddings 2 x 620 x 30,001; encoder 3 x 1,000 x 1,620; V and V' 1,000,000 each; decoder 3 x 1,000 x
    2,620; 1,000 x 2,620 before the maxout; 500 x 30,001 after it: 69,541,740.
    """
    return gru_2014(width, cells, vocab_size, maxout)


def rnnsearch(
    width: int = 620, cells: int = 1000, vocab_size: int = 30_001, maxout: int = 500, dropout: float = 0.0
) -> EncoderDecoderConfig:
    """RNNsearch of Bahdanau, Cho and Bengio 2015, appendices A.2 and B: annotations by a bidirectional GRU, additive
    attention within the decoder's cell, which starts from tanh(W_s h) of the backward state h at the first word, and
    a deep output of the previous state, the previous word and the context.

    Weights: embeddings 2 x 620 x 30,001; encoder 2 x 3 x 1,000 x 1,620; W_s 1,000 x 1,000; alignment 1,000 x (1,000 +
    2,000 + 1); decoder 3 x 1,000 x (620 + 1,000 + 2,000); 1,000 x 3,620 before the maxout; 500 x 30,001 after it:
    80,402,740. The paper initialises W_a and U_a of the alignment ten times smaller and v_a at 0; here they are
    initialised like the others.
    """
    encoder = _plain(BidirectionalConfig(GRUConfig(cells, out=False), out=False), dropout)
    decoder = _plain(ConditionalGRUConfig(cells, out=False, shows="before"))
    bridge = BothBridgeConfig(directions="backward", project=True, activation="tanh")
    head = VocabularyHeadConfig(bias=True, maxout=maxout)
    return _pair((encoder, decoder), width, (vocab_size, vocab_size), bridge, head, init=_GAUSSIAN)


def _plain(mixer: MixerConfig, dropout: float = 0.0) -> BlockConfig:
    """A layer without a residual connection or norm."""
    return BlockConfig(mixer, None, None, placement="none", residual=False, dropout=dropout)


def _pair(
    blocks: tuple[BlockConfig, BlockConfig],
    width: int,
    vocab_sizes: tuple[int, int],
    bridge: BridgeConfig,
    head: VocabularyHeadConfig,
    depth: int = 1,
    embed: EmbedConfig = _TABLE,
    init: InitConfig = _UNIFORM,
) -> EncoderDecoderConfig:
    encoder_stack, decoder_stack = (StackConfig(cycle((block,), depth), None) for block in blocks)
    return EncoderDecoderConfig(
        encoder=TransformerConfig(width, vocab_sizes[0], None, encoder_stack, embed, {}),
        decoder=TransformerConfig(width, vocab_sizes[1], None, decoder_stack, embed, {"vocabulary": head}),
        tie="none",
        init=init,
        bridge=bridge,
    )
