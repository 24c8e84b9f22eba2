"""What the vendors' data sheets say of the accelerators that runs are planned for and measured on."""

import dataclasses
import re

from selftrain_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device, as JAX counts them (a v4 or v5p chip is one).

    Attributes:
      kind: the start of its `jax.Device.device_kind`, without the vendor's name; "" where nothing but its memory is
        known.
      flops: dense bfloat16 operations per second.
      gigabytes: device memory, in 10^9 bytes for the A100, H100 and H200 and in GiB for TPUs, as they are sold.
      bandwidth: bytes per second from device memory; of TPUs alone.
      interconnect: bytes per second that a device can receive from its neighbours, by all of its links together; of
        TPUs alone (half of what Google's documentation calls bidirectional).
      network: bytes per second that a device can receive from another slice by the data center's network: of v5e and
        v6e what Google's documentation says of a pod, by its 256 chips; of v4 and v5p assumed, a quarter of a host's
        200 Gbit/s.
      measured: bytes of memory that it is said to have instead; 0 for those of the data sheet.
      compute_capability: of GPUs, as NVIDIA counts it.
      memory: the memory in bytes.
      platform: what JAX calls it.
    """

    kind: str
    flops: float
    gigabytes: int
    bandwidth: float = 0.0
    interconnect: float = 0.0
    network: float = 0.0
    measured: int = 0
    compute_capability: float = 8.0

    @property
    def memory(self) -> int:
        return self.measured or self.gigabytes * (2**30 if self.platform == "tpu" else 10**9)

    @property
    def platform(self) -> str:
        return "tpu" if self.kind.startswith("TPU") else "gpu"


ACCELERATORS: dict[str, Accelerator] = {
    "A100-40": Accelerator("A100", 312e12, 40),
    "A100-80": Accelerator("A100", 312e12, 80),
    "H100": Accelerator("H100", 989e12, 80, compute_capability=9.0),
    "H200": Accelerator("H200", 989e12, 141, compute_capability=9.0),
    "v4": Accelerator("TPU v4", 275e12, 32, 1228e9, 300e9, 6.25e9),
    "v5e": Accelerator("TPU v5 lite", 197e12, 16, 819e9, 200e9, 3.125e9),
    "v5p": Accelerator("TPU v5", 459e12, 95, 2765e9, 600e9, 6.25e9),
    "v6e": Accelerator("TPU v6", 918e12, 32, 1638e9, 400e9, 12.5e9),
}

_KINDS = {"H100 PCIe": 756e12, "TPU v5e": 197e12, **{a.kind: a.flops for a in ACCELERATORS.values()}}
PEAK_FLOPS: dict[str, float] = dict(sorted(_KINDS.items(), key=lambda item: -len(item[0])))
"""Dense bfloat16 operations per second of one device, by the start of its kind; longer starts come first."""


def memory_bytes(text: str) -> int:
    """Of "24GiB" or "80GB"; `InputError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(GiB|GB)", text.strip())
    if not found or not (count := int(float(found[1]) * (2**30 if found[2] == "GiB" else 10**9))):
        raise InputError(f"--memory={text!r} must be the memory of one device, such as 24GiB or 80GB")
    return count


def accelerator(name: str) -> Accelerator:
    """The named one; `InputError` listing the names when there is none."""
    try:
        return ACCELERATORS[name]
    except KeyError:
        raise InputError(f"accelerator {name!r} is unknown; choose one of {', '.join(ACCELERATORS)}") from None
