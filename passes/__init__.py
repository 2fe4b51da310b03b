"""Lathe's passes: a pure library, model in, model out. Nothing here touches disk, network, clock or terminal."""
