"""From a registry to data/prepared: sources, archives, tokens, pictures, graphs."""
