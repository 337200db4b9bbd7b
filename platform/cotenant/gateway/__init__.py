"""The HTTP door: OpenAI's routes and mockups over a `Backend`, with keys, limits, metrics and logs. No Ray."""
