"""The tasks: item ranking, sequential recommendation and app-install prediction."""
