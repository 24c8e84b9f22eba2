"""What the devices send each other in a compiled program, read from its text (HLO, as XLA prints it)."""

import collections
import dataclasses
import math
import re

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(-start)?\(")
_SENT = re.compile(r' = (.*?) send\(.*_xla_megascale_transfer_type="(\w+)"')
_CALLED = re.compile(r"(condition|body|calls|to_apply|branch_computations|true_computation|false_computation)=")
_NAME = re.compile(r"%[\w.\-]+")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_INTEGER = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind in one run of a program: how many, and the bytes that each device receives by them, when
    they go round a ring (of n devices, an all-gather gives each (n - 1) / n of its result, an all-reduce twice that).
    """

    count: int = 0
    received: float = 0.0


BETWEEN = " between slices"
"""End of the kinds of what goes from TPU slice to TPU slice, by way of the hosts."""


def traffic(text: str, devices: int, slices: int = 1) -> dict[str, Traffic]:
    """By kind of collective, of a program for `devices` in TPU `slices`. What a loop holds counts as often as
    its bound says: the largest number in its condition, so that one that may stop early counts as if it did not."""
    bodies = _computations(text)
    found: dict[str, Traffic] = collections.defaultdict(Traffic)

    def visit(name: str, times: int, fused: set[str] | None) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                # Parts of one collective that runs beside several fusions all carry its channel.
                channel = re.search(r"channel_id=(\d+)", line)
                if fused is None or channel is None or channel[1] not in fused:
                    kind, received = _received(match, line, name, devices)
                    found[kind].count += times
                    found[kind].received += times * received
                if fused is not None and channel:
                    fused.add(channel[1])
                continue
            if match := _SENT.search(line):
                size = _bytes(*_SHAPE.findall(match[1])[0])
                kind = match[2].lower().replace("_", "-")
                found[kind + BETWEEN].count += times
                found[kind + BETWEEN].received += times * size * _share(kind, slices)
                continue
            if " async-done(" in line or " async-update(" in line:  # counted where it starts
                continue
            called = _called(line)
            if "body" in called:
                bounds = [int(n) for inner in bodies.get(called["condition"][0], ()) for n in _INTEGER.findall(inner)]
                for part in ("condition", "body"):
                    visit(called[part][0], times * max(bounds, default=1), fused)
            elif " fusion(" in line:
                for inner in called.get("calls", ()):
                    visit(inner, times, channels if fused is None else fused)
            else:
                for inner in (i for names in called.values() for i in names):
                    visit(inner, times, fused)

    channels: set[str] = set()
    visit(bodies["ENTRY"][0], 1, None)
    return dict(found)


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines; `ENTRY` -> the name of the first."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and (found := _NAME.search(line)):
            name = found[0]
            bodies[name] = []
            if line.startswith("ENTRY"):
                bodies["ENTRY"] = [name]
        elif line.startswith(" ") and name:
            bodies[name].append(line)
    return bodies


def _called(line: str) -> dict[str, list[str]]:
    out = {}
    for match in _CALLED.finditer(line):
        rest = line[match.end() :]
        out[match[1]] = _NAME.findall(rest[: rest.index("}")] if rest.startswith("{") else rest.split(",")[0])
    return out


def _received(match: re.Match, line: str, computation: str, devices: int) -> tuple[str, float]:
    kind = match[2]
    sizes = [_bytes(*shape) for shape in _SHAPE.findall(match[1])]
    # What starts an all-gather or a permutation gives its operand, its result and what it works with.
    size = sizes[1] if match[3] and kind in ("all-gather", "collective-permute") else sum(sizes)
    n = _group(line, devices)
    if kind == "all-reduce" and "all-reduce-scatter" in computation:  # of which each device keeps its own part only
        return "reduce-scatter", size * (n - 1) / n
    return kind, size * _share(kind, n)


def _share(kind: str, n: int) -> float:
    """Of the bytes of a result, how many each of `n` devices receives."""
    return {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}.get(kind, (n - 1) / n)


def _bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.prod(int(n) for n in dims.split(",") if n) * bits // 8


def _group(line: str, devices: int) -> int:
    """How many devices take part together: in lists of them, as `[groups,size]<=[...]`, or as axes of a mesh."""
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return lists[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return devices
