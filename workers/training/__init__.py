"""Fine-tuning: the controller in the Celery process, and the trainer processes that it starts."""
