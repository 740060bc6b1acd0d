"""What threads of the engine share: how they give way to others, and how they end."""
