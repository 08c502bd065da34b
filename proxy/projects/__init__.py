"""State between requests: `project` holds tokens, `slots`, stored answers and `measures`."""
