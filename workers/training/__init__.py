"""Fine-tuning: `turn` runs a train chunk in the Celery process; `accelerate launch -m workers.training` is its child.

What the Celery process imports (`turn`, and all that it imports) never imports torch.
"""
