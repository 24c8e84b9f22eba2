"""One tensor of a Hugging Face checkpoint, against the leaf of `params` that it fills."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A checkpoint tensor: reshaped to `split` and transposed by `order`, it is (one layer of) the leaf at `path`."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        return tuple(self.split[axis] for axis in self.order)

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        # The safetensors writer reads raw memory and ignores strides.
        return np.ascontiguousarray(x.transpose(np.argsort(self.order))).reshape(self.shape)


def vector(*path: str, size: int) -> Tensor:
    """A bias or a scale."""
    return Tensor(path, (size,), (size,), (0,))


def linear(*path: str, rows: int, columns: int) -> Tensor:
    """A kernel, stored as `[out, in]` and ours as `[in, out]`."""
    return Tensor(path, (rows, columns), (rows, columns), (1, 0))
