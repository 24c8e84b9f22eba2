"""SIGTERM at any moment of any stage ends a run, of one process or of a job; the same command goes on to the same
table.
"""

import random
import re
import shutil
import time

import pytest

from selftrain_jax.training.checkpoint import saved_steps
from tests.distributed.test_preemption import metadata, wait_for_answers  # noqa: F401

STAGES = {
    "lab/world": 0.1,
    "lab/base": 3,
    "lab/other": 2,
    "evaluate/base": 0.5,
    "sample/self": 2,
    "sample/other": 0.5,
    "audit/real": 0.02,
    "subset/self-0": 0.02,
    "train/self-0": 2,
    "train/other-0": 2,
    "report": 0.5,
}
"""And the longest time in seconds after which the signal comes, some as short as the stage."""
SAVED = r"selftrain: stopped: SIGTERM came; step (\d+) of .+ is saved, the same command goes on"
LEFT = r"selftrain: stopped: SIGTERM came during (.+); the same command goes on from what is saved"


def stopped(err):
    """The line that says why the process ended; that there is one and no other."""
    found = [line for line in err.splitlines() if line.startswith("selftrain: stopped: ")]
    assert len(found) == 1 and "Traceback" not in err, err[-3000:]
    return found[0]


@pytest.mark.large
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_at_random_moments_of_every_stage(finished, selftrain, hold, tmp_path, count):
    """It goes to the first process, to the last, or to all."""
    chance = random.Random(count)
    workdir = tmp_path / "run"

    def start(held=None):
        if count == 1:
            return [selftrain.start("run", workdir, hold=held)]
        return selftrain.start_job(count, "run", workdir, holds={0: held})

    def stop(stage, told, delay):
        """Stops the job `delay` seconds after the stage is about to begin; right then, when `delay` is tiny."""
        shutil.rmtree(workdir / stage, ignore_errors=True)  # an earlier trial may have come so far
        held = hold(f"{stage}/started.json$")
        job = start(held)
        held.reached(job[0])
        if delay > 0.01:
            held.release()
            time.sleep(delay)
        for number in told:
            job[number].terminate()
        sent = time.monotonic()
        held.mark.unlink(missing_ok=True)
        ended = selftrain.ends(job)
        print(
            f"{count}: {stage} + {delay:.2f} s, to {[*told]}: {time.monotonic() - sent:.1f} s, "
            f"{[(code, err.splitlines()[-1:]) for code, _, err in ended]}"
        )
        return ended

    for trial, (stage, longest) in enumerate(STAGES.items()):
        told, delay = [[0], [count - 1], range(count)][trial % 3], chance.uniform(0, longest)
        ended = stop(stage, told, delay)
        while all(code == 0 for code, *_ in ended):  # the run was faster
            shutil.rmtree(workdir / "report")
            delay /= 2
            ended = stop(stage, told, delay)
        for code, _, err in ended:
            assert code == 143, err[-3000:]
            assert re.fullmatch(f"{SAVED}|{LEFT}", stopped(err))
    ended = selftrain.ends(start())
    assert [code for code, *_ in ended] == [0] * count, ended[0][2][-3000:]
    assert selftrain.table(ended[0][1]) == selftrain.table(finished[1])
    if count == 1:
        assert selftrain.report(workdir) == selftrain.report(finished[0])


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.large)])
def test_a_notice_of_the_cloud_saves_the_step(selftrain, hold, copy_of, metadata, count):  # noqa: F811
    """It comes to the machine of the last process."""
    address, values, asked = metadata
    workdir = copy_of("lab", "sample", "audit", "subset")
    folder = workdir / "train" / "self-0" / "checkpoints"
    told, held = {"GCE_METADATA_HOST": address}, hold("train/self-0/checkpoints/4$")
    if count > 1:
        job = selftrain.start_job(count, "train", workdir, "--config.train.epochs=400", holds={0: held}, **told)
    else:
        job = [selftrain.start("train", workdir, "--config.train.epochs=400", hold=held, **told)]
    held.reached(job[0])
    for answer in ("NONE", "TERMINATE_ON_HOST_MAINTENANCE"):  # what is there from the start is no news
        values["maintenance-event"] = answer
        wait_for_answers(asked, ("maintenance-event", answer), count)
    held.release()
    for code, _, err in selftrain.ends(job):
        assert code == 143, err[-3000:]
        assert "selftrain: the metadata server says maintenance-event: TERMINATE_ON_HOST_MAINTENANCE" in err
        assert saved_steps(folder)[-1] == int(re.fullmatch(SAVED, stopped(err))[1])
