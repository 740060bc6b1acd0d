"""HTTP servers of language models and reward models: connections, retries and dialects."""
