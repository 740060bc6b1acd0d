"""`/v1/responses`, without state: nothing is stored, and requests carry the conversation."""
