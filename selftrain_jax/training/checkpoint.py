"""Orbax checkpoints of a training run: parameters and optimizer state as separate items, so that either can be read."""

import contextlib
import pathlib
from typing import Any, Iterator

from jax.sharding import Mesh

from selftrain_jax.errors import InputError, one_line
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.converted import quiet_storage, restore_target
from selftrain_jax.models.gpt_neox import param_shardings
from selftrain_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run, newest last. Saving is asynchronous; `close` waits and raises what went wrong."""

    def __init__(self, directory: str | pathlib.Path, keep: int | None = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        # Orbax renames a finished checkpoint into place and removes older ones only afterwards.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        path = pathlib.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(path, options=options, item_names=("params", "training"))

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Starts saving `state` under its step number."""
        ocp = self._ocp
        items = {"params": state.params, "training": {"step": state.step, "opt_state": state.opt_state}}
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
        self._manager.save(int(state.step), args=args)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state, placed like `abstract` (`jax.ShapeDtypeStruct` with shardings); None when there is none.

        Raises:
          InputError: it is damaged.
        """
        ocp, step = self._ocp, self._manager.latest_step()
        if step is None:
            return None
        items = {"params": abstract.params, "training": {"step": abstract.step, "opt_state": abstract.opt_state}}
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in items.items()})
        with _readable(self._manager.directory, step):
            restored = self._manager.restore(step, args=args)
        return TrainState(restored.training["step"], restored.params, restored.training["opt_state"])

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(
    directory: str | pathlib.Path, config: ModelConfig, mesh: Mesh | None = None, step: int | None = None
) -> dict[str, Any]:
    """The parameters of the newest (or the given) checkpoint, whatever mesh wrote them.

    They are spread over `mesh`, or returned as numpy arrays without one.

    Raises:
      InputError: there is no such checkpoint, or it is damaged.
    """
    import orbax.checkpoint as ocp

    path, steps = pathlib.Path(directory).absolute(), saved_steps(directory)
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"no checkpoint of step {step} in {path}; there are {', '.join(map(str, steps))}")
    target = restore_target(config, None if mesh is None else param_shardings(config, mesh))
    args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
    with ocp.CheckpointManager(path, item_names=("params", "training")) as manager, _readable(path, step):
        return manager.restore(step, args=args).params


def saved_steps(directory: str | pathlib.Path) -> list[int]:
    """The steps of the checkpoints in `directory`, newest last; `InputError` when there are none."""
    import orbax.checkpoint as ocp

    path = pathlib.Path(directory).absolute()
    if not path.is_dir():
        raise InputError(f"checkpoint directory not found: {path}; train first")
    with ocp.CheckpointManager(path, item_names=("params", "training")) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"no checkpoint in {path}; train first")
    return steps


@contextlib.contextmanager
def _readable(path: pathlib.Path, step: int) -> Iterator[None]:
    try:
        with quiet_storage():
            yield
    except Exception as e:  # Orbax and its storage layer raise many kinds
        raise InputError(
            f"checkpoint {path / str(step)} cannot be read ({one_line(e)[:200]}); if its files are damaged, delete that "
            "folder to go back to the checkpoint before it, or train again"
        ) from e
