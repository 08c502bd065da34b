"""`exports` answers: `runs` finds a run by `calls` to Contentsquare, and `pins` keeps it for its caller.

`content` makes what is sent of the files in `storage`, with `text`; `rules` says which hosts may have files.
"""
