"""One token kept fresh: `endpoint` fetches it, `answer` reads the answer, `lease` decides when."""
