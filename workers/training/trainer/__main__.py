"""A training process, started by `accelerate launch`: `python -m workers.training ORDER`."""

import sys
import traceback
from pathlib import Path

from common.errors import CodedError, ModelError, UsageError
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.control_socket import ControlSocket


def main(path: str) -> int:
    """Do what the order says; tell the Celery process how it ended. Return the exit status."""
    run_config = TrainingRunConfig.read(Path(path))
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not run_config.cuda)
    link = ControlSocket(run_config.socket, state.process_index)
    from workers.disk_space import is_disk_full
    from workers.inference.core.batches import is_out_of_memory
    from workers.training.trainer.callbacks import TrainingStopped
    from workers.training.trainer.train import train

    try:
        result = train(run_config, link)
        link.send_from_main_process("done", result=result)
        return 0
    except TrainingStopped:
        link.send_from_main_process("stopped")
        return 0
    except CodedError as error:
        kind = "model" if isinstance(error, ModelError) else "worker"
        link.send("failed", error=kind, code=error.code, message=error.message)
    except UsageError as error:
        link.send("failed", error="model", code="bad_examples", message=str(error))
    except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the Celery process is told
        traceback.print_exc()
        if is_out_of_memory(error):
            link.send("out_of_memory")
        elif is_disk_full(error, Path(run_config.work)):
            message = f"No room for a checkpoint or the model in {run_config.work}: {type(error).__name__}: {error}"
            link.send("failed", error="worker", code="disk_full", message=message[:1000])
        elif not isinstance(error, torch.AcceleratorError):  # that is the device's fault: another try may do
            message = f"{type(error).__name__}: {error}"[:1000]
            link.send("failed", error="model", code="training_error", message=message)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
