"""A 64-bit perceptual hash of each thumbnail, for all eight flips and quarter turns at once.

The hash keeps the signs of the lowest frequencies of the cosine transform (pHash: C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Signs are taken against
zero and not against the median: a mirror then only turns the signs of odd frequencies over, and a
quarter turn swaps rows and columns besides, so that one transform gives the hashes of all eight.
All sums are whole numbers below 2^53, so they are exact on every machine and in any order.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # of a thumbnail
ORIENTATIONS = 8
_LOW = 9  # frequencies 0..8 along each side; (0, 0) is the mean, (8, 8) takes its place
_LUMA = np.array([299, 587, 114], dtype=np.float64)  # ITU-R BT.601, thousandths
_FREQUENCY = np.hypot(*np.mgrid[:_LOW, :_LOW])  # 0 takes the mean out
_LEAST_CONTRAST = 3.0  # standard deviation in levels
_LEAST_BENDING = (1.2, 0.03)  # of second differences: in levels, and of the contrast
_LEAST_AREA = 0.03  # share of the picture that bends; one dot on an even ground is like any other
_CHUNK = 2048
_Spectra = TypeVar("_Spectra", NDArray[np.float32], NDArray[np.float64])


@dataclass(frozen=True)
class Hashes:
    """`codes` uint64 [N, 8]: column k is the hash of the picture in orientation k (see `turned`).

    `hashable` bool [N]: whether the picture has enough structure for its hash to mean something.
    Flat and nearly flat pictures, and plain gradients, have not: they would all be alike.
    `spectra` float32 [N, 9, 9]: the transform itself, of unit length, frequencies raised as much
    as photographs lower them.
    """

    codes: NDArray[np.uint64]
    hashable: NDArray[np.bool_]
    spectra: NDArray[np.float32]

    def only(self, rows: NDArray[np.int64]) -> "Hashes":
        """Those of some rows."""
        return Hashes(self.codes[rows], self.hashable[rows], self.spectra[rows])


def turned(pictures: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Pictures [N, S, S, ...] in one of eight orientations.

    Bit 4: rows and columns swapped first; bit 2: then upside down; bit 1: then left to right.
    0 changes nothing.
    """
    if orientation & 4:
        pictures = pictures.swapaxes(1, 2)
    if orientation & 2:
        pictures = pictures[:, ::-1]
    if orientation & 1:
        pictures = pictures[:, :, ::-1]
    return pictures


def turned_spectra(spectra: _Spectra, orientation: int) -> _Spectra:
    """The transforms [N, 9, 9] of the pictures turned as `turned` does."""
    if orientation & 4:
        spectra = spectra.swapaxes(1, 2)
    alternate = (1 - 2 * (np.arange(_LOW) % 2)).astype(spectra.dtype)
    if orientation & 2:
        spectra = spectra * alternate[:, None]
    if orientation & 1:
        spectra = spectra * alternate
    return spectra


def luma(thumbs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma of pictures [N, H, W, 3] in thousandths of a level: whole numbers, [N, H, W]."""
    return thumbs.astype(np.float64) @ _LUMA


def hash_thumbs(thumbs: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> Hashes:
    """Hash thumbnails [M, 32, 32, 3], or the N of some rows; read in pieces."""
    rows = np.arange(len(thumbs)) if rows is None else rows
    codes = np.zeros((len(rows), ORIENTATIONS), dtype=np.uint64)
    hashable = np.zeros(len(rows), dtype=np.bool_)
    spectra = np.zeros((len(rows), _LOW, _LOW), dtype=np.float32)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        gray = luma(thumbs[rows[part]])
        spectrum = _COSINES @ gray @ _COSINES.T
        for k in range(ORIENTATIONS):
            codes[part, k] = _code(turned_spectra(spectrum, k))
        hashable[part] = _structured(gray / 1000)
        raised = spectrum * _FREQUENCY
        length = np.sqrt((raised**2).sum(axis=(1, 2), keepdims=True))
        spectra[part] = raised / np.maximum(length, 1)
    return Hashes(codes, hashable, spectra)


def _cosines() -> NDArray[np.float64]:
    """The low rows of the cosine transform [9, 32] in 4096ths, mirrored exactly."""
    x = np.arange(SIDE // 2) + 0.5
    half = np.rint(4096 * np.cos(np.pi / SIDE * np.outer(np.arange(_LOW), x)))
    signs = (-1.0) ** np.arange(_LOW)[:, None]
    return np.concatenate([half, signs * half[:, ::-1]], axis=1)


_COSINES = _cosines()


def _code(spectrum: NDArray[np.float64]) -> NDArray[np.uint64]:
    """The signs of 64 coefficients as one number each."""
    bits = (spectrum[:, :8, :8] > 0).reshape(-1, 64)
    bits[:, 0] = spectrum[:, 8, 8] > 0
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return packed


def structured_share(gray: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Share of each picture [N, S, S], in levels, that is more than an even tone or gradient."""
    least = _least_bending(gray)[:, None, None]
    shares: NDArray[np.floating[Any]] = (_bending(gray) >= least**2).mean(axis=(1, 2))
    return shares


def _least_bending(gray: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """What a gradient does not have, [N]: more than rounding, and seen beside the contrast."""
    absolute, relative = _LEAST_BENDING
    return np.asarray(np.maximum(absolute, relative * gray.std(axis=(1, 2))))


def _bending(gray: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean square of the second differences along both sides, [N, S - 2, S - 2]."""
    across = np.diff(gray, 2, axis=2)[:, 1:-1]
    down = np.diff(gray, 2, axis=1)[:, :, 1:-1]
    squares: NDArray[np.floating[Any]] = (across**2 + down**2) / 2
    return squares


def _structured(gray: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether pictures [N, 32, 32], in levels, show more than an even tone."""
    strong = np.sqrt(_bending(gray).mean(axis=(1, 2))) >= _least_bending(gray)
    contrast = gray.std(axis=(1, 2)) >= _LEAST_CONTRAST
    enough: NDArray[np.bool_] = strong & contrast & (structured_share(gray) >= _LEAST_AREA)
    return enough
