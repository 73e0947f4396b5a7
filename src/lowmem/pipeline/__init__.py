"""From YAML to runs, jobs and records; without PyTorch."""
