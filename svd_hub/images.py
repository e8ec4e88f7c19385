"""Images as arrays: what a user hands in, checked, and the steps from its grid to a network's. No torch at import.

The patient's axes are z, y, x (0, 1, 2); a direction is the letter of the side an axis runs to: Superior or Inferior,
Anterior or Posterior, Left or Right. An orientation has one for each axis of an array.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import VolumeError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

WORDS = {"S": "superior", "I": "inferior", "A": "anterior", "P": "posterior", "L": "left", "R": "right"}
_PATIENT = {"S": 0, "I": 0, "A": 1, "P": 1, "L": 2, "R": 2}
_DHW = {"D": "S", "H": "P", "W": "L"}
ORIENTATIONS = "one letter of S/I, one of A/P, one of L/R, in the order of the axes, such as 'SPL'"


def patient_axes(orientation: object) -> tuple[int, ...]:
    """Return for each axis of an orientation which of z, y, x it runs along; () where it is none."""
    if not isinstance(orientation, str):
        return ()
    axes = tuple(_PATIENT.get(letter, -1) for letter in orientation)
    return axes if sorted(axes) == [0, 1, 2] else ()


def in_order(orientation: str) -> str:
    """Return an orientation with its axes in the order z, y, x, none turned."""
    return "".join(sorted(orientation, key=_PATIENT.__getitem__))


# ---- what a user hands in ------------------------------------------------------------------------------------------


def refuse_unread(image: Any) -> None:
    """Raise `VolumeError` for a path, or for an image of nibabel, which are to be read first."""
    if isinstance(image, str | os.PathLike):
        raise VolumeError(
            f"a path ({os.fspath(image)!r}) is not allowed; allowed: what was read from it. "
            "Next: SimpleITK.ReadImage(path) for volumes, PIL.Image.open(path) for pictures"
        )
    if hasattr(image, "dataobj"):
        raise VolumeError(
            f"a nibabel image ({type(image).__name__}) is not allowed; allowed: a SimpleITK image or an array. Next: "
            "SimpleITK.ReadImage(path), or image.get_fdata() with spacing= and orientation= from its affine"
        )


def read_volume(
    image: Any, spacing: Sequence[float] | None, axes: str, orientation: str | None
) -> tuple[np.ndarray, Sequence[float] | None, str, bool]:
    """Return an array with three axes, the spacing of each, its orientation, and whether it is the image's own.

    Raises:
        VolumeError: no such image, or one that contradicts what was said of it.
    """
    import numpy as np

    own = hasattr(image, "GetSpacing")
    if own:
        image, has, letters = _read_simpleitk(image)
        if axes != "DHW" or orientation not in (None, letters):
            raise VolumeError(
                f"axes={axes!r}, orientation={orientation!r} are not allowed with a SimpleITK image, which brings its "
                f"own ({letters} for z, y, x). Next: leave them out"
            )
        if spacing is not None and not np.allclose(_lengths(spacing), has, rtol=1e-3, atol=0):
            raise VolumeError(
                f"spacing={spacing!r} is not allowed: the image's own is {has} mm (z, y, x). Next: leave it out, or "
                "call image.SetSpacing where the image is wrong"
            )
        spacing = has
    else:
        letters = _orientation_of_array(axes, orientation)
    array = np.asarray(image)
    if array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise VolumeError(
            f"array {array.shape} {array.dtype} is not allowed; allowed: three axes, real numbers, not empty"
        )
    _check_finite(array)
    return array, None if spacing is None else _lengths(spacing), letters, own


def _read_simpleitk(image: Any) -> tuple[np.ndarray, tuple[float, ...], str]:
    """Return the array, its spacing and orientation; of an oblique image, the axes of the patient it is nearest to."""
    if (found := (image.GetDimension(), image.GetNumberOfComponentsPerPixel())) != (3, 1):
        raise VolumeError(
            f"image of {found[0]} dimensions and {found[1]} components is not allowed; allowed: 3D and scalar"
        )
    import SimpleITK

    letters = SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    return SimpleITK.GetArrayViewFromImage(image), tuple(reversed(image.GetSpacing())), letters[::-1]


def _orientation_of_array(axes: str, orientation: str | None) -> str:
    if orientation is not None:
        if axes != "DHW" or not patient_axes(orientation):
            raise VolumeError(
                f"orientation={orientation!r} with axes={axes!r} is not allowed; allowed: {ORIENTATIONS}, instead of "
                "axes"
            )
        return orientation
    if not isinstance(axes, str) or sorted(axes) != ["D", "H", "W"]:
        raise VolumeError(f"axes={axes!r} is not allowed; allowed: a permutation of 'DHW'")
    return "".join(_DHW[axis] for axis in axes)


def _lengths(spacing: Sequence[float]) -> tuple[float, ...]:
    import numpy as np

    try:
        given = np.asarray(spacing, dtype=float)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.shape != (3,) or not (np.isfinite(given) & (given > 0)).all():
        raise VolumeError(
            f"spacing={spacing!r} is not allowed; allowed: three positive numbers in mm, one per axis of the array"
        )
    return tuple(given.tolist())


def _check_finite(array: np.ndarray) -> None:
    import numpy as np

    if array.dtype.kind != "f":
        return
    limit = float(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        low, high = array.min(), array.max()
    if not (low >= -limit and high <= limit):  # NaN is neither
        raise VolumeError(
            "the image holds NaN or infinite values; allowed: finite numbers. Next: clean it at the source"
        )


def read_colours(image: Any, *, video: bool) -> np.ndarray:
    """Return an array (D, H, W, 3), or (1, H, W, 3) of a picture; a grey one has three equal colours.

    Raises:
        VolumeError: no picture or clip of 0..255.
    """
    import numpy as np

    if getattr(image, "mode", "RGB") not in ("RGB", "L"):  # a palette's numbers are no grey values
        raise VolumeError(f"picture of mode {image.mode!r} is not allowed. Next: picture.convert('RGB')")
    array = np.asarray(image)
    what, allowed = ("clip", "(D, H, W, 3) or (D, H, W)") if video else ("image", "(H, W, 3) or (H, W)")
    grey = 3 if video else 2
    fits = array.ndim == grey + 1 and array.shape[-1] == 3
    if array.ndim == grey and not (video and array.shape[-1] == 3):  # that would be one picture, not three columns
        fits, array = True, np.broadcast_to(array[..., None], (*array.shape, 3))
    if not fits or array.dtype.kind not in "uif" or not array.size:
        raise VolumeError(f"{what} {array.shape} {array.dtype} is not allowed; allowed: {allowed}, 0..255")
    if array.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255) or (array.dtype.kind == "f" and 0 < high <= 1):
            raise VolumeError(
                f"values {low:g}..{high:g} are not allowed; allowed: 0..255 (multiply 0..1 by 255; for CT and MR, a "
                "Preprocess of their modality)"
            )
    return array if video else array[None]


# ---- from the image's grid to the network's ------------------------------------------------------------------------


def turned(array: np.ndarray, now: str, want: str) -> tuple[np.ndarray, list[int]]:
    """Return a view of `array`, whose orientation is `now`, in orientation `want`, and where its axes were before."""
    order = [patient_axes(now).index(axis) for axis in patient_axes(want)]
    steps = [1 if now[old] == letter else -1 for old, letter in zip(order, want, strict=True)]
    return array.transpose(order)[tuple(slice(None, None, step) for step in steps)], order


def centre(now: Sequence[int], want: Sequence[int]) -> tuple[slice, ...]:
    """Return the centre crop of sides `now` to `want`; a side that is no longer than wanted stays whole."""
    cut = [max(0, n - w) // 2 for n, w in zip(now, want, strict=True)]
    return tuple(slice(c, c + min(n, w)) for c, n, w in zip(cut, now, want, strict=True))


def sample(array: np.ndarray, size: Sequence[int], cut: Sequence[slice]) -> Tensor:
    """Return what trilinear interpolation of `array` to the sides `size` has at `cut`, float32.

    Voxel i of n becomes the place (i + 0.5) * n / size - 0.5, as torch's `align_corners=False` has it, within the
    image; the positions are computed in double precision. Only the voxels that `cut` needs are read, plane by plane
    in the order of memory, so that neither the array's float copy nor the rest of the result is ever made.
    """
    import numpy as np
    import torch

    if tuple(size) == array.shape:
        return torch.from_numpy(array[tuple(cut)].astype(np.float32, order="C"))
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    view = array.transpose(order)
    first, rows, columns = (_places(array.shape[axis], size[axis], cut[axis]) for axis in order)
    y, x = _reach(rows), _reach(columns)
    planes: dict[int, Tensor] = {}

    def plane(index: int) -> Tensor:
        if index not in planes:
            read = torch.from_numpy(view[index, y, x].astype(np.float32, order="C"))
            read = _between(_between(read, 0, rows, y.start), 1, columns, x.start)
            if len(planes) > 1:
                del planes[min(planes)]
            planes[index] = read
        return planes[index]

    out = torch.empty(len(first[0]), len(rows[0]), len(columns[0]))
    for low, high, weight, target in zip(*(part.tolist() for part in first), out, strict=True):
        torch.lerp(plane(low), plane(high), weight, out=target)
    return out.permute([order.index(axis) for axis in range(3)])


def _places(now: int, size: int, cut: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each output the voxel at or below its place, the one above, and the weight of that one."""
    import numpy as np

    places = ((np.arange(cut.start, cut.stop) + 0.5) * (now / size) - 0.5).clip(0, now - 1)
    low = np.floor(places).astype(np.int64)
    return low, np.minimum(low + 1, now - 1), places - low


