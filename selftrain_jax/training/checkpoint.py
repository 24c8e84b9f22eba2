"""Orbax checkpoints of a training run: parameters and optimizer state as separate items, so that either can be read."""

import contextlib
import itertools
import os
import pathlib
import warnings
from typing import Any, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError, InputWarning, PeerLost, RunStopped, one_line
from selftrain_jax.core.files import absolute, check_no_pattern, is_remote
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import param_shardings
from selftrain_jax.models.files.checksums import checksums, first_other
from selftrain_jax.models.files.converted import quiet_storage, restore_target, system_error
from selftrain_jax.training.step import TrainState

_ITEMS = ("params", "training", "checksums")
_GO_BACK = "delete that folder to go back to the checkpoint before it, or train again"


class CheckpointNotSaved(RunStopped):
    """A checkpoint could not be written; the message names the last one that was."""


class Checkpoints:
    """The checkpoints of one run, newest last. Saving is asynchronous; what goes wrong is raised by the next call.

    Every checkpoint holds checksums of its arrays, which are compared when it is read.
    """

    def __init__(self, directory: str | os.PathLike, keep: int | None = 2):
        import orbax.checkpoint as ocp

        self._ocp, self._keep = ocp, keep
        self._path = absolute(directory)
        check_no_pattern(self._path)
        self._open()

    def _open(self) -> None:
        # Orbax renames a finished checkpoint into place and removes older ones only afterwards.
        options = self._ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        self._manager = self._ocp.CheckpointManager(self._path, options=options, item_names=_ITEMS)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts saving `state` under its step number.

        Raises:
          CheckpointNotSaved: this checkpoint or the one before could not be written.

        Warns:
          InputWarning: earlier checkpoints were removed by someone else; this one is saved all the same.
        """
        ocp = self._ocp
        try:
            self.wait()
        except CheckpointNotSaved:
            if not self._removed():
                raise
        if self._removed():
            self._start_anew()
        items = {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state}}
        items["checksums"] = {name: checksums(item) for name, item in items.items()}
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
        with self._saving():
            self._manager.save(int(state.step), args=args)

    def _removed(self) -> bool:
        """Whether what was saved is no longer there; process 0 says so for all."""
        # A bucket has no empty folders: there, only a checkpoint can be missed.
        gone = not (is_remote(self._path) or self._path.is_dir())
        gone = gone or not all((self._path / str(step)).is_dir() for step in self.steps())
        return bool(multihost_utils.broadcast_one_to_all(np.array(gone)))

    def _start_anew(self) -> None:
        if not self._path.parent.is_dir():
            raise CheckpointNotSaved(
                f"checkpoints can no longer be saved: {self._path.parent} is gone, with those that were in it"
            )
        with contextlib.suppress(Exception):  # it may hold the error of a save that lost its folder
            self._manager.close()
        self._open()
        what = f"checkpoints in {self._path} were removed while training went on: only the coming ones will be there"
        warnings.warn(what, InputWarning, stacklevel=3)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state, placed like `abstract` (`jax.ShapeDtypeStruct` with shardings); None when there is none.

        A damaged checkpoint is moved out of the way, to `damaged-STEP` beside the folder, and the one before is taken.

        Raises:
          InputError: all of them are damaged.

        Warns:
          InputWarning: one is, and which is taken instead.
        """
        broken = None
        for step in reversed(self.steps()):
            try:
                state = self._restore(step, abstract)
            except InputError as e:
                broken = broken or (step, e)
                continue
            if broken:
                newer = [s for s in self.steps() if s > step]
                self._manager.close()
                if job.is_first():
                    for s in newer:
                        (self._path / str(s)).rename(self._aside(s))
                job.barrier("damaged checkpoints moved")
                self._open()
                warnings.warn(f"{broken[1]}. Going on from step {step}", InputWarning, stacklevel=2)
            return state
        if broken:
            raise broken[1]
        return None

    def _aside(self, step: int) -> pathlib.PurePath:
        """Where a damaged checkpoint goes; the same step may have been damaged before."""
        names = (f"damaged-{step}{extra}" for extra in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
        return next(path for name in names if not (path := self._path.with_name(name)).exists())

    def _restore(self, step: int, abstract: TrainState) -> TrainState:
        ocp = self._ocp
        items = {"params": abstract.params, "training": {"step": abstract.step, "opt_state": abstract.opt_state}}
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        with _readable(self._path, step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**args, checksums=ocp.args.StandardRestore())
            )
        for name in items:
            _compare(restored[name], restored.checksums[name], self._path / str(step), name)
        return TrainState(restored.training["step"], restored.params, restored.training["opt_state"])

    def wait(self) -> None:
        """Returns when everything is written; raises `CheckpointNotSaved`."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            with self._saving():  # what could not be saved may be said again
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if not (kind and issubclass(kind, PeerLost)):  # closing would wait for the one that is gone
            self.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            with quiet_storage():
                yield
        except Exception as e:  # Orbax, its storage layer and the system raise many kinds
            if lost := job.peer_lost(f"a checkpoint could not be saved in {self._path}", e):
                raise lost from e
            kept = sorted(int(p.name) for p in self._path.glob("*") if p.name.isdigit())
            way_out = "See that no other run writes there" if is_remote(self._path) else "Make room"
            reason = system_error(e).strerror or one_line(e)[-200:]
            raise CheckpointNotSaved(
                f"a checkpoint could not be saved in {self._path} ({reason}); last good checkpoint: "
                f"{f'step {kept[-1]}' if kept else 'none'}. {way_out}, then the same command goes on from there"
            ) from e


def restore_params(
    directory: str | os.PathLike, config: DecoderConfig, mesh: Mesh | None = None, step: int | None = None
) -> dict[str, Any]:
    """The parameters of the newest (or the given) checkpoint, whatever mesh wrote them.

    They are spread over `mesh`, or returned as numpy arrays without one. A process of a job may read alone, without a
    mesh or onto devices of its own; onto a mesh that spans processes all of them read together.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    import orbax.checkpoint as ocp

    path, steps = absolute(directory), saved_steps(directory, mesh)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"no checkpoint of step {step} in {path}; there are {', '.join(map(str, steps))}")
    target = restore_target(config, None if mesh is None else param_shardings(config, mesh))
    args = ocp.args.Composite(params=ocp.args.StandardRestore(target), checksums=ocp.args.StandardRestore())
    with _reader(path, mesh) as manager, _readable(path, step):
        restored = manager.restore(step, args=args)
    _compare(restored.params, restored.checksums["params"], path / str(step), "params")
    return restored.params


