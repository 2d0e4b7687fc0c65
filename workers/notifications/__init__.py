"""Notifications: POST requests to the URLs of jobs that have ended."""
