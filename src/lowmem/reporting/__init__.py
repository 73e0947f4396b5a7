"""From records to numbers, figures and verdicts; without PyTorch."""
