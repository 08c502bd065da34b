"""Ready text for tools and operators: `text` fills a template with the values of `callers` or `operators`."""
