"""Instructions of a program: rows of 64-bit words, the opcode and then its operands, integers first.

Operands are addresses, strides in bytes, sizes and flags. Addresses from 0 on are in memory shared by threads; negative
ones, -1 - offset, in each thread's scratch, which every thread fills itself, so that no barrier is needed.
"""

from __future__ import annotations

from enum import IntEnum


class Opcode(IntEnum):
    EMBED = 0
    NORM = 1
    QUANTISE = 2
    MULTIPLY = 3
    ATTEND = 4
    MERGE = 5
    SUM = 6
    BARRIER = 7
    COMBINE = 8
    CELL = 9
    ASSOCIATE = 10
    LINK = 11
    ADD_ATTEND = 12
    ROUTE = 13
    GATHER = 14
    WEIGH = 15
    ATTEND_DOCUMENTS = 16
    BATCH = 17


# The operands of each kind in their order; floats, in double precision, follow a semicolon.
_OPERANDS = {
    Opcode.EMBED: "format table scales width out stride positions limit offset; scale",
    Opcode.NORM: "src src_stride dst dst_stride width norm weight bias; eps",
    Opcode.QUANTISE: "format src stride columns q scales corrections",
    Opcode.MULTIPLY: "format w scales bias x x_scales corrections stride y y_stride start rows total_rows columns mode "
    "activation free scratch y_format y_scales y_corrections; cap scale",
    Opcode.ATTEND: "qkv stride heads groups size stores_kv norm q_weight q_bias k_weight k_bias cos sin half window "
    "bias span tables table_step lengths layer partials q scores dtype group_bytes runs capacity spare mean rotations; "
    "eps cap scale",
    Opcode.MERGE: "partials heads size capacity sinks out stride lengths window",
    Opcode.SUM: "src src_stride dst dst_stride width residual gain",
    Opcode.BARRIER: "",
    Opcode.COMBINE: "operation a a_stride also also_stride b b_stride out out_stride width b_width",
    Opcode.CELL: "cell gates gates_stride also also_stride h stride width c peepholes forgets; scale",
    Opcode.ASSOCIATE: "qkv stride heads size strength decay gate controls_stride features nu squash key_norm delta "
    "ones norm weight bias keys rates memory memory_stride out scratch; eps",
    Opcode.LINK: "drive drive_stride x x_stride links links_stride width cells out out_stride; decay rate",
    Opcode.ADD_ATTEND: "query stride units width score tables table_step lengths layer partials scores capacity",
    Opcode.ROUTE: "logits stride count active normalise correction shared weights weights_stride sum sum_stride width; "
    "scale",
    Opcode.GATHER: "weights count expert src src_stride dst dst_stride width rows instructions",
    Opcode.WEIGH: "weights count expert src src_stride sum sum_stride width rows",
    Opcode.ATTEND_DOCUMENTS: "qkv stride heads groups size after norm q_weight q_bias k_weight k_bias cos sin half "
    "before bias_kind bias span table rows terms sinks keys values q scores spare result out out_stride bf16; eps cap "
    "scale",
    Opcode.BATCH: "rows",
}
INTEGERS, FLOATS = (
    {kind: tuple(names.partition(";")[part].split()) for kind, names in _OPERANDS.items()} for part in (0, 2)
)
# The word of each operand.
WORDS = {kind: {name: n for n, name in enumerate(INTEGERS[kind] + FLOATS[kind], 1)} for kind in Opcode}
LENGTH = 1 + max(map(len, WORDS.values()))  # words of an instruction
SIZE = 8 * LENGTH  # bytes
