"""Trainer callbacks: progress messages, the end of a run with a non-finite loss, checkpoints and stop requests."""

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
#: File in a checkpoint with the random state at the beginning of the epoch; transformers stores only the latest.
_EPOCH_RNG = "epoch_rng.pt"


class TrainingStopped(Exception):
    """Raised through Trainer once a checkpoint is written for a stopping worker."""


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Sends steps, losses and evaluations; ends a run whose loss is not finite."""

    def __init__(self, control_socket: ControlSocket) -> None:
        self._control_socket = control_socket
        self._started = 0.0
        self._first_step = 0
        self._sent = 0.0
        self._latest: dict[str, float] = {}
        self._metrics: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start counting."""
        self._started, self._first_step = time.monotonic(), state.global_step
        self._send_progress(args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Send the step, at most every `_PROGRESS_SECONDS`."""
        if time.monotonic() - self._sent > _PROGRESS_SECONDS:
            self._send_progress(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep the latest loss and metrics.

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
    """Writes a checkpoint at an interval and when the worker stops, and marks each one complete.

    All processes must do so at the same step: process 0 decides, and broadcasts it to the others.
    """

    def __init__(self, control_socket: ControlSocket, seconds: float, resumed: Path | None) -> None:
        self._control_socket = control_socket
        self._seconds = seconds
        self._resumed = resumed
        self._written = time.monotonic()
        self._stopping = False
        self._epoch_rng: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the best checkpoint again: Trainer stored its path, which may be one on another machine."""
        if self._resumed is not None and state.best_model_checkpoint is None and state.best_global_step:
            best = checkpoint_at_step(self._resumed, state.best_global_step)
            state.best_model_checkpoint = str(best) if best else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the order of the examples the same in all processes, and in a run resumed from a checkpoint."""
        if self._resumed is not None:
            _restore_epoch_rng(self._resumed, within_epoch=bool((state.epoch or 0) % 1))
            self._resumed = None
        if args.world_size > 1:
            from accelerate.utils import synchronize_rng_states

            synchronize_rng_states(["torch"])
        self._epoch_rng = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint when one is due."""
        due = time.monotonic() - self._written > self._seconds
        self._stopping = self._control_socket.stop_requested.is_set()
        if args.world_size > 1:
            self._stopping, due = _broadcast_flags(self._stopping, due, device=args.device)
        if self._stopping or due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint complete.

        Raises:
            TrainingStopped: the worker is stopping.
        """
        self._written = time.monotonic()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.world_size > 1:
            torch.distributed.barrier()  # the others write their random states after process 0 is done
        if args.process_index == 0:
            torch.save({"begin": self._epoch_rng, "now": torch.get_rng_state()}, checkpoint / _EPOCH_RNG)
            mark_complete(checkpoint)
            self._control_socket.send("checkpoint", path=str(checkpoint), step=state.global_step)
        if self._stopping:
            raise TrainingStopped


def _broadcast_flags(*flags: bool, device: torch.device) -> list[bool]:
    """Return the flags of process 0."""
    values = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.broadcast(values, src=0)
    return [bool(flag) for flag in values.tolist()]


def _restore_epoch_rng(checkpoint: Path, *, within_epoch: bool) -> None:
    """Restore the random state that draws the order of the epoch: that of its beginning.

    Trainer restores the checkpoint's own state only after it skipped the examples already seen, and would otherwise
    skip others than were seen.
    """
    states = torch.load(checkpoint / _EPOCH_RNG, weights_only=True)
    torch.set_rng_state(states["begin" if within_epoch else "now"])
