"""Tasks, one file each; the file name is the key. A task trains (build -> Task) or measures (measure -> dict)."""
