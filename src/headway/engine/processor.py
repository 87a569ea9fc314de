"""The processor's instruction sets, as far as the compiled engine uses them."""

from __future__ import annotations

import ctypes
import os
import platform

from llvmlite import binding

from headway.errors import UserError, nearest

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # Linux system call that enables the matrix unit

# Prefixes of the LLVM features that a lesser processor lacks, by the instruction set that HEADWAY_FORM names.
_LACKING = {
    "amx": (),
    "vnni": ("amx",),
    "avx2": ("amx", "avx512", "avx10", "avxvnni", "avxifma", "avxneconvert", "evex512"),
    "portable": ("amx", "avx", "fma", "f16c", "evex512", "vaes", "vpclmulqdq", "xop"),
}


def _features() -> tuple[dict[str, bool], str | None]:
    """The processor's features, or those that HEADWAY_FORM selects, and the compiler's feature string if they differ.
    Raises UserError for an instruction set that the processor lacks.
    """
    features, forced = dict(binding.get_host_cpu_features()), os.environ.get("HEADWAY_FORM")
    if forced is None:
        return features, None
    if forced not in _LACKING:
        raise UserError(f"HEADWAY_FORM={forced} is not an instruction set of the engine; {nearest(forced, _LACKING)}")
    reduced = {name: has and not name.startswith(_LACKING[forced]) for name, has in features.items()}
    native = _instruction_set(features)
    if _instruction_set(reduced) != forced:
        raise UserError(
            f"HEADWAY_FORM={forced}: this processor has at most {native}; use that or a lesser one, or unset "
            "HEADWAY_FORM"
        )
    return reduced, None if native == forced else ",".join(
        f"{'+' if has else '-'}{n}" for n, has in sorted(reduced.items())
    )


def _instruction_set(features: dict[str, bool]) -> str:
    """The best products for a processor with these features: amx, vnni, avx2 or portable."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "portable"
    if _is_wide(features) and features.get("amx-tile") and features.get("amx-int8"):
        return "amx"
    if _is_wide(features) or features.get("avxvnni"):
        return "vnni"
    return "avx2" if features.get("avx2") else "portable"


def _is_wide(features: dict[str, bool]) -> bool:
    """Whether integer products use registers of 64 bytes."""
    return bool(features.get("avx512vnni") and features.get("avx512vl"))


FEATURES, CPU_FEATURES = _features()
INSTRUCTIONS = "vnni" if _instruction_set(FEATURES) == "amx" else _instruction_set(FEATURES)  # for integer vectors
WIDE = INSTRUCTIONS == "vnni" and _is_wide(FEATURES)
# A process must request the matrix unit from the system.
HAS_MATRIX_UNIT = (
    _instruction_set(FEATURES) == "amx"
    and platform.system() == "Linux"
    and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0
)
HAS_BF16_UNIT = HAS_MATRIX_UNIT and FEATURES.get("amx-bf16", False)
INSTRUCTION_SET = "amx" if HAS_MATRIX_UNIT else INSTRUCTIONS
