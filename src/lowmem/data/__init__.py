"""From a registry to data/prepared: sources, archives, tokens, images, graphs."""
