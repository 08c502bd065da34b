"""One request's way: `gateway` admits it, `route` finds its project, `exchange` forwards it."""
