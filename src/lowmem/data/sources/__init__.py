"""Where data comes from: one file per kind of source.

Each has

get(source, into, work, show) -> list of file names

It puts the source's files into the folder `into` (not yet verified; fetch.py does that) and returns their names.
`source` is an entry of data/sources.yaml, `work` an empty folder for scratch files that fetch.py removes, and
`show(done_bytes)` moves the progress line. It raises Failed with the reason alone: fetch.py adds what was tried.
OSError is left to fetch.py, which knows what a full disk means.
"""

KINDS = ("pip", "npm", "apt", "url", "hub", "folder")
