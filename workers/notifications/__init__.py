"""Notifications: POST requests that tell a URL how a job ended."""
