"""Memory and speed of training runs that are too large for this machine: counted without running, checked where possible."""
