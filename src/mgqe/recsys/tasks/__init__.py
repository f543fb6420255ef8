"""What a model is trained for and judged by: item ranking, sequential recommendation, app-install prediction."""
