"""Fine-tuning: the controller in the Celery process, and the trainer that `accelerate launch` starts."""
