"""transformers: loading, saving and the 4-bit cache. Importing this registers quant_method "lowbit"."""

from .cache import CacheHook, Int4Cache, Int4Layer
from .config import LowbitConfig
from .fused import fuse, unfuse
from .fused_cache import FusedCache
from .model import attach, install_runtime, save_pretrained
from .quantizer import LowbitQuantizer

__all__ = [
    "CacheHook", "FusedCache", "Int4Cache", "Int4Layer", "LowbitConfig", "LowbitQuantizer", "attach", "fuse",
    "install_runtime", "save_pretrained", "unfuse",
]
