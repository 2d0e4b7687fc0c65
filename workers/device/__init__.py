"""The device process: it owns one device, loads models and runs records. It knows nothing of Celery or Redis.

Its other end is `workers.device_client`, in the Celery process; what passes between the two is in `protocol`.
"""
