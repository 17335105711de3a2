"""Flow control: rate limits, calls at once and a circuit breaker, in one permit."""
