"""From records to numbers, pictures and verdicts; without PyTorch."""
