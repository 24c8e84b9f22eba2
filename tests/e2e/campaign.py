"""Faults at random moments, many of them; docs/reliability.md holds the counts.

    python -m tests.e2e.campaign kill --tries=50
    python -m tests.e2e.campaign term --tries=50
    python -m tests.e2e.campaign pair --tries=20
    python -m tests.e2e.campaign full --tries=20      (as root: it mounts small file systems)
    python -m tests.e2e.campaign damage --tries=40    (kinds of files)

A try has survived when the command goes on and ends, to the bit, as an undisturbed run does; a fault that it cannot
survive it must refuse in one line.
"""

import argparse
import collections
import contextlib
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.e2e.conftest import Selftrain

selftrain = Selftrain()
MODELS = ("self-0", "real-0", "other-0")


def result(workdir: pathlib.Path, out: str) -> dict:
    """What equal runs have in common to the bit."""
    params = {
        f"{model}{name}": leaf.tobytes() for model in MODELS for name, leaf in selftrain.params(workdir, model).items()
    }
    weights = (workdir / "lab" / "base" / "model" / "model.safetensors").read_bytes()
    return {"table": selftrain.table(out), "report": selftrain.report(workdir), "weights": weights} | params


def ends(process: subprocess.Popen, seconds: float = 600) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def error(err: str) -> str:
    """The one line that a command leaves when it stops; "" where there is none. Orbax's threads log beside it."""
    lines = [line for line in err.splitlines() if line.startswith(("selftrain: error: ", "selftrain: stopped: "))]
    return lines[0] if len(lines) == 1 else ""


def whole(workdir: pathlib.Path) -> tuple[int, str, str]:
    return ends(selftrain.start("run", workdir))


