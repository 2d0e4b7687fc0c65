"""Fine-tuning in the Celery process: starts the trainer, follows it, uploads checkpoints. Never imports torch."""
