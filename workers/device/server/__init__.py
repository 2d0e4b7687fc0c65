"""The device process: owns one device, keeps models loaded, runs chunks. Imports neither Celery nor Redis."""
