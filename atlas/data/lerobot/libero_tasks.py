"""Whether an instruction is one of the LIBERO benchmark's, without its package."""

from __future__ import annotations

import hashlib

# The beginnings of the SHA-256 of the 112 instructions of its 130 tasks; a test makes them of the package's own.
_DIGESTS = frozenset(
    (
        "01d5e1 02de9d 02f15a 0a91f8 0a9dc6 100273 112b7c 11d41c 11e2c5 12f791 1c7346 1ccbc4 1d600d 21b143 22f3a8 "
        "24b244 289571 28bb9b 28f14f 2a3da0 2bbb63 2bfccb 2cd84f 2d112b 2d3b6b 3029dc 313c1d 318b25 334bf2 369dbc "
        "37a511 38c455 392955 39b87b 3e827a 3f54cf 424d2d 4332cf 4844e3 4cfb3a 4d924e 504908 5167c0 548325 565459 "
        "5a8c05 5c90fc 6172fe 62903e 64fd2f 652634 720bb6 724038 72763d 72ff4c 75b992 77b616 7a10d2 7bfd2c 7c3a31 "
        "7e2a1c 80efb5 840539 84ae20 852862 8959d2 8bf2b2 8c7ac2 8d3beb 8e2871 920620 941990 94d883 968282 978237 "
        "98fef9 9b1b5e 9b63de 9bc00c 9bd1c7 9bfa1d 9f1272 a3a591 a5f3ad a78e12 a7a798 aafb15 ad9355 ae9434 b16a00 "
        "b8dee7 bfc137 c0d1b2 c0d6cc c732c2 c79c68 ca7bc3 d48c3c da5da5 dae7a0 dbbf90 e0d12a e1bde1 e54b8c e61b2e "
        "ec1ac4 ec6137 f33033 f487a7 fb511f fd363f ffca1c"
    ).split()
)


def is_libero_task(text: str) -> bool:
    """Whether a text is an instruction of LIBERO's, however it is written: `Open_the_microwave.` is."""
    return digest(text) in _DIGESTS


def digest(text: str) -> str:
    """What of an instruction is kept here."""
    words = " ".join(text.lower().replace("_", " ").rstrip(". ").split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:6]
