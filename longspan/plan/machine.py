"""The machine as the planner sees it: bytes on every tier, and rates. `pipeline/machine.py` looks at the real one."""

from dataclasses import dataclass, replace

from longspan.utils.errors import ConfigError

# Dense bf16 peaks in FLOP/s by a part of the device's name; the first that fits counts. Source: vendor's data sheets.
PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
)
# What a process finds free on a device of this name, in GiB. Source: one of each, and vendors' data sheets less 3 %.
DEVICE_GIB = {"B200": 175, "H200": 139, "H100": 78, "A100": 77, "L40S": 43}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Bytes that this process may take, and rates in units a second.

    `device_bytes` is what can be allocated on the device. On a CPU it is main memory and `shared` is true: device and
    host are then one and the same. `locked_bytes` is the limit of page-locked memory, None where there is none.
    `peak_flops` is None for a device that is not in the table.
    `link_bytes_per_second` is what a rank sends to others of its node; not measured yet.
    """

    device: str
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    locked_bytes: int | None = None
    peak_flops: float | None = None
    copy_bytes_per_second: float = 50e9
    disk_bytes_per_second: float = 2e9
    link_bytes_per_second: float = 250e9
    shared: bool = False

    def part(self, ranks: int) -> "Machine":
        """What each of `ranks` processes of this machine may take, one device each; on a CPU they share that too."""
        return replace(
            self,
            device_bytes=self.device_bytes // ranks if self.shared else self.device_bytes,
            host_bytes=self.host_bytes // ranks,
            disk_bytes=self.disk_bytes // ranks,
            locked_bytes=None if self.locked_bytes is None else self.locked_bytes // ranks,
            disk_bytes_per_second=self.disk_bytes_per_second / ranks,
        )

    def limited(self, *, device_gib: float | None = None, host_gib: float | None = None) -> "Machine":
        """The same machine with other limits, for one that shows less or more memory than may be used."""
        return replace(
            self,
            device_bytes=self.device_bytes if device_gib is None else int(device_gib * 2**30),
            host_bytes=self.host_bytes if host_gib is None else int(host_gib * 2**30),
        )


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak of a device by its name, in FLOP/s; None when it is not known."""
    return next((peak for name, peak in PEAKS if name in device), None)


def known_machine(name: str) -> Machine:
    """One device of a known name, with as much of its host as is usual for each: 128 GiB of memory, 500 GiB of disk.

    Raises `ConfigError` with the known names.
    """
    if name not in DEVICE_GIB:
        raise ConfigError(
            "plan.machine",
            f"no machine {name!r} (have: {', '.join(DEVICE_GIB)})",
            fix="choose one of these, or leave it out to plan for this machine",
        )
    return Machine(
        device=name,
        device_bytes=DEVICE_GIB[name] * 2**30,
        host_bytes=128 * 2**30,
        disk_bytes=500 * 2**30,
        peak_flops=peak_flops(name),
    )
