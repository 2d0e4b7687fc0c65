"""Entry point of a training process: `python -m workers.training.trainer RUN_CONFIG`."""

import sys
import traceback
from pathlib import Path

from common.errors import CodedError, ModelError, UsageError
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.control_socket import ControlSocket


def main(path: str) -> int:
    """Train as configured and report the result to the Celery process; return the exit status."""
    config = TrainingRunConfig.read(Path(path))
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not config.cuda)
    control = ControlSocket(config.socket, state.process_index)
    from workers.disk_space import is_disk_full
    from workers.inference.core.device_errors import is_out_of_memory
    from workers.training.trainer.callbacks import TrainingStopped
    from workers.training.trainer.train import train

    try:
        control.send_from_main_process("done", result=train(config, control))
        return 0
    except TrainingStopped:
        return 0
    except CodedError as error:
        cause = "model" if isinstance(error, ModelError) else "worker"
        control.send("failed", error=cause, code=error.code, message=error.message)
    except UsageError as error:
        control.send("failed", error="model", code="bad_examples", message=str(error))
    except Exception as error:  # noqa: BLE001 - the boundary of the process: every error is reported
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            control.send("out_of_memory")
        elif is_disk_full(error, Path(config.work_dir)):
            message = f"No disk space for a checkpoint or the model in {config.work_dir}: {message}"
            control.send("failed", error="worker", code="disk_full", message=message[:1000])
        elif not isinstance(error, torch.AcceleratorError):  # a fault of the device: the controller restarts it
            control.send("failed", error="model", code="training_error", message=message[:1000])
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
