"""What watches a run from inside Trainer: progress out, stops and checkpoints in, and an end to losses gone wrong."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from common.errors import ModelError
from common.models.checkpoints import checkpoint_at_step, mark_complete
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.metrics import eval_metrics

#: Seconds between two messages about steps.
_PROGRESS_SECONDS = 0.5
#: State of the random numbers at the beginning of the epoch, beside that of transformers at the checkpoint itself.
_EPOCH_RNG = "epoch_rng.pt"


class TrainingStopped(Exception):
    """Raised out of Trainer once a checkpoint is written for a worker that is stopping."""


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Tells of steps, losses and evaluations; ends a run whose loss is no number."""

    def __init__(self, link: ControlSocket) -> None:
        self._control_socket = link
        self._started = 0.0
        self._first_step = 0
        self._sent = 0.0
        self._latest: dict[str, float] = {}
        self._metrics: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count."""
        self._started, self._first_step = time.monotonic(), state.global_step
        self._send_progress(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell of the step, not of every one."""
        if time.monotonic() - self._sent > _PROGRESS_SECONDS:
            self._send_progress(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep the newest loss and metrics.

        Raises:
            ModelError: `loss_nan`.
        """
        logs = logs or {}
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise ModelError(
                    "loss_nan",
                    f"The loss became {logs[name]} at step {state.global_step}, learning rate {args.learning_rate:g}: "
                    "it cannot recover. Try a lower --learning-rate, more --warmup, or --dtype float32.",
                )
        self._latest |= {name: logs[name] for name in ("loss", "learning_rate") if name in logs}
        self._metrics |= eval_metrics(logs)
        if "loss" in logs or "eval_loss" in logs:
            self._send_progress(args, state)

    def _send_progress(self, args: Any, state: Any) -> None:
        self._sent = time.monotonic()
        seconds, done = self._sent - self._started, state.global_step - self._first_step
        rate = done / seconds if seconds > 0 else 0.0
        examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._control_socket.send_from_main_process(
            "progress",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 3),
            epochs=state.num_train_epochs,
            loss=self._latest.get("loss"),
            learning_rate=self._latest.get("learning_rate"),
            examples_per_second=round(rate * examples, 2),
            seconds_left=round((state.max_steps - state.global_step) / rate, 1) if rate else None,
            metrics=self._metrics,
        )


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Writes a checkpoint every so often and when the worker stops, and makes each one whole.

    All processes must do so at the same step: the first one decides, the others hear of it.
    """

    def __init__(self, link: ControlSocket, seconds: float, resumed: Path | None) -> None:
        self._control_socket = link
        self._seconds = seconds
        self._resumed = resumed
        self._written = time.monotonic()
        self._stopping = False
        self._epoch_rng: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the best checkpoint again: Trainer knows its path on the machine that wrote it, and forgets it here."""
        if self._resumed is not None and state.best_model_checkpoint is None and state.best_global_step:
            best = checkpoint_at_step(self._resumed, state.best_global_step)
            state.best_model_checkpoint = str(best) if best else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the examples come in the same order in all processes, and in a run that goes on from a checkpoint."""
        if self._resumed is not None:
            _restore_epoch_rng(self._resumed, within_epoch=bool((state.epoch or 0) % 1))
            self._resumed = None
        if args.world_size > 1:
            from accelerate.utils import synchronize_rng_states

            synchronize_rng_states(["torch"])
        self._epoch_rng = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask Trainer for a checkpoint when one is due."""
        due = time.monotonic() - self._written > self._seconds
        self._stopping = self._control_socket.stop_requested.is_set()
        if args.world_size > 1:
            self._stopping, due = _broadcast_flags(self._stopping, due, device=args.device)
        if self._stopping or due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the checkpoint whole.

        Raises:
            Stopped: it was the last one.
        """
        self._written = time.monotonic()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.world_size > 1:
            torch.distributed.barrier()  # the others write their random states after the first one is done
        if args.process_index == 0:
            torch.save({"begin": self._epoch_rng, "now": torch.get_rng_state()}, checkpoint / _EPOCH_RNG)
            mark_complete(checkpoint)
            self._control_socket.send("checkpoint", path=str(checkpoint), step=state.global_step)
        if self._stopping:
            raise TrainingStopped


def _broadcast_flags(*flags: bool, device: torch.device) -> list[bool]:
    """Return the flags as the first process has them."""
    told = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.broadcast(told, src=0)
    return [bool(flag) for flag in told.tolist()]


def _restore_epoch_rng(checkpoint: Path, *, within_epoch: bool) -> None:
    """Set the random numbers that draw the epoch's order: those of its beginning.

    Trainer restores those of the checkpoint after it has skipped the examples already seen, so that within an epoch
    others would be skipped than were seen.
    """
    states = torch.load(checkpoint / _EPOCH_RNG, weights_only=True)
    torch.set_rng_state(states["begin" if within_epoch else "now"])
