"""Models, one readable file each; the file name is the key. Each exports build(**settings) -> nn.Module and SIZES."""
