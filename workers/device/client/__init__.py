"""The device process as the Celery process sees it: started, watched, restarted. Never imports torch."""