def saved_steps(directory: str | os.PathLike, mesh: Mesh | None = None) -> list[int]:
    """The steps of the checkpoints in `directory`, newest last; `InputError` when there are none.

    With a `mesh` that spans processes, all of them must ask.
    """
    path = absolute(directory)
    if not path.is_dir():
        raise InputError(f"checkpoint directory not found: {path}; train first")
    with _reader(path, mesh) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"no checkpoint in {path}; train first")
    return steps


def _reader(path: pathlib.PurePath, mesh: Mesh | None):
    """A checkpoint manager of this process alone, if the mesh lies in it; else of all, which wait for each other."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(create=False)
    if jax.process_count() > 1 and is_local(mesh):
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"own{me}")
        options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(path, options=options, item_names=_ITEMS)


def _compare(tree: Any, expected: Any, path: pathlib.PurePath, what: str) -> None:
    if name := first_other(tree, expected):
        raise InputError(f"checkpoint {path} is damaged: {what}{name} is not what was saved; {_GO_BACK}")


@contextlib.contextmanager
def _readable(path: pathlib.PurePath, step: int) -> Iterator[None]:
    try:
        with quiet_storage():
            yield
    except Exception as e:  # Orbax and its storage layer raise many kinds
        raise InputError(
            f"checkpoint {path / str(step)} cannot be read ({one_line(e)[:200]}); if its files are damaged, {_GO_BACK}"
        ) from e