def _reach(places: tuple[np.ndarray, np.ndarray, np.ndarray]) -> slice:
    return slice(int(places[0][0]), int(places[1][-1]) + 1)


def _between(plane: Tensor, axis: int, places: tuple[np.ndarray, np.ndarray, np.ndarray], start: int) -> Tensor:
    """Return a plane that begins at voxel `start` of its `axis`, interpolated along that axis."""
    import torch

    low, high, weight = (torch.from_numpy(part) for part in places)
    if len(low) == plane.shape[axis] and not weight.any():
        return plane
    shape = (-1, 1) if axis == 0 else (1, -1)
    below, above = (plane.index_select(axis, end - start) for end in (low, high))
    return torch.lerp(below, above, weight.float().view(shape))


def nearest(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return an array resized by its nearest voxels, the corners on the corners, as scipy's zoom of order 0 does."""
    import numpy as np

    steps = [(now - 1) / max(1, new - 1) for now, new in zip(array.shape, size, strict=True)]
    places = [np.floor(np.arange(new) * step + 0.5).astype(int) for new, step in zip(size, steps, strict=True)]
    return array[np.ix_(*places)]


def short_side(x: Tensor, side: int) -> Tensor:
    """Return pictures (N, 3, H, W) of 0..255 whose short side is `side` (bilinear, antialiased)."""
    import torch.nn.functional as F

    factor = side / min(x.shape[2:])
    size = [max(side, round(n * factor)) for n in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 255)


def fitted(x: Tensor, want: Sequence[int], pad: float) -> Tensor:
    """Crop and pad (1, C, D, H, W) about its centre."""
    import torch.nn.functional as F

    x = x[:, :, *centre(x.shape[2:], want)]
    room = [w - n for n, w in zip(x.shape[2:], want, strict=True)]
    return F.pad(x, [part for r in reversed(room) for part in (r // 2, r - r // 2)], value=pad)
