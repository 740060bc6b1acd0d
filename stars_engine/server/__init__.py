"""An HTTP server with OpenAI's API: only accepted segments leave the process."""
