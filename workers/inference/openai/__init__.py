"""OpenAI batch requests: each is answered by the runner of its task, with what a response needs besides."""
