"""Fine-tuning: `turn` runs a train chunk in the Celery process; `accelerate launch -m workers.training` is its child.

Modules that the Celery process imports (`turn`, `launch`, `order`, `checkpoints`) never import torch.
"""
