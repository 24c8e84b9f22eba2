"""The shape of the device mesh, as a setting."""

import dataclasses
import math
import re

from selftrain_jax.core.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, "all that remain".

    Attributes:
      data: devices with rows of their own of a batch, and the same weights.
      fsdp: devices that share rows as `data` does and hold a part of the weights each.
      tensor: devices that share heads and feed-forward of every layer; best within one host.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        if sum(size == -1 for size in sizes.values()) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise InputError(f"mesh {sizes} must hold positive sizes, at most one of them -1 (all remaining devices)")

    @classmethod
    def parse(cls, text: str, where: str) -> "MeshConfig":
        """Of `data=1,fsdp=4,tensor=2`; axes that are left out have size 1. `where` begins the `InputError`."""
        sizes = dict.fromkeys(MESH_AXES, 1)
        for part in text.split(","):
            axis, _, size = part.partition("=")
            if axis not in sizes or not re.fullmatch("-1|[1-9][0-9]{0,4}", size):
                raise InputError(
                    f"{where}={text!r} must read like data=1,fsdp=4,tensor=2 (-1 for all remaining devices)"
                )
            sizes[axis] = int(size)
        return cls(**sizes)

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Concrete (data, fsdp, tensor) for `num_devices`; `InputError` when they do not multiply out."""
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            raise InputError(
                f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} does not fit {num_devices} device(s): "
                "the product must equal the device count (use -1 for one axis)"
            )
        return tuple(sizes)
