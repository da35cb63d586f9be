"""CRC-32, the checksum of zip archives: by ISA-L, or by zlib where the package `isal` has no wheel.

Both give the same number; zlib takes ten times as long or more.
"""

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