class Campaign:
    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.random, self.count = folder, random.Random(seed), collections.Counter()
        start = time.monotonic()
        code, out, err = whole(folder / "reference")
        assert code == 0, err
        self.seconds = time.monotonic() - start
        self.reference = result(folder / "reference", out)

    def note(self, what: str, outcome: str, detail: str = "") -> None:
        self.count[what, outcome] += 1
        print(f"{what}: {outcome} {detail}", flush=True)

    def compare(self, what: str, workdir: pathlib.Path, code: int, out: str, err: str) -> None:
        """Notes whether the command that should end the run did, as the reference did."""
        if code:
            self.note(what, "FAILED", err[-1500:])
            return
        found = result(workdir, out)
        differs = [name for name in self.reference if found.get(name) != self.reference[name]]
        self.note(what, "DIFFERS" if differs else "survived", " ".join(differs))

    def signals(self, tries: int, sent: signal.Signals) -> None:
        """Runs that get the signal again and again, until they end: each start goes on for a random time first."""
        left, number = tries, 0
        while left:
            workdir, number, hits = self.folder / f"{sent.name}{number}", number + 1, []
            while True:
                process = selftrain.start("run", workdir)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.random.uniform(2, 0.5 * self.seconds) if left else 600)
                if process.poll() is None:
                    process.send_signal(sent)
                code, out, err = ends(process)
                if code == 0:
                    break
                if code == -sent or (code == 143 and error(err)):
                    done = sorted(workdir.glob("*/*/manifest.json"), key=lambda path: path.stat().st_mtime)
                    hits.append(str(done[-1].parent.relative_to(workdir)) if done else "start")
                    left -= 1
                else:
                    self.note(sent.name, "FAILED", f"code {code}: {err[-1500:]}")
                    break
            self.compare(sent.name, workdir, code, out, err)
            for hit in hits:
                self.note(f"{sent.name} after {hit}", "tried")
            shutil.rmtree(workdir)

    def pairs(self, tries: int) -> None:
        """The same command twice in one folder: one of them ends, the other is refused, or comes when all is done."""
        for i in range(tries):
            workdir = self.folder / f"pair{i}"
            first = selftrain.start("run", workdir)
            time.sleep(self.random.uniform(0, 1.1 * self.seconds) if i % 2 else self.random.uniform(0, 1))
            second = selftrain.start("run", workdir)
            done = selftrain.ends([first, second])
            refused = [found for found in done if found[0] == 2 and error(found[2])]
            good = [found for found in done if found[0] == 0]
            if not good or len(good) + len(refused) != 2:
                self.note("pair", "FAILED", str([(code, err[-800:]) for code, _, err in done]))
                continue
            self.compare(f"pair, {len(refused)} refused", workdir, *good[0])
            shutil.rmtree(workdir)

    def full(self, tries: int) -> None:
        """A file system that fills up at some point, then has room."""
        needed = sum(path.stat().st_size for path in (self.folder / "reference").rglob("*") if path.is_file())
        for i in range(tries):
            mount = self.folder / f"full{i}"
            mount.mkdir()
            size = self.random.randrange(100_000, needed)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", mount], check=True)
            try:
                code, _, err = whole(mount / "run")
                if code == 0:
                    self.note("full disk", "no fault", f"{size} bytes were enough")
                    continue
                if code == -signal.SIGKILL or not error(err):
                    self.note("full disk", "FAILED", f"{size} bytes, code {code}: {err[-1500:]}")
                subprocess.run(["mount", "-o", "remount,size=1G", mount], check=True)
                self.compare("full disk", mount / "run", *whole(mount / "run"))
            finally:
                subprocess.run(["umount", "-l", mount], check=True)

    def damage(self, tries: int) -> None:
        """Files of a finished run, one of a kind, with a byte flipped, and cut; what follows their stage is done again.

        What reads the damaged file must refuse it, naming it, or end as the reference did.
        """
        reference = self.folder / "reference"
        kinds = {}
        for path in sorted(reference.rglob("*")):
            if path.is_file() and path.stat().st_size:
                name = str(path.relative_to(reference))
                kinds.setdefault(re.sub(r"[0-9a-f]{32}|\d+", "N", name).replace("other", "self"), name)
        order = "lab sample audit subset train evaluate report".split()
        for kind, name in self.random.sample(sorted(kinds.items()), min(tries, len(kinds))):
            for how in ("flipped", "cut"):
                workdir = self.folder / "damage"
                shutil.copytree(reference, workdir)
                path = workdir / name
                data = bytearray(path.read_bytes())
                if how == "flipped":
                    data[len(data) // 2] ^= 0x10
                else:
                    del data[len(data) // 2 :]
                path.write_bytes(data)
                if name.split("/")[0] in order:
                    for stage in order[order.index(name.split("/")[0]) + 1 :]:
                        shutil.rmtree(workdir / stage)
                code, out, err = whole(workdir)
                said = error(err)
                if code and said:
                    self.note(f"damaged, {how}", "refused", f"{kind}: {code} {said[:300]}")
                elif code:
                    self.note(f"damaged, {how}", "FAILED", f"{kind}: {code} {err[-700:]}")
                else:
                    self.compare(f"damaged, {how}", workdir, code, out, f"{kind} {err}")
                    print("   ", kind, flush=True)
                shutil.rmtree(workdir)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("kill", "term", "pair", "full", "damage"))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(pathlib.Path(name), arguments.seed)
        print(f"an undisturbed run takes {campaign.seconds:.0f} s", flush=True)
        if arguments.kind in ("kill", "term"):
            campaign.signals(arguments.tries, signal.SIGKILL if arguments.kind == "kill" else signal.SIGTERM)
        else:
            {"pair": campaign.pairs, "full": campaign.full, "damage": campaign.damage}[arguments.kind](arguments.tries)
        for (what, outcome), count in sorted(campaign.count.items()):
            print(f"{count:4} {what}: {outcome}")
    return int(any(outcome in ("FAILED", "DIFFERS") for _, outcome in campaign.count))


if __name__ == "__main__":
    sys.exit(main())
