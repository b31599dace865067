"""Does this CPU have instructions for products of bfloat16 matrices? Without, they take tens of times longer."""

from pathlib import Path

FLAGS = ("avx512_bf16", "amx_bf16", "avx512bw", "avx_ne_convert", "bf16")
"""Of /proc/cpuinfo; one is enough. With AVX-512 alone libraries convert to float32 on the way, which costs little."""


def has_quick_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True also where the CPU does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), list(FLAGS))
    return any(flag in flags for flag in FLAGS)
